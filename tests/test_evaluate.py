"""The command: its figures, its files, any number of processes, and what it refuses."""

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from processes import Ranks
from tiny_pipelines import build, unet
from torch.utils.data import Subset

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMPipeline, VDMUNet2DModel, evaluate
from vdm_diffusers.data import load_digits, load_images
from vdm_diffusers.data.streaming import load_image_stream
from vdm_diffusers.error_profiles import ErrorProfile
from vdm_diffusers.few_steps import error_profile
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.hub import evaluation_command


def digits_vdm(num_class_embeds: int | None = None, **kwargs) -> VDM:
    settings = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "num_class_embeds": num_class_embeds}
    unet = VDMUNet2DModel(8, 1, fourier_powers=(), **settings)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), **({"num_levels": 17} | kwargs))


def run(model, tmp_path: Path, *flags: str) -> dict:
    """What the command writes."""
    path = tmp_path / "result.json"
    evaluate.main(["--pretrained_model_name_or_path", str(model), "--output_path", str(path), *flags])
    return json.loads(path.read_text())


def test_command_prints_and_writes_what_the_function_returns(tmp_path, capsys):
    vdm = digits_vdm()
    vdm.save_pretrained(tmp_path / "model")
    flags = ["--num_timesteps", "10", "continuous", "--num_repeats", "2", "--seed", "3"]
    result = run(tmp_path / "model", tmp_path, *flags, "--figure_path", str(tmp_path / "loss.png"))
    assert [row["num_timesteps"] for row in result["results"]] == [10, None]
    printed = capsys.readouterr().out
    for row in result["results"]:
        vdm.num_timesteps = row["num_timesteps"]
        expected = variational_bound(vdm, load_digits().validation, num_repeats=2, seed=3).record()
        for name in ("bits_per_dim", "standard_error", "standard_error_draws", "prior", "reconstruction", "diffusion"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        assert f"{row['bits_per_dim']:.4f} ± {row['standard_error']:.4f}" in printed
        assert "95 % interval {:.4f} to {:.4f}".format(*row["interval_95"]) in printed
    assert (result["num_images"], result["seed"], result["data"]["num_levels"]) == (297, 3, 17)
    assert result["versions"]["torch"] == torch.__version__
    assert PIL.Image.open(tmp_path / "loss.png").width > 100


ODE = ["--dtype", "float64", "--tolerance", "0.01", "--estimators", "ode"]


@pytest.mark.parametrize("kept", [True, False])
def test_optimal_variances_are_those_of_a_profile_that_is_kept_or_measured(tmp_path, capsys, kept):
    vdm, flags = digits_vdm(), ["--num_timesteps", "5", "--reverse_variance", "optimal", "--num_repeats", "1"]
    vdm.save_pretrained(tmp_path / "model")
    gammas = torch.linspace(-8, 5, 60)
    profile = error_profile(vdm, load_digits().train, gammas, "entries" if kept else "isotropic", 400 if kept else 10_000)
    if kept:
        profile.save_pretrained(tmp_path / "profile")
        flags += ["--error_profile_dir", str(tmp_path / "profile")]
    (row,) = run(tmp_path / "model", tmp_path, *flags)["results"]
    expected = variational_bound(digits_model(vdm, profile), load_digits().validation)
    assert row["bits_per_dim"] == pytest.approx(expected.bits_per_dim, abs=1e-4)
    assert row["reverse_variance"] == "optimal"
    assert f"VLB, T = 5, optimal variance, {profile.basis}" in capsys.readouterr().out
    (with_q,) = run(tmp_path / "model", tmp_path, "--num_timesteps", "5", "--num_repeats", "1")["results"]
    assert row["bits_per_dim"] < with_q["bits_per_dim"] and with_q["reverse_variance"] == "q"


def digits_model(vdm: VDM, profile: ErrorProfile) -> VDM:
    """The same model in five steps with optimal variances."""
    return VDM(vdm.unet, vdm.noise_schedule, num_levels=17, num_timesteps=5, error_profile=profile)


def test_ode_is_that_of_the_function(tmp_path, capsys):
    vdm = digits_vdm()
    vdm.save_pretrained(tmp_path / "model")
    flags = ["--max_images", "6", "--num_repeats", "2", "--dequantization", "uniform", "--num_importance_samples", "2"]
    (row,) = run(tmp_path / "model", tmp_path, *ODE, *flags)["results"]
    images = Subset(load_digits().validation, range(6))
    settings = {"dequantization": "uniform", "num_importance_samples": 2, "tolerance": 0.01}
    expected = ode_likelihood(vdm.double(), images, num_repeats=2, **settings).record()
    assert row["interval_95"] == pytest.approx(expected.pop("interval_95"), abs=1e-3)
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert f"| ODE, uniform, K = 2 | {row['bits_per_dim']:.4f} ±" in capsys.readouterr().out


def test_both_conventions_of_a_stock_pipeline(tmp_path, capsys):
    pipeline = DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=20, beta_end=0.4, variance_type="fixed_large"))
    pipeline.save_pretrained(tmp_path / "model")
    data = folder_of(PIL.Image.effect_noise((8, 8), 60).convert("RGB"), tmp_path / "images")
    flags = ["--data_dir", str(data), "--estimators", "vlb", "ddpm", "--num_timesteps", "19", "continuous"]
    result = run(tmp_path / "model", tmp_path, *flags)
    images = load_images(train_data_dir=str(data)).validation
    expected = ddpm_bound(DDPM.from_pipeline(pipeline), images, num_repeats=4).record()
    for name, value in expected.items():
        assert result["results"][2][name] == pytest.approx(value), name
    expected = variational_bound(VDM.from_pipeline(pipeline, num_timesteps=19), images, num_repeats=4)
    assert result["results"][0]["bits_per_dim"] == pytest.approx(expected.bits_per_dim)
    assert "| DDPM's bound, fixed_large, clipped |" in capsys.readouterr().out


def check_processes(folder: Path, num_processes: int, batch_sizes: tuple[int, ...], flags: list[str]) -> None:
    """Compare what so many processes write with what this one does in a single batch."""
    digits_vdm().save_pretrained(folder / "model")
    expected = run(folder / "model", folder, "--batch_size", "297", *flags)
    for batch_size in batch_sizes:
        options = ["--batch_size", str(batch_size), "--pretrained_model_name_or_path", str(folder / "model")]
        options += ["--output_path", str(folder / "parts.json"), *flags]
        ranks = Ranks(evaluate.main, options, num_processes=num_processes, log=folder / "log")
        assert ranks.join() == [0] * num_processes, (folder / "log").read_text()
        measured = json.loads((folder / "parts.json").read_text())
        assert measured["num_processes"] == num_processes
        for row, other in zip(measured["results"], expected["results"]):
            for name in {"bits_per_dim", "standard_error", "prior", "reconstruction", "diffusion"} & row.keys():
                assert row[name] == pytest.approx(other[name], abs=1e-5), (batch_size, name)


def test_two_processes_find_the_same(tmp_path):
    check_processes(
        tmp_path,
        2,
        (4,),
        [*ODE, "vlb", "codec", "--num_timesteps", "2", "continuous", "--max_images", "9", "--num_repeats", "2"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [["--num_timesteps", "10", "continuous"], ODE], ids=["VLB", "ODE"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_processes_and_batches_do_not_matter(tmp_path, num_processes, estimator):
    """All 297 digits on one process and on two, in batches of 1, 7 and 297."""
    check_processes(tmp_path, num_processes, (1, 7, 297), [*estimator, "--num_repeats", "2"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "`--batch_size` is 0"),
        (["--num_timesteps", "10", "0"], "`--num_timesteps` is 0"),
        (["--max_images", "1"], "`--max_images` is 1"),
        (["--num_repeats", "1000000000000"], "`--num_repeats` is 1000000000000, but must be at most 1,000,000"),
        (["--output_path", "nowhere/result.json"], "There is no folder 'nowhere'"),
        (["--output_path", "."], "'.' is a folder"),
        (["--figure_path", "loss.foo"], "'loss.foo' ends in '.foo', but a plot is written as one of"),
        (["--figure_path", "loss.png", "--estimators", "ode"], "add `vlb` to `--estimators`"),
        (["--estimators", "codec"], "`--estimators codec` codes in discrete steps: give numbers of them as `--num_timesteps`"),
        (["--reverse_variance", "optimal"], "`--reverse_variance optimal` is of discrete steps: give .* `--num_timesteps`"),
        (["--error_profile_dir", "x"], "is for optimal variances: add `--reverse_variance optimal`"),
        (["--data_dir", "nowhere"], "`--data_dir` 'nowhere' is no folder"),
        (["--split", "test"], "`--split` is 'test', but 'digits' has no choice of it"),
        (["--image_column", "foo"], "`--image_column` is 'foo', but 'digits' has no choice of it"),
        ([], "the model's `num_levels` is 4, but that of 'digits' is 17"),
    ],
)
def test_unsuitable_options_are_refused(tmp_path, flags, message):
    digits_vdm(num_levels=4).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), *flags])


def test_words_that_are_no_number_of_steps_are_refused():
    with pytest.raises(SystemExit, match="'abc': it must be a whole number of at most 64 bits or one of continuous"):
        evaluate.main(["--pretrained_model_name_or_path", "model", "--num_timesteps", "abc"])


@pytest.mark.parametrize(
    ("num_class_embeds", "flags", "message"),
    [
        (6, ["--label_column", "label"], "have 10 classes, but the model has 5"),
        (10, ["--label_column", "label"], "have 10 classes, but the model has 9"),  # the last embedding means none of them
        (11, [], "name the column of labels"),
        (None, ["--label_column", "label"], "The model is unconditional"),
        (None, ["--caption_column", "caption"], "The model takes no text: leave out `--caption_column`"),
    ],
)
def test_labels_of_other_classes_and_captions_are_refused(tmp_path, num_class_embeds, flags, message):
    digits_vdm(num_class_embeds=num_class_embeds).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), *flags])


@pytest.mark.parametrize("streaming", [True, False])
def test_the_command_of_a_card_uses_as_many_images(tmp_path, streaming, capsys):
    """Of a stream there are held-out images that are not in `data`; a validation may use some of those that are."""
    folder = str(folder_of(PIL.Image.effect_noise((8, 8), 60), tmp_path / "images"))
    data = load_image_stream(2, train_data_dir=folder) if streaming else load_images(train_data_dir=folder)
    digits_vdm(num_levels=256).save_pretrained(tmp_path / "model")
    vdm = VDM.from_pipeline(VDMPipeline.from_pretrained(tmp_path / "model"))
    config = TrainingConfig(train_data_dir=folder, streaming=streaming, max_validation_images=2)
    command = evaluation_command(str(tmp_path / "model"), config, data, {"num_images": 2, "num_repeats": 1})
    evaluate.main(command[3:])
    expected = variational_bound(vdm, Subset(data.validation, range(2)))
    assert f"| {expected.bits_per_dim:.4f} ± {expected.standard_error:.4f} |" in capsys.readouterr().out


def test_the_command_of_a_card_prepares_the_images(tmp_path, capsys):
    (tmp_path / "images" / "test").mkdir(parents=True)
    for i, size in enumerate([(12, 9), (9, 10), (16, 8)] * 2):
        PIL.Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "images" / "test" / f"{i}.png")
    shutil.copytree(tmp_path / "images" / "test", tmp_path / "images" / "train")
    (tmp_path / "images" / "test" / "5.png").write_bytes(b"")
    options = {"resize": 8, "center_crop": True, "convert": "L", "skip_unreadable_images": True}
    config = TrainingConfig(train_data_dir=str(tmp_path / "images"), **options)
    data = load_images(train_data_dir=config.train_data_dir, preparation=config.preparation, skip_unreadable_images=True)
    digits_vdm(num_levels=256).save_pretrained(tmp_path / "model")
    command = evaluation_command(str(tmp_path / "model"), config, data, {"num_images": 5, "num_repeats": 1})
    evaluate.main(command[3:])
    printed = capsys.readouterr().out
    assert f"5 images of {config.train_data_dir}, {config.preparation}, 1 repeats" in printed
    assert "1 image can't be read and is left out." in printed
    vdm = VDM.from_pipeline(VDMPipeline.from_pretrained(tmp_path / "model"))
    assert f"| {variational_bound(vdm, data.validation).bits_per_dim:.4f} ±" in printed


def test_the_command_of_a_card_names_the_configuration():
    config = TrainingConfig(dataset_name="mnist", dataset_config_name="small")
    command = evaluation_command("model", config, load_digits(), {"num_images": 297, "num_repeats": 1})
    options = evaluate.parse_options(command[3:])
    assert (options.dataset_config_name, options.max_images) == ("small", None)


@pytest.mark.parametrize("name", ["LDM", "DiT"])
def test_latent_space_pipelines_are_refused(tmp_path, name):
    build(name, DDPMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="latents of its `v"):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model")])


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler])
def test_models_without_a_chain_are_refused(tmp_path, scheduler):
    pipeline = DDPMPipeline(unet(), DDPMScheduler())
    pipeline.register_modules(scheduler=scheduler())
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=f"{scheduler.__name__} has neither gammas nor a plain β-chain"):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model")])


def test_missing_models_are_refused():
    with pytest.raises(SystemExit, match="'nowhere' could not be loaded"):
        evaluate.main(["--pretrained_model_name_or_path", "nowhere"])


def folder_of(image: PIL.Image.Image, path: Path) -> Path:
    for split in ("train", "test"):
        (path / split).mkdir(parents=True)
        for index in range(3):
            image.save(path / split / f"{index}.png")
    return path


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIL.Image.new("RGB", (16, 16)), "are 16×16, but those of the model are 8×8"),
        (PIL.Image.new("L", (8, 8)), "has 1 channels, but the model has 3"),
        (PIL.Image.new("P", (8, 8)), "PIL mode 'P'"),
        (PIL.Image.new("I;16", (8, 8), 40_000), "must be integers in"),
    ],
)
def test_unsuitable_images_are_refused(tmp_path, image, message):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "model")
    data = folder_of(image, tmp_path / "images")
    with pytest.raises(SystemExit, match=message):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), "--data_dir", str(data)])


@pytest.mark.parametrize(("num_levels", "image"), [(65536, PIL.Image.new("L", (8, 8))), (17, PIL.Image.new("1", (8, 8)))])
def test_images_of_a_type_with_fewer_levels_are_refused(tmp_path, num_levels, image):
    digits_vdm(num_levels=num_levels).save_pretrained(tmp_path / "model")
    data = folder_of(image, tmp_path / "images")
    with pytest.raises(SystemExit, match=f"the model's `num_levels` is {num_levels}, but the images are of a type that holds"):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), "--data_dir", str(data)])
