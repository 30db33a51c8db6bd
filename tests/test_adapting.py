"""Models that people have: their bound against their own scheduler, a learned schedule, and their own class when saved."""

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMTextToImagePipeline,
)
from prompted_pipelines import SIZE, pixart_alpha, sd, sdxl
from tiny_pipelines import build, conditional_unet, prompt, transformer, vae
from tiny_text import t5, tokenizer
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils._pytree import tree_map

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMPipeline, VDMScheduler
from vdm_diffusers.conditioning import Condition
from vdm_diffusers.denoisers import denoiser_of
from vdm_diffusers.training.lora import add_adapters, merge_adapters


CHAIN = {"num_train_timesteps": 6, "beta_start": 0.01, "beta_end": 0.5}
"""So short that all of its indices can be summed over."""
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane"}


def ldm_text(scheduler) -> LDMTextToImagePipeline:
    return LDMTextToImagePipeline(vae(), t5(), tokenizer(), conditional_unet(), scheduler)


def dit(scheduler) -> DiTPipeline:
    return DiTPipeline(transformer(DiTTransformer2DModel, num_embeds_ada_norm=4), vae(), scheduler, NAMES)


def text(n: int) -> Condition:
    return {"encoder_hidden_states": torch.randn(n, 3, 8)}


def text_and_sizes(n: int) -> Condition:
    return text(n) | {"added_cond_kwargs": {"text_embeds": torch.randn(n, 4), "time_ids": torch.rand(n, 6)}}


MODELS: dict[str, tuple[Callable[..., DiffusionPipeline], Callable[[int], Condition], dict]] = {
    "DDPM": (lambda scheduler: build("DDPM", scheduler), lambda n: {}, {"batch_size": 2}),
    "LDM": (lambda scheduler: build("LDM", scheduler), lambda n: {}, {"batch_size": 2}),
    "LDM with text": (ldm_text, text, {"prompt": ["a red cat", "a dog"]} | SIZE),
    "DiT": (dit, lambda n: {"class_labels": torch.arange(n)}, {"class_labels": [0, 1], "guidance_scale": 1.0}),
    "SD": (sd, text, {"prompt": ["a red cat", "a dog"]} | SIZE),
    "SDXL": (sdxl, text_and_sizes, {"prompt": ["a red cat", "a dog"]} | SIZE),
    "PixArt": (
        pixart_alpha,
        lambda n: text(n) | {"encoder_attention_mask": torch.tensor([[1, 1, 0]]).expand(n, -1)},
        {"prompt": ["a red cat", "a dog"], "use_resolution_binning": False, "clean_caption": False} | SIZE,
    ),
}
"""A pipeline by its scheduler, a condition for so many samples, and a call."""


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest):
    return request.param


def images(pipeline: DiffusionPipeline, call: dict) -> Tensor:
    torch.manual_seed(1)  # some pipelines don't pass their generator on
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    return torch.as_tensor(pipeline(num_inference_steps=3, generator=generator, output_type="np", **call).images)


def in_evaluation(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline in the mode that a loaded one has."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline


def latents(pipeline: DiffusionPipeline, n: int) -> Tensor:
    return torch.randn(n, denoiser_of(pipeline).config.in_channels, 8, 8)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_bound_is_that_of_the_pipeline_s_own_scheduler(model, prediction_type):
    """Summed over a whole chain, by `add_noise`, the denoiser as the pipeline calls it, and its chain."""
    make, condition, _ = model
    pipe = make(DDPMScheduler(prediction_type=prediction_type, **CHAIN))
    denoiser, scheduler, last = denoiser_of(pipe).eval(), pipe.scheduler, CHAIN["num_train_timesteps"] - 1
    x, told = latents(pipe, 2), condition(2)
    noise = torch.randn(2, *x.shape)

    snr = (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).double()
    diffusion = 0
    for i in range(1, last + 1):
        index = torch.full((2,), i)
        z_t = scheduler.add_noise(x, noise[1], index)
        output = denoiser(z_t, timestep=index, **told).sample[:, : x.shape[1]]
        if prediction_type == "v_prediction":
            error = (scheduler.get_velocity(x, noise[1], index) - output) * scheduler.alphas_cumprod[i].sqrt()
        else:
            error = noise[1] - output
        diffusion = diffusion + 0.5 * (snr[i - 1] / snr[i] - 1) * error.square().flatten(1).sum(1)
    alpha, sigma = scheduler.alphas_cumprod[last].sqrt(), (1 - scheduler.alphas_cumprod[last]).sqrt()
    prior = kl_divergence(Normal(alpha * x, sigma), Normal(0.0, 1.0)).flatten(1).sum(1)
    reconstruction = Normal(0.0, snr[0] ** -0.5).entropy() * x[0].numel()

    vdm = VDM.from_pipeline(pipe, num_timesteps=last).eval()
    vdm.num_levels = None  # the data are real-valued, those of DDPM too
    times = torch.arange(1, last + 1) / last
    losses = [vdm(x, told, times=time.expand(2), noise=noise) for time in times]
    found = sum(loss.diffusion for loss in losses) / last, losses[0].prior, losses[0].reconstruction
    expected = diffusion.double(), prior.double(), reconstruction.expand(2)
    torch.testing.assert_close(tuple(term.double() for term in found), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "LoRA"])
def test_a_trained_model_is_saved_as_one_of_its_class(model, tmp_path, adapters):
    make, condition, call = model
    pipe = in_evaluation(make(DDPMScheduler(clip_sample=False, beta_schedule="scaled_linear")))
    vdm = VDM.from_pipeline(pipe, LearnedMonotoneSchedule(-6.0, 4.0, num_features=8)).eval()
    before = {name: weight.clone() for name, weight in vdm.unet.state_dict().items()}
    if adapters:
        add_adapters(vdm.unet, rank=2)
    optimizer = torch.optim.Adam(vdm.parameters(), lr=1e-2)
    x = latents(pipe, 2) if vdm.vae is not None else torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    told = condition(2)
    for _ in range(5):
        optimizer.zero_grad()
        vdm(x, told).objective.mean().backward()
        optimizer.step()
    merge_adapters(vdm.unet)
    after = vdm.unet.state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert after.keys() == before.keys() and changed
    assert all(".to_" in name and name.endswith("weight") for name in changed) == adapters
    vdm.save_pretrained(tmp_path)
    trained = vdm.to_original_pipeline()
    loaded = DiffusionPipeline.from_pretrained(tmp_path)

    assert type(loaded) is type(trained) is type(pipe) and type(loaded.scheduler) is VDMScheduler
    kinds = {name: type(component) for name, component in pipe.components.items() if name != "scheduler"}
    assert {name: type(component) for name, component in loaded.components.items() if name != "scheduler"} == kinds
    drawn = images(trained, call)
    assert drawn.std() > 0 and torch.equal(images(loaded, call), drawn)
    ours = [VDMPipeline.from_pipe(each) for each in (trained, loaded)]
    assert torch.equal(*(images(each, {"condition": told, "batch_size": 2}) for each in ours))

    again = VDM.from_pretrained(tmp_path).eval()
    fixed = {"times": torch.rand(2), "noise": torch.randn(2, 2, *x.shape[1:])}
    assert torch.equal(again(x, told, **fixed).nats, vdm(x, told, **fixed).nats)


def test_plain_diffusers_samples_an_adapted_model_by_its_own_chain(tmp_path):
    pipe = in_evaluation(sd(DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)))
    vdm = VDM.from_pipeline(pipe, LearnedMonotoneSchedule(-6.0, 4.0, num_features=8))
    adapted = vdm.to_original_pipeline()
    adapted.scheduler = DDIMScheduler.from_config(adapted.scheduler.config)
    assert torch.equal(adapted.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    adapted.save_pretrained(tmp_path)
    assert "vdm_diffusers" not in (tmp_path / "model_index.json").read_text()
    call = {"prompt": "a red cat"} | SIZE
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(images(DiffusionPipeline.from_pretrained(tmp_path), call), images(pipe, call))
    again = VDM.from_pipeline(DiffusionPipeline.from_pretrained(tmp_path))
    torch.testing.assert_close(again.noise_schedule.end_points(), tuple(torch.tensor([-6.0, 4.0]).double()))


def test_classes_keep_their_names(tmp_path):
    vdm = VDM.from_pipeline(dit(DDPMScheduler()))
    assert vdm.class_names == ["Tinca tinca, tench", "goldfish", "", "crane"]  # one name of two classes is the last one's
    vdm.save_pretrained(tmp_path)
    labels = {"tench": 0, "Tinca tinca": 0, "goldfish": 1, "crane": 3}
    assert labels.items() <= DiffusionPipeline.from_pretrained(tmp_path).labels.items()
    assert VDMPipeline.from_pipe(dit(DDPMScheduler())).get_label_ids("tench") == [0]


def test_samples_of_an_adapted_model_start_as_those_of_its_own_chain():
    """Where the schedule is the chain, steps visit the indices that are even, whatever the spacing of its gammas."""
    pipe = build("SD text-to-image", DDPMScheduler(beta_schedule="scaled_linear", num_train_timesteps=1001))
    scheduler = VDM.from_pipeline(pipe).to_scheduler()
    scheduler.set_timesteps(10)
    torch.testing.assert_close(scheduler.timesteps, torch.arange(10, 0, -1) * 100.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build("SD inpainting", DDPMScheduler()), "takes 9 channels and makes 4, as one that is told of another image"),
        (
            lambda: build("SD text-to-image", DDPMScheduler(rescale_betas_zero_snr=True)),
            "ends in pure noise .*, where gamma is infinite and a denoiser that estimates `epsilon` says nothing of the data",
        ),
    ],
)
def test_what_has_no_bound_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        VDM.from_pipeline(make())


def test_a_chain_that_ends_in_pure_noise_takes_a_schedule_that_does_not():
    pipe = build("SD text-to-image", DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    vdm = VDM.from_pipeline(pipe, LinearSchedule(-6.0, 6.0))
    told = {"encoder_hidden_states": prompt()["prompt_embeds"].expand(2, -1, -1)}
    assert tree_map(torch.isfinite, vdm(torch.randn(2, 4, 8, 8), told).nats).all()


@torch.no_grad()
def test_a_learned_schedule_starts_at_the_chain():
    """Prior and reconstruction are those of the chain, and samplers visit the same timesteps."""
    pipe = build("SD text-to-image", DDPMScheduler(beta_schedule="scaled_linear"))
    chain, learned = VDM.from_pipeline(pipe), VDM.from_pipeline(pipe, LearnedMonotoneSchedule)
    x, told, fixed = torch.randn(2, 4, 8, 8), text(2), {"times": torch.rand(2), "noise": torch.randn(2, 2, 4, 8, 8)}
    before, after = chain(x, told, **fixed), learned(x, told, **fixed)
    torch.testing.assert_close(after.prior.double(), before.prior.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.reconstruction.double(), before.reconstruction.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(after.diffusion, before.diffusion, rtol=0.1, atol=0)
    visited = []
    for vdm in (chain, learned):
        scheduler = vdm.to_scheduler()
        scheduler.set_timesteps(20)
        visited.append(scheduler.timesteps)
    torch.testing.assert_close(visited[1], visited[0], rtol=1e-5, atol=1e-3)
