"""Options of train_vdm.py from end to end: streams, augmentation, classes, what saves memory or time."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from processes import Ranks
from safetensors.torch import load_file
from tiny_pipelines import vae

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMUNet2DModel


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """24 random 8×8 images of two classes in three parquet files, and six held-out ones."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    (tmp_path / "data").mkdir()
    for split, count in {"train-0": 8, "train-1": 8, "train-2": 8, "test": 6}.items():
        labels = [i % 2 for i in range(count)]
        images = [PIL.Image.fromarray((random.integers(0, 128, (8, 8)) + 127 * label).astype(np.uint8)) for label in labels]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path / "data"


def parameters(folder) -> dict[str, torch.Tensor]:
    return VDM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_stream_equals_an_unbroken_one(train, folder, tmp_path, num_workers):
    options = {"train_data_dir": folder, "max_validation_images": 4, "shuffle_buffer_size": 5, "label_column": "label"}
    options |= {"dataloader_num_workers": num_workers, "augmentation": "paper", "validation_steps": 100}
    train("--streaming", output_dir=tmp_path / "whole", **options)
    train("--streaming", output_dir=tmp_path / "broken", max_train_steps=3, **options)
    train("--streaming", output_dir=tmp_path / "broken", resume_from_checkpoint="latest", **options)
    whole, broken = parameters(tmp_path / "whole"), parameters(tmp_path / "broken")
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name


def test_what_saves_memory_or_time_leaves_the_run_as_it_is(train, tmp_path):
    options = {"dropout": 0.0, "max_train_steps": 3, "validation_steps": 10, "max_validation_images": 8}
    train(output_dir=tmp_path / "plain", **options)
    train("--gradient_checkpointing", "--allow_tf32", output_dir=tmp_path / "saving", optimizer="adamw", **options)
    plain, saving = parameters(tmp_path / "plain"), parameters(tmp_path / "saving")
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, rtol=1e-3, atol=1e-4)


def test_the_moving_average_approaches_its_decay_by_a_power(train, tmp_path):
    options = {"max_train_steps": 4, "checkpointing_steps": 1, "checkpoints_total_limit": 4, "validation_steps": 10}
    train(ema_power=0.5, ema_decay=0.4, max_validation_images=8, **options)
    average = None
    for step, decay in enumerate([0.0, 1 - 2**-0.5, 0.4, 0.4], start=1):  # 1 - 3^-0.5 is more than 0.4
        weights, averaged = (
            load_file(tmp_path / "out" / f"checkpoint-{step}" / f"{name}.safetensors") for name in ("model", "moving_average")
        )
        average = {name: decay * (average or weights)[name] + (1 - decay) * weights[name] for name in averaged}
        torch.testing.assert_close(averaged, average)


def test_another_weighting_keeps_the_end_points(train, tmp_path):
    train(weighting="sigmoid", max_train_steps=3, validation_steps=10, max_validation_images=8)
    schedule = VDM.from_pretrained(tmp_path / "out").noise_schedule
    assert schedule.chain(1).tolist() == [-8.0, 5.0]
    assert not torch.equal(schedule.logits, type(schedule)(-8.0, 5.0).logits)


@pytest.mark.slow
def test_classes_are_learned_and_guided(train, folder, tmp_path):
    """Bright and dark images are told apart by their label alone, the more so with guidance."""
    train(train_data_dir=folder, label_column="label", max_train_steps=150, learning_rate=1e-2, validation_steps=1000,
          checkpointing_steps=1000, ema_decay=0.9, gamma_min=-8.0, dropout=0.0, num_samples=4)  # fmt: skip
    pipe = VDMPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.num_class_embeds == 3

    def images(label: int, guidance_scale: float) -> torch.Tensor:
        kwargs = {"num_inference_steps": 20, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
        return pipe(class_labels=[label] * 8, guidance_scale=guidance_scale, **kwargs).images

    def contrast(guidance_scale: float) -> float:
        """How much brighter images of class 1 are than those of class 0."""
        return (images(1, guidance_scale).mean() - images(0, guidance_scale).mean()).item()

    assert contrast(1.0) > 0.25  # the data have 0.5
    assert contrast(2.0) > contrast(1.0) + 0.02
    torch.testing.assert_close(images(1, 0.0), images(0, 0.0))  # 0 is no class


def sample(model: Path, path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(model)
    torch.save(pipe(3, num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(0)).images, path)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="pixels"),
        pytest.param(["--streaming"], id="stream", marks=pytest.mark.slow),
        pytest.param(["--cache_latents", "latents"], id="cached", marks=pytest.mark.slow),
    ],
)
def test_latents_train_and_are_sampled_in_another_process(train, folder, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    vae(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    train(*flags, train_data_dir=folder, vae_model_name_or_path=tmp_path / "vae", max_validation_images=6)
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    terms = metrics["prior"] + metrics["reconstruction"] + metrics["diffusion"]
    assert metrics["nats_per_dim"] == pytest.approx(terms) and not any("bits" in name for name in metrics)
    printed = capsys.readouterr().out
    assert f"6 held-out latents of {folder}: {metrics['nats_per_dim']:.4f} ±" in printed and "bits" not in printed
    assert "bits" not in (out / "README.md").read_text()
    report = (out / "report.html").read_text()
    assert "nats/dim" in report and "bits/dim" not in report and not (out / "bits_map.png").exists()
    assert Ranks(sample, out, tmp_path / "images.pt", log=tmp_path / "log").join() == [0], (tmp_path / "log").read_text()
    images = torch.load(tmp_path / "images.pt")
    assert images.shape == (3, 1, 8, 8)
    here = VDMPipeline.from_pretrained(out)(
        3, num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(0)
    ).images
    torch.testing.assert_close(images, here, rtol=1e-4, atol=1e-5)


def test_a_dry_run_encodes_nothing_to_keep_and_refuses_what_a_run_would(train, folder, tmp_path, capsys, monkeypatch):
    vae(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    train("--dry_run", train_data_dir=folder, vae_model_name_or_path=tmp_path / "vae", cache_latents=tmp_path / "latents")
    assert "4×4×4, latents of AutoencoderKL, no classes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="`--cache_latents` .* holds something other than latents"):
        train("--dry_run", train_data_dir=folder, vae_model_name_or_path=tmp_path / "vae", cache_latents=folder)
    with pytest.raises(SystemExit, match="`--dataloader_num_workers` is 9, but the stream has 3 files"):
        train("--dry_run", "--streaming", train_data_dir=folder, max_validation_images=4, dataloader_num_workers=9)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(SystemExit, match="`--optimizer adamw_8bit` needs bitsandbytes"):
        train("--dry_run", optimizer="adamw_8bit")
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "cache", "vae"}


def test_a_resumed_run_on_latents_equals_an_unbroken_one(train, folder, tmp_path):
    vae(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vae")
    options = {"train_data_dir": folder, "vae_model_name_or_path": tmp_path / "vae", "validation_steps": 100}
    train(output_dir=tmp_path / "whole", **options)
    train(output_dir=tmp_path / "broken", max_train_steps=3, **options)
    train(output_dir=tmp_path / "broken", resume_from_checkpoint="latest", **options)
    whole, broken = parameters(tmp_path / "whole"), parameters(tmp_path / "broken")
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        (["--streaming"], {}, "`--streaming` needs `--dataset_name` or `--train_data_dir`: 'digits' is in memory already"),
        (
            ["--streaming"],
            {"train_data_dir": "data", "max_validation_images": None},
            "say how many by `--max_validation_images`",
        ),
        ([], {"cache_latents": "latents"}, "`--cache_latents` needs `--vae_model_name_or_path`"),
        ([], {"cache_latents": "latents", "vae_model_name_or_path": "vae", "augmentation": "flip"}, "leave out `--streaming`"),
        ([], {"vae_model_name_or_path": "tests"}, "`--vae_model_name_or_path` 'tests' could not be loaded"),
        ([], {"weighting": "edm", "num_timesteps": 5, "noise_schedule": "LinearSchedule"}, "is one of continuous time"),
    ],
)
def test_options_that_make_no_sense_together(train, tmp_path, flags, options, message):
    with pytest.raises(SystemExit, match=message):
        train(*flags, **options)
    assert not (tmp_path / "out").exists()


def test_pretrained_models_that_don_t_fit_the_options(train, folder, tmp_path):
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    VDM(unet, LinearSchedule()).save_pretrained(tmp_path / "model")
    options = {"train_data_dir": folder, "pretrained_model_name_or_path": tmp_path / "model"}
    with pytest.raises(SystemExit, match="UNet2DModel has no `conditioning`"):
        train(augmentation="paper", **options)
    with pytest.raises(SystemExit, match="is a model of no classes, but .* has 2"):
        train(label_column="label", **options)
    unet.register_to_config(sample_size=16)
    VDM(unet, LinearSchedule()).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="is a model of 16×16, but .* has 8×8: choose data of the model's size"):
        train(**options)
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "stock")
    with pytest.raises(SystemExit, match="stock' could not be loaded: The chain ends in pure noise .* Name a pipeline of a"):
        train(**options | {"pretrained_model_name_or_path": tmp_path / "stock"})
    with pytest.raises(SystemExit, match="`--vae_model_name_or_path` .* could not be loaded: It is a pipeline without a `vae`"):
        train(train_data_dir=folder, vae_model_name_or_path=tmp_path / "model")
    assert not (tmp_path / "out").exists()


def test_a_pretrained_model_keeps_its_autoencoder(train, folder, tmp_path):
    first, second = (vae(in_channels=1, out_channels=1) for _ in range(2))
    second.save_pretrained(tmp_path / "vae")
    unet = VDMUNet2DModel(4, 4, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    VDM(unet, LinearSchedule(), vae=first).save_pretrained(tmp_path / "model")
    options = {"train_data_dir": folder, "pretrained_model_name_or_path": tmp_path / "model"}
    with pytest.raises(SystemExit, match="is a model of the latents of another autoencoder than"):
        train("--dry_run", vae_model_name_or_path=tmp_path / "vae", **options)
    train("--dry_run", vae_model_name_or_path=tmp_path / "model", **options)
