"""train_vdm.py from end to end on the digits: what it writes, how it resumes, what it refuses."""

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vdm_diffusers import VDM, VDMPipeline
from vdm_diffusers import train as train_command
from vdm_diffusers.evaluate import main as evaluate
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import DIGITS, TrainingConfig
from vdm_diffusers.training.draws import draws_of


def parameters(folder) -> dict[str, torch.Tensor]:
    return VDM.from_pretrained(folder).state_dict()


def test_a_run_leaves_a_pipeline_and_its_pictures(train, tmp_path, capsys):
    train(report_to="tensorboard")
    out = tmp_path / "out"
    for picture in ("samples", "forward_process", "noise_schedule", "training_curve", "samples/step-3"):
        assert np.asarray(PIL.Image.open(out / f"{picture}.png")).std() > 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["bits_per_dim"] == pytest.approx(metrics["prior"] + metrics["reconstruction"] + metrics["diffusion"])
    assert metrics["standard_error"] > 0 and 2.3 < metrics["histogram_bits_per_dim"] < 2.5
    assert set(metrics["seconds"]) == {"preparation", "training", "evaluation", "sampling"}
    printed = capsys.readouterr().out
    assert f"{metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f} bits/dim" in printed
    assert "95 % interval of the figure: {:.4f} to {:.4f}.".format(*metrics["interval_95"]) in printed
    assert f"{metrics['bits_per_dim']:.4f}" in (out / "README.md").read_text()
    assert any((out / "logs").rglob("events.out.tfevents*"))
    pipe = VDMPipeline.from_pretrained(out)
    assert pipe(2, num_inference_steps=2).images[0].size == (8, 8)


def test_training_lowers_the_bound(train, tmp_path):
    train(max_train_steps=150, validation_steps=150, logging_steps=10, learning_rate=4e-3, train_batch_size=32)
    checkpoint = json.loads((tmp_path / "out" / "checkpoint-150" / "run_state.json").read_text())
    first, last = checkpoint["history"]["training"][0], checkpoint["history"]["training"][-1]
    assert last["bits_per_dim"] < 0.5 * first["bits_per_dim"]
    assert last["gamma_0"] != first["gamma_0"]


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_resumed_run_equals_an_unbroken_one(train, tmp_path, accumulation):
    options = {"train_batch_size": 400, "gradient_accumulation_steps": accumulation, "validation_steps": 100}
    train(output_dir=tmp_path / "whole", **options)
    train(output_dir=tmp_path / "broken", max_train_steps=3, **options)
    train(output_dir=tmp_path / "broken", resume_from_checkpoint="latest", **options)
    whole, broken = parameters(tmp_path / "whole"), parameters(tmp_path / "broken")
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name


def test_times_of_all_processes_and_batches_of_a_step_are_one_stratified_set():
    config = TrainingConfig(train_batch_size=5, gradient_accumulation_steps=2)

    def times(rank: int, micro_step: int, step: int = 7) -> torch.Tensor:
        accelerator = SimpleNamespace(num_processes=3, process_index=rank, device="cpu")
        return draws_of(config, accelerator, step, micro_step).times

    parts = [times(rank, micro_step) for micro_step in range(2) for rank in range(3)]
    assert sorted((torch.cat(parts) * 30).floor().int().tolist()) == list(range(30))
    for part in parts:
        assert sorted((part * 5).floor().int().tolist()) == list(range(5))
    assert not torch.equal(times(0, 0), times(0, 0, step=8))


def test_checkpoints_are_rotated(train, tmp_path):
    train(checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize(
    "options",
    [
        {"label_column": "label", "num_samples": 10},
        {"prediction_type": "v_prediction", "noise_schedule": "CosineSchedule"},
        {"noise_schedule": "LearnedChainSchedule", "num_timesteps": 5},
        {"mixed_precision": "bf16"},
        {"noise_schedule": "LearnedLinearSchedule", "attention_everywhere": True, "fourier_powers": "1 2 3"},
    ],
)
def test_other_models_train(train, tmp_path, options):
    train(**options)
    vdm = VDM.from_pretrained(tmp_path / "out")
    assert vdm.prediction_type == options.get("prediction_type", "epsilon")
    assert type(vdm.noise_schedule).__name__ == options.get("noise_schedule", "LearnedMonotoneSchedule")
    if "label_column" in options:
        assert vdm.unet.config.num_class_embeds == 11


def test_precision_is_that_of_accelerate_s_configuration(train, tmp_path, monkeypatch):
    """Which the launcher hands on in the environment; an option overrides it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for name, options in {"bf16": {}, "no": {"mixed_precision": "no"}}.items():
        train(output_dir=tmp_path / name, max_train_steps=1, max_validation_images=2, **options)
        assert json.loads((tmp_path / name / "training_config.json").read_text())["mixed_precision"] == name
    rounded, exact = parameters(tmp_path / "bf16"), parameters(tmp_path / "no")
    assert any(not torch.equal(rounded[name], exact[name]) for name in exact)


def test_a_saved_model_is_trained_on(train, tmp_path):
    train()
    before = parameters(tmp_path / "out")
    train(output_dir=tmp_path / "again", pretrained_model_name_or_path=tmp_path / "out", learning_rate=0, max_train_steps=1)
    after = parameters(tmp_path / "again")
    for name, value in after.items():
        if name.startswith("unet."):
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_a_folder_of_colour_pictures_trains(train, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(10):
            PIL.Image.fromarray(np.random.randint(0, 256, (6, 10, 3)).astype(np.uint8)).save(
                tmp_path / "data" / split / f"{i}.png"
            )
    train(train_data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    pipe = VDMPipeline.from_pretrained(tmp_path / "out")
    assert pipe.config.num_levels == 256
    assert pipe(1, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 6, 10)


@pytest.mark.parametrize(("split", "remove"), [("train", True), ("train", False), ("test", True)])
def test_a_run_ends_at_an_image_that_changes_with_a_checkpoint_and_goes_on(train, tmp_path, monkeypatch, split, remove):
    for name in ("train", "test"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(16):
            PIL.Image.new("L", (8, 8), 9 * i).save(tmp_path / "data" / name / f"{i}.png")
    changed = tmp_path / "data" / split / "0.png"
    content, step = changed.read_bytes(), Trainer._optimizer_step

    def step_and_change(trainer, batches):
        step(trainer, batches)
        if trainer.history.step == 1:
            changed.unlink()
            if not remove:
                PIL.Image.new("L", (8, 9)).save(changed)

    options = {"train_data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache", "checkpointing_steps": 100}
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(Trainer, "_optimizer_step", step_and_change)
        train(**options)
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert f"{split}/0.png is not what it was when it was checked." in str(error.value)
    assert f"{checkpoint.name} is written, go on from it by" in str(error.value)
    changed.write_bytes(content)
    train(resume_from_checkpoint="latest", **options)
    assert (tmp_path / "out" / "metrics.json").exists()


def test_five_channels_of_named_classes(train, tmp_path, monkeypatch):
    """From data to pipeline, and on; but not with data that call class 0 what the model calls class 1."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = {"image": list(np.random.randint(0, 9, (40, 6, 8, 5))), "label": [i % 2 for i in range(40)]}
    for folder, names in {"data": ["dog", "flower"], "others": ["flower", "dog"]}.items():
        label = datasets.ClassLabel(names=names)
        features = datasets.Features({"image": datasets.Array3D((6, 8, 5), "uint8"), "label": label})
        (tmp_path / folder).mkdir()
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / folder / "train.parquet")
    options = {"label_column": "label", "num_levels": 9, "checkpointing_steps": 1, "final_validation_repeats": 1}
    train(train_data_dir=tmp_path / "data", max_train_steps=1, **options)
    train(train_data_dir=tmp_path / "data", max_train_steps=2, resume_from_checkpoint="latest", **options)
    for picture in ("samples", "forward_process", "samples/step-2"):
        assert np.asarray(PIL.Image.open(tmp_path / "out" / f"{picture}.png")).std() > 0
    assert not (tmp_path / "out" / "bits_map.png").exists()
    pipe = VDMPipeline.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match='PIL has no pictures of 5 channels: take arrays by `output_type="np"`'):
        pipe(class_labels="dog", num_inference_steps=2)
    assert pipe(class_labels=["flower"], num_inference_steps=2, output_type="np").images.shape == (1, 6, 8, 5)

    others = {"train_data_dir": tmp_path / "others"} | options
    message = "The class 0 is 'flower' in '.*others', but 'dog' in"
    with pytest.raises(SystemExit, match=f"{message} the run that `--resume_from_checkpoint` goes on from"):
        train("--allow_config_change", resume_from_checkpoint="latest", **others)
    with pytest.raises(SystemExit, match=f"{message} `--pretrained_model_name_or_path`"):
        train(pretrained_model_name_or_path=tmp_path / "out", output_dir=tmp_path / "on", **others)
    flags = {"pretrained_model_name_or_path": tmp_path / "out", "data_dir": tmp_path / "others", "label_column": "label"}
    with pytest.raises(SystemExit, match=f"{message} the model"):
        evaluate([part for name, value in flags.items() for part in (f"--{name}", str(value))])


def test_options_come_from_a_file_and_then_from_flags(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump({"dataset_name": "cifar10", "learning_rate": 1e-5, "fourier_powers": [5, 6]}))
    config = train_command.parse_options([str(path), "--learning_rate", "1e-3", "--push_to_hub"])
    assert (config.dataset_name, config.learning_rate, config.fourier_powers) == ("cifar10", 1e-3, [5, 6])
    assert config.push_to_hub and config.block_channels == TrainingConfig().block_channels
    for flags in (["--seed", "3"], ["--dataset_name", "digits"]):
        digits = train_command.parse_options(flags)
        assert all(getattr(digits, name) == value for name, value in DIGITS.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_min": 6.0}, "`--gamma_min` is 6.0 and `--gamma_max` 5.0"),
        ({"max_train_steps": 0}, "`--max_train_steps` is 0"),
        ({"learning_rate": -1}, "`--learning_rate` is -1.0, but must be at least 0"),
        ({"learning_rate": "nan"}, "`--learning_rate` is nan, but must be at least 0"),
        ({"class_dropout": 2}, "`--class_dropout` is 2.0, but must be from 0 to 1"),
        ({"max_grad_norm": 0}, "`--max_grad_norm` is 0.0, but must be positive"),
        ({"adam_beta2": 1}, "`--adam_beta2` is 1.0, but must be at least 0 and below 1"),
        ({"max_validation_images": 1}, "`--max_validation_images` is 1, but must be at least 2"),
        (
            {"train_data_dir": "data", "validation_split": "train"},
            "`--validation_split` is 'train', whose images are trained on",
        ),
        (
            {"pretrained_model_name_or_path": "tests"},
            "`--pretrained_model_name_or_path` 'tests' could not be loaded: .* Name a",
        ),
        ({"noise_schedule": "LearnedChainSchedule"}, "give T as `--num_timesteps`"),
        ({"train_data_dir": "nowhere"}, "`--train_data_dir` 'nowhere' is no folder"),
        ({"resolution": 28}, "`--resolution` is 28, but the images are 8×8"),
        ({"num_channels": 3}, "`--num_channels` is 3"),
        ({"label_column": "digit"}, "`--label_column` is 'digit'"),
        ({"caption_column": "caption"}, "`--caption_column` needs `--text_encoder_name_or_path`"),
        ({"image_column": "image"}, "`--image_column` is 'image', but 'digits' has no choice of it"),
        ({"train_batch_size": 2000}, "takes 2000 images a step, but 'digits' has 1500"),
        ({"resume_from_checkpoint": "latest"}, "there is no such checkpoint"),
        ({"block_channels": 10}, "`block_channels` .10. must be a multiple of `norm_num_groups`"),
    ],
)
def test_bad_options_end_in_one_sentence_with_nothing_written(train, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        train(**options)
    assert not (tmp_path / "out").exists()


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        train_command.parse_options(["--help"])
    assert "--schedule_learning_rate" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["prediction_type", "lr_scheduler"])
def test_unknown_choices_are_refused(train, option):
    with pytest.raises(SystemExit, match=f"`--{option}` has a wrong value, 'flow': it must be one of"):
        train(**{option: "flow"})


def test_files_with_unknown_options_are_refused(tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"learning_rte": 1.0}))
    with pytest.raises(ValueError, match="has 'learning_rte', which is no option: did you mean `--learning_rate`"):
        train_command.parse_options([str(tmp_path / "options.json")])


def test_files_of_options_mean_what_they_write(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("mixed_precision: no\nfourier_powers: []\nstreaming: false\nnum_timesteps: null\nlearning_rate: 1e-5\n")
    config = train_command.parse_options([str(path)])
    assert (config.mixed_precision, config.fourier_powers, config.streaming) == ("no", [], False)
    assert config.num_timesteps is None and config.learning_rate == 1e-5
    path.write_text(json.dumps(asdict(config)))
    assert train_command.parse_options([str(path)]) == config
    path.write_text("checkpoints_total_limit: null")
    with pytest.raises(ValueError, match="has no value for `checkpoints_total_limit`: give one, or leave it out"):
        train_command.parse_options([str(path)])


def test_another_run_s_folder_is_left_alone(train, tmp_path):
    train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(SystemExit, match="holds another run: name another folder"):
        train()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    train("--overwrite_output_dir", max_train_steps=1)
    assert not (tmp_path / "out" / "checkpoint-6").exists()


def test_a_run_resumed_into_another_folder_leaves_what_is_there(train, tmp_path):
    train(max_train_steps=1, validation_steps=10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years")
    checkpoint = {"resume_from_checkpoint": tmp_path / "out" / "checkpoint-1", "max_train_steps": 2, "validation_steps": 10}
    with pytest.raises(SystemExit, match="holds something other than a run"):
        train(output_dir=tmp_path / "other", **checkpoint)
    shutil.copytree(tmp_path / "out", tmp_path / "another")
    with pytest.raises(SystemExit, match="holds another run"):
        train(output_dir=tmp_path / "another", **checkpoint)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    train("--overwrite_output_dir", output_dir=tmp_path / "another", **checkpoint)
    names = sorted(path.name for path in (tmp_path / "another").glob("*checkpoint-*"))
    assert names == ["checkpoint-2"] and (tmp_path / "out" / "checkpoint-1").is_dir()


def test_a_missing_package_is_named_before_anything_is_written(train, tmp_path, monkeypatch):
    for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        with monkeypatch.context() as patch:
            patch.setattr(train_command, "find_spec", lambda name, module=module: None if name == module else name)
            with pytest.raises(SystemExit, match=rf"{package} is not installed: `pip install 'vdm-diffusers\[train\]'`"):
                train()
    monkeypatch.setattr(train_command, "get_available_trackers", list)
    with pytest.raises(
        SystemExit, match="tensorboard is not installed: install it, or leave the tracker out by `--report_to none`"
    ):
        train(report_to="tensorboard")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_never_overwritten(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(SystemExit, match="holds something other than a run"):
        train("--overwrite_output_dir")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize(("gamma_0", "gamma_1"), [(4.5, 5.0), (6.0, 5.0), (float("nan"), 5.0)])
def test_a_collapsed_schedule_stops_training(train, monkeypatch, gamma_0, gamma_1):
    log = Trainer._log

    def collapse(self):
        self.vdm.noise_schedule.gamma_0.data.fill_(gamma_0)
        log(self)

    monkeypatch.setattr(Trainer, "_log", collapse)
    with pytest.raises(SystemExit, match="The noise schedule has collapsed by step 2"):
        train()


@pytest.mark.parametrize(("end", "value", "term"), [("gamma_min", 3.5, "reconstruction"), ("gamma_max", -6.5, "prior")])
def test_end_points_out_of_place_are_reported(train, capsys, end, value, term):
    train(**{end: value})
    assert f"the {term} term is" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_checkpoint(train, tmp_path, monkeypatch):
    optimizer_step = Trainer._optimizer_step

    def poisoned(self, batches):
        if self.history.step == 4:
            self.vdm.unet.conv_out.bias.data.fill_(float("nan"))
        optimizer_step(self, batches)

    monkeypatch.setattr(Trainer, "_optimizer_step", poisoned)
    with pytest.raises(SystemExit, match="not finite at step 5. The last good checkpoint is .*checkpoint-3;"):
        train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    average = load_file(tmp_path / "out" / "checkpoint-3" / "moving_average.safetensors")
    assert all(value.isfinite().all() for value in average.values())
