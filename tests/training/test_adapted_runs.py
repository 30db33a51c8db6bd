"""train_vdm.py on models that people have: where it starts, all weights or adapters, and the class that is saved."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)
from tiny_pipelines import BLOCKS, conditional_unet, stable_diffusion_xl, transformer, unet, vae, vqvae
from tiny_text import clip, tokenizer
from torch import nn

from vdm_diffusers import VDM, VDMPipeline, VDMScheduler
from vdm_diffusers.data import load_images
from vdm_diffusers.likelihood import variational_bound


SMALL = {"max_train_steps": 5, "validation_steps": 5, "checkpointing_steps": 5, "learning_rate": 1e-3, "train_batch_size": 4}
LEARNED = {"max_validation_images": None, "validation_repeats": 16, "noise_schedule": "LearnedMonotoneSchedule"} | SMALL
ATTENTION = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}


def ddpm(folder: Path, **options) -> DDPMPipeline:
    pipe = DDPMPipeline(UNet2DModel(16, 3, 3, **BLOCKS | ATTENTION), DDPMScheduler(**options))
    pipe.save_pretrained(folder)
    return pipe


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Coloured noise, 16×16, of two classes."""
    for split, number in (("train", 12), ("test", 4)):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True)
        files = [f"{i}.png" for i in range(number)]
        for i, file in enumerate(files):
            levels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(levels).save(folder / file)
        rows = [json.dumps({"file_name": file, "label": i % 2}) for i, file in enumerate(files)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path / "pictures"


def bound_at(folder: Path, step: int) -> float:
    state = json.loads((folder / "checkpoint-5" / "run_state.json").read_text())
    (record,) = [record for record in state["history"]["validation"] if record["step"] == step]
    return record["bits_per_dim"]


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "LoRA"])
def test_a_ddpm_is_adapted_from_where_it_is(train, pictures, tmp_path, adapters):
    """The bound at step 0 is the model's own up to its variance; afterwards it is one of its class, with plain weights."""
    stock = ddpm(tmp_path / "stock")
    options = LEARNED | {"train_data_dir": pictures, "lora_rank": 2 if adapters else None}
    train(pretrained_model_name_or_path=tmp_path / "stock", **options)
    out = tmp_path / "out"
    assert bound_at(out, 0) == pytest.approx(own_bound(stock, pictures), rel=2e-3)

    loaded = DiffusionPipeline.from_pretrained(out)
    assert type(loaded) is DDPMPipeline and type(loaded.scheduler) is VDMScheduler
    vdm = VDM.from_pretrained(out)
    assert type(vdm.noise_schedule).__name__ == "LearnedMonotoneSchedule"
    assert vdm.noise_schedule.end_points()[1].item() != own_end(stock)
    before, after = stock.unet.state_dict(), loaded.unet.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    attention = {name for name in before if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))}
    assert changed == attention if adapters else changed > attention
    drawn = VDMPipeline.from_pipe(loaded)(2, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 3, 16, 16) and "DiffusionPipeline.from_pretrained" in (out / "README.md").read_text()


def own_bound(stock: DDPMPipeline, pictures: Path) -> float:
    held_out = load_images(train_data_dir=str(pictures)).validation
    return variational_bound(VDM.from_pipeline(stock).eval(), held_out, 16, 4, seed=0).per_dim


def own_end(stock: DDPMPipeline) -> float:
    last = stock.scheduler.alphas_cumprod[-1].double()
    return torch.log((1 - last) / last).item()


def test_a_chain_that_is_kept_gives_the_very_same_bound(train, pictures, tmp_path):
    stock = ddpm(tmp_path / "stock", beta_schedule="squaredcos_cap_v2")
    options = LEARNED | {"train_data_dir": pictures, "noise_schedule": None}
    train(pretrained_model_name_or_path=tmp_path / "stock", **options)
    assert bound_at(tmp_path / "out", 0) == pytest.approx(own_bound(stock, pictures), rel=1e-6)


def test_a_chain_that_ends_in_pure_noise_takes_a_schedule_that_does_not(train, pictures, tmp_path):
    ddpm(tmp_path / "stock", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    options = {"pretrained_model_name_or_path": tmp_path / "stock", "train_data_dir": pictures, "gamma_min": -8.0}
    train(**SMALL | options | {"noise_schedule": "LearnedLinearSchedule", "max_train_steps": 1, "schedule_learning_rate": 0.0})
    ends = [end.item() for end in VDM.from_pretrained(tmp_path / "out").noise_schedule.end_points()]
    assert ends == [-8.0, 5.0]


def test_an_interrupted_adaptation_goes_on_the_same(train, pictures, tmp_path):
    ddpm(tmp_path / "stock")
    options = LEARNED | {
        "train_data_dir": pictures,
        "pretrained_model_name_or_path": tmp_path / "stock",
        "lora_rank": 2,
        "checkpointing_steps": 3,
    }
    options |= {"validation_repeats": 1, "num_samples": 1, "num_inference_steps": 1}
    train(output_dir=tmp_path / "whole", **options)
    train(output_dir=tmp_path / "broken", **options | {"max_train_steps": 3})
    train(output_dir=tmp_path / "broken", resume_from_checkpoint="latest", **options)
    whole, broken = (VDM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


LATENT = {
    "LDM": (lambda: LDMPipeline(vqvae(), unet(), DDPMScheduler()), {}),
    "DiT": (
        lambda: DiTPipeline(transformer(DiTTransformer2DModel, num_embeds_ada_norm=2), vae(), DDPMScheduler()),
        {"label_column": "label"},
    ),
}


@pytest.mark.parametrize("name", LATENT)
def test_latent_models_are_adapted(train, pictures, tmp_path, name):
    make, options = LATENT[name]
    stock, out = make(), tmp_path / "out"
    stock.save_pretrained(tmp_path / "stock")
    paths = {"pretrained_model_name_or_path": tmp_path / "stock", "vae_model_name_or_path": tmp_path / "stock"}
    train(train_data_dir=pictures, noise_schedule="LearnedLinearSchedule", lora_rank=2, **paths, **options, **SMALL)
    loaded = DiffusionPipeline.from_pretrained(out)
    assert type(loaded) is type(stock) and type(loaded.scheduler) is VDMScheduler
    kinds = {key: type(part) for key, part in stock.components.items() if isinstance(part, nn.Module)}
    assert {key: type(part) for key, part in loaded.components.items() if isinstance(part, nn.Module)} == kinds


def test_a_schedule_is_shifted_to_another_resolution(train, tmp_path):
    """In training, and in what is saved: γ + 2 log ratio, of a learned schedule and of a fixed one."""
    tiny = {"max_train_steps": 1, "schedule_learning_rate": 0.0, "max_validation_images": 2}
    for schedule in ("LearnedLinearSchedule", "CosineSchedule"):
        out = tmp_path / schedule
        train(output_dir=out, noise_schedule=schedule, gamma_min=-8.0, gamma_max=4.0, resolution_ratio=2.0, **tiny)
        ends = [end.item() for end in VDM.from_pretrained(out).noise_schedule.end_points()]
        assert ends == pytest.approx([-8 + np.log(4), 4 + np.log(4)], abs=1e-5)
        gammas = VDMPipeline.from_pretrained(out).scheduler.config.gammas
        assert [gammas[0], gammas[-1]] == pytest.approx(ends, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda: StableDiffusionPipeline(
                *(vae(), clip(), tokenizer(), conditional_unet(), DDPMScheduler(), None, None), requires_safety_checker=False
            ),
            {"vae_model_name_or_path": "stock"},
            "is conditioned on text: name captions by `--caption_column`",
        ),
        (
            lambda: stable_diffusion_xl(DDPMScheduler()),
            {"vae_model_name_or_path": "stock"},
            "is told `added_cond_kwargs`, `encoder_hidden_states`, but has no text encoders that make that of captions",
        ),
        (lambda: LDMPipeline(vqvae(), unet(), DDPMScheduler()), {}, "is a model of latents: name its `--vae_model_name"),
        (
            lambda: DDPMPipeline(unet(), DDPMScheduler()),
            {"prediction_type": "v_prediction"},
            "estimates 'epsilon', which its weights can't change: leave out `--prediction_type`",
        ),
        (
            lambda: DDPMPipeline(UNet2DModel(16, 3, 3, **BLOCKS | PLAIN), DDPMScheduler()),
            {"lora_rank": 2},
            "`--lora_rank` adapts attention",
        ),
    ],
    ids=["text", "no encoders", "latents", "prediction", "no attention"],
)
def test_what_can_not_be_adapted_is_refused(train, pictures, tmp_path, monkeypatch, make, options, message):
    monkeypatch.chdir(tmp_path)
    make().save_pretrained("stock")
    with pytest.raises(SystemExit, match=message):
        train("--dry_run", train_data_dir=pictures, pretrained_model_name_or_path="stock", **options)


def test_adapters_need_a_pretrained_model(train):
    with pytest.raises(SystemExit, match="`--lora_rank` adapts a pretrained model"):
        train("--dry_run", lora_rank=2)
