"""train_vdm.py on text-to-image models that people have, with captions: all weights or adapters, and their own class again."""

import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from prompted_pipelines import SIZE, pixart_alpha, pixart_sigma, sd, sdxl
from torch import Tensor

from vdm_diffusers import VDM, VDMScheduler
from vdm_diffusers import train as train_command
from vdm_diffusers.denoisers import denoiser_of


PIXART = {"use_resolution_binning": False, "clean_caption": False}
MODELS = {"SD": (sd, {}), "SDXL": (sdxl, {}), "PixArt-α": (pixart_alpha, PIXART), "PixArt-Σ": (pixart_sigma, PIXART)}
"""A pipeline by its scheduler, and options of its call."""
SMALL = {"max_train_steps": 2, "validation_steps": 2, "train_batch_size": 4, "num_samples": 2, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Coloured noise, 16×16, with one or two captions each."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("captioned")
    pictures = [PIL.Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(20)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    captions = [["a red cat", "a dog"], ["blue"]] * 10
    rows = datasets.Dataset.from_dict({"image": pictures, "text": captions}, features=features)
    rows.to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture
def adapt(train, captioned, tmp_path, monkeypatch):
    """Saves a pipeline, trains on it with captions, and returns the model that was trained and what was saved."""
    trained = {}

    def finish(config, data, vdm, *args):
        trained["vdm"] = vdm
        return original(config, data, vdm, *args)

    original = train_command.finish
    monkeypatch.setattr(train_command, "finish", finish)

    def run(pipeline: DiffusionPipeline, name: str, **options) -> tuple[VDM, Path]:
        pipeline.save_pretrained(tmp_path / "stock")
        paths = dict.fromkeys(("pretrained_model_name_or_path", "vae_model_name_or_path"), tmp_path / "stock")
        data = {"train_data_dir": captioned, "cache_dir": tmp_path / "cache", "caption_column": "text"}
        train(output_dir=tmp_path / name, noise_schedule="LearnedMonotoneSchedule", **paths, **data, **SMALL, **options)
        return trained["vdm"], tmp_path / name

    return run


def drawn(pipeline: DiffusionPipeline, **options) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)} | SIZE | options
    return torch.as_tensor(pipeline(["a red cat", "a dog"], **call).images)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_trained_is_saved_as_a_pipeline_of_its_class(adapt, name):
    make, options = MODELS[name]
    stock = make(DDPMScheduler(beta_schedule="scaled_linear"))
    vdm, folder = adapt(stock, "adapted")
    saved = type(stock).from_pretrained(folder)
    assert type(saved.scheduler) is VDMScheduler
    kinds, expected = ({key: type(part) for key, part in pipe.components.items()} for pipe in (saved, stock))
    assert kinds | {"scheduler": None} == expected | {"scheduler": None}
    before, after = (pipe.text_encoder.state_dict() for pipe in (stock, saved))
    assert all(torch.equal(weight, after[key]) for key, weight in before.items())
    before, after = (denoiser_of(pipe).state_dict() for pipe in (stock, saved))
    assert not any(torch.equal(weight, after[key]) for key, weight in before.items() if key.endswith("to_k.weight"))
    image = drawn(saved, **options)
    assert image.std() > 0 and torch.equal(image, drawn(vdm.to_original_pipeline(), **options))
    metrics = json.loads((folder / "metrics.json").read_text())
    worth = metrics["without_captions"] - metrics["nats_per_dim"]
    assert worth != 0 and metrics["worth_of_captions"]["per_dim"] == pytest.approx(worth)
    assert "text-to-image" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["SDXL", "PixArt-α"])
def test_adapters_are_the_same_whether_embeddings_are_kept_or_not(adapt, tmp_path, name):
    stock = MODELS[name][0](DDPMScheduler(beta_schedule="scaled_linear"))
    before = {key: weight.clone() for key, weight in denoiser_of(stock).state_dict().items()}
    vdm, _ = adapt(stock, "computed", lora_rank=2)
    kept, _ = adapt(stock, "kept", lora_rank=2, cache_text_embeddings=tmp_path / "embeddings")
    computed, looked_up = vdm.unet.state_dict(), kept.unet.state_dict()
    assert before.keys() == computed.keys() and {*kept.prompt_encoder.stored} == {"", "a red cat", "a dog", "blue"}
    changed = {key for key, weight in before.items() if not torch.equal(weight, computed[key])}
    assert changed and all(".to_" in key for key in changed)
    assert all(torch.equal(weight, looked_up[key]) for key, weight in computed.items())
