"""The block of Modular Diffusers: in diffusers' own pipelines, in one of a user's own blocks, and as a folder."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModularPipeline,
    ModularPipelineBlocks,
    SchedulerMixin,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.flux.before_denoise import FluxSetTimestepsStep
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import StableDiffusionXLSetTimestepsStep
from diffusers.utils import dynamic_modules_utils
from PIL import Image
from prompted_pipelines import SIZE, sdxl
from tiny_pipelines import unet

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.few_steps import KeptTimestepsStep, keep_timesteps, with_timesteps


KEPT, OTHER = [901, 444, 123], [801, 333]
CALL = {"prompt": "a red cat", "output_type": "latent"} | SIZE


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def stock() -> DiffusionPipeline:
    """Not modular."""
    pipe = sdxl(EulerDiscreteScheduler(beta_schedule="scaled_linear"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular(stock: DiffusionPipeline, scheduler: SchedulerMixin) -> ModularPipeline:
    """The same one with the block, without guidance: with it, diffusers calls the denoiser once there, and twice here."""
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert("kept_timesteps", KeptTimestepsStep(), 0)
    pipe = blocks.init_pipeline()
    components = {name: component for name, component in stock.components.items() if component is not None}
    guider = ClassifierFreeGuidance(guidance_scale=1.0)
    pipe.update_components(**components | {"scheduler": scheduler, "guider": guider})
    return pipe


@pytest.mark.parametrize("cls", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DDIMScheduler])
def test_latents_are_those_of_a_pipeline_that_is_not_modular(cls, stock):
    """For a class that takes timesteps, one that draws noise, and one with strides, which takes none."""
    scheduler = cls.from_config(stock.scheduler.config)
    stock.scheduler = with_timesteps(scheduler)
    keep_timesteps(scheduler, KEPT)
    pipe = modular(stock, scheduler)
    for given, expected in [
        ({"num_inference_steps": 3}, {"timesteps": KEPT}),
        ({"num_inference_steps": 4}, {"num_inference_steps": 4}),
        ({"timesteps": OTHER}, {"timesteps": OTHER}),
    ]:
        state = pipe(generator=seed(), **given, **CALL)
        images = stock(generator=seed(), guidance_scale=1.0, **expected, **CALL).images
        assert torch.equal(state.latents, images)
        assert (state.timesteps.tolist() == KEPT) == ("timesteps" not in given and given["num_inference_steps"] == 3)


def test_an_image_is_begun_at_among_the_timesteps(stock):
    keep_timesteps(stock.scheduler, KEPT)
    pipe = modular(stock, stock.scheduler)
    state = pipe(image=Image.new("RGB", (16, 16)), strength=0.7, num_inference_steps=3, generator=seed(), **CALL)
    assert state.timesteps.tolist() == KEPT[1:]


class Denoise(ModularPipelineBlocks):
    """A user's own loop over timesteps, without conditions."""

    expected_components = [ComponentSpec("unet"), ComponentSpec("scheduler", SchedulerMixin)]
    inputs = [InputParam("timesteps", required=True), InputParam("latents", required=True), InputParam("generator")]
    intermediate_outputs = [OutputParam("latents")]

    def __call__(self, components, state):
        block = self.get_block_state(state)
        for t in block.timesteps:
            output = components.unet(block.latents, t, return_dict=False)[0]
            block.latents = components.scheduler.step(output, t, block.latents, generator=block.generator).prev_sample
        self.set_block_state(state, block)
        return components, state


@pytest.mark.parametrize("cls", [VDMScheduler, DDIMScheduler])
def test_a_vdm_in_a_pipeline_of_ones_own_blocks(cls):
    vdm = VDMPipeline(unet(), VDMScheduler(gamma_min=-8.0))
    vdm.set_progress_bar_config(disable=True)
    vdm.scheduler = cls.from_config(vdm.scheduler.config)
    keep_timesteps(vdm.scheduler, KEPT)
    steps = {"kept_timesteps": KeptTimestepsStep, "set_timesteps": StableDiffusionXLSetTimestepsStep, "denoise": Denoise}
    pipe = SequentialPipelineBlocks.from_blocks_dict(steps).init_pipeline()
    pipe.update_components(unet=vdm.unet, scheduler=vdm.scheduler)
    z_1 = torch.randn(2, 3, 8, 8, generator=seed())
    sampled = pipe(num_inference_steps=3, latents=z_1, generator=seed(), output="latents")
    assert torch.equal(sampled, vdm(2, latents=z_1, timesteps=KEPT, generator=seed(), output_type="latent").images)


def test_flow_matching_is_left_alone():
    """The pipelines that give their scheduler sigmas, such as Flux."""
    timesteps = []
    for first in ({}, {"kept_timesteps": KeptTimestepsStep}):
        pipe = SequentialPipelineBlocks.from_blocks_dict(first | {"set_timesteps": FluxSetTimestepsStep}).init_pipeline()
        pipe.transformer = SimpleNamespace(config=SimpleNamespace(guidance_embeds=False))
        pipe.update_components(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
        timesteps.append(pipe(num_inference_steps=3, batch_size=1, height=16, width=16, output="timesteps"))
    assert torch.equal(*timesteps) and len(timesteps[0]) == 3


class Mine(KeptTimestepsStep):
    """Of a user, whose code the folder needs in the place of ours."""


def test_a_folder_is_loaded_where_its_code_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    KeptTimestepsStep().save_pretrained(tmp_path / "block")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        ModularPipelineBlocks.from_pretrained(str(tmp_path / "block"))
    loaded = ModularPipelineBlocks.from_pretrained(str(tmp_path / "block"), trust_remote_code=True)
    assert type(loaded) is KeptTimestepsStep
    loaded.save_pretrained(tmp_path / "again")
    files = [{path.name: path.read_text() for path in (tmp_path / name).iterdir()} for name in ("block", "again")]
    assert files[0] == files[1] and files[0].keys() == {"block.py", "modular_config.json"}
    Mine().save_pretrained(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["modular_config.json"]
