"""Schedulers of diffusers that visit any timesteps, and those that are kept for a number of steps."""

import copy
import inspect
import json
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from tiny_pipelines import CALLS, build, unet

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.scheduling.any_timesteps import KEPT, keep_timesteps, with_timesteps


TAKE_NONE = (
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
TAKE_SOME = (
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
FIVE = [990, 700, 450, 100, 3]


def stock(name: str, **options) -> diffusers.SchedulerMixin:
    spacing = {} if name == "DPMSolverSinglestepScheduler" else {"timestep_spacing": "leading"}
    return getattr(diffusers, name)(**spacing, **options)


def sampled(scheduler, **kwargs) -> torch.Tensor:
    torch.manual_seed(0)
    pipe = VDMPipeline(unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, generator=torch.Generator().manual_seed(1), output_type="latent", **kwargs).images


def visited(scheduler) -> list[float]:
    return list(dict.fromkeys(scheduler.timesteps.tolist()))


@pytest.mark.parametrize("name", TAKE_NONE)
def test_the_timesteps_that_a_scheduler_visits_anyway_give_its_images(name):
    scheduler = stock(name)
    scheduler.set_timesteps(6)
    own = scheduler.timesteps.tolist()
    assert torch.equal(sampled(stock(name), timesteps=own), sampled(stock(name), num_inference_steps=6))


def test_ddim_visits_any_subset_as_it_visits_a_chain_that_has_no_others():
    """A chain of five indices with the same ᾱ, told by the timesteps that they have in the long one."""
    scheduler = with_timesteps(DDIMScheduler(clip_sample=False))
    scheduler.set_timesteps(timesteps=FIVE)
    alphas_cumprod = scheduler.alphas_cumprod[FIVE[::-1]].double()
    betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    short = DDIMScheduler(num_train_timesteps=5, trained_betas=betas.tolist(), clip_sample=False, timestep_spacing="leading")
    short.set_timesteps(5)
    z = other = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for t, index in zip(scheduler.timesteps, short.timesteps):
        z = scheduler.step(torch.sin(z * t / 500), t, z).prev_sample
        other = short.step(torch.sin(other * t / 500), index, other).prev_sample
    torch.testing.assert_close(z, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in TAKE_NONE if name != "DDIMScheduler"])
def test_noise_levels_are_those_of_the_chain(name):
    scheduler = with_timesteps(stock(name))
    scheduler.set_timesteps(timesteps=FIVE)
    alphas_cumprod = scheduler.alphas_cumprod[FIVE].double()
    torch.testing.assert_close(scheduler.sigmas[:-1].double() ** 2, 1 / alphas_cumprod - 1, rtol=1e-5, atol=0)
    assert visited(scheduler) == FIVE


@pytest.mark.parametrize("name", TAKE_NONE + TAKE_SOME + ("VDMScheduler",))
def test_what_is_kept_is_taken_for_its_number_of_steps_and_no_other(name):
    own = VDMScheduler.from_config(stock("DDPMScheduler").config) if name == "VDMScheduler" else stock(name)
    scheduler = with_timesteps(copy.deepcopy(own))
    keep_timesteps(scheduler, FIVE)
    assert type(scheduler).__name__ == name and isinstance(scheduler, type(own))
    expected = inspect.signature(type(own).step)
    assert inspect.signature(type(scheduler).step) == expected, "pipelines look for `eta` and `generator`"
    scheduler.set_timesteps(5)
    assert visited(scheduler) == FIVE
    scheduler.set_timesteps(timesteps=[900, 20])
    assert visited(scheduler) == [900, 20], "explicit ones win"
    for each in (scheduler, own):
        each.set_timesteps(6)
    assert torch.equal(scheduler.timesteps, own.timesteps)


@pytest.mark.parametrize("name", ["VDMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_pipelines_take_what_is_kept(name):
    """A VDMPipeline by itself, another one with a scheduler that does."""
    make = VDMScheduler.from_config if name == "VDMScheduler" else getattr(diffusers, name).from_config
    scheduler = make(stock("DDPMScheduler").config)
    expected = sampled(copy.deepcopy(scheduler), timesteps=FIVE)
    keep_timesteps(scheduler, FIVE)
    assert torch.equal(sampled(scheduler, num_inference_steps=5), expected)
    seen, pipe = [], build("SD text-to-image", with_timesteps(scheduler))
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(int(args[1])))
    pipe(num_inference_steps=5, **CALLS["SD text-to-image"])
    assert seen == FIVE


def test_a_pipeline_s_own_argument_reaches_a_scheduler_that_takes_none():
    """`retrieve_timesteps` of diffusers looks for `timesteps` in the signature."""
    pipe = build("SD text-to-image", with_timesteps(stock("DDIMScheduler")))
    seen = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(int(args[1])))
    pipe(timesteps=FIVE, **CALLS["SD text-to-image"])
    assert seen == FIVE


WITHOUT_US = """
import json, sys
from diffusers import DPMSolverMultistepScheduler
scheduler = DPMSolverMultistepScheduler.from_pretrained(sys.argv[1])
scheduler.set_timesteps(timesteps=scheduler.config["few_step_timesteps"]["DPMSolverMultistepScheduler"]["5"])
assert "vdm_diffusers" not in sys.modules
print(json.dumps(scheduler.timesteps.tolist()))
"""


def test_what_is_kept_is_of_use_without_this_package(tmp_path):
    scheduler = with_timesteps(DPMSolverMultistepScheduler())
    keep_timesteps(scheduler, FIVE)
    scheduler.save_pretrained(tmp_path)
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == FIVE


def test_what_is_kept_goes_with_the_configuration_and_each_class_takes_its_own():
    scheduler = VDMScheduler(few_step_timesteps={"VDMScheduler": {"2": [900.5, 30]}, "DDIMScheduler": {"2": [800, 100]}})
    ddim = with_timesteps(DDIMScheduler.from_config(scheduler.config))
    ddim.set_timesteps(2)
    assert visited(ddim) == [800, 100]
    again = VDMScheduler.from_config(ddim.config)
    again.set_timesteps(2)
    assert visited(again) == [900.5, 30]
    copied = copy.deepcopy(ddim)
    copied.set_timesteps(2)
    assert visited(copied) == [800, 100]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([1, 2], "must be {class of the scheduler"),
        ({"VDMScheduler": [2, 1]}, "must be {class of the scheduler"),
        ({"VDMScheduler": {"3": [2, 1]}}, "must be 3 timesteps that decrease, but are"),
        ({"VDMScheduler": {"2": [1, 2]}}, "must be 2 timesteps that decrease"),
        ({"VDMScheduler": {"2": "ab"}}, "must be a list of numbers"),
        ({"VDMScheduler": {"0": []}}, "must be 0 timesteps"),
        ({"VDMScheduler": {"1": [float("nan")]}}, "must be 1 timesteps"),
    ],
)
def test_what_can_t_be_kept_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        VDMScheduler(few_step_timesteps=kept)


@pytest.mark.parametrize(
    ("name", "options", "timesteps", "message"),
    [
        ("PNDMScheduler", {}, FIVE, "PNDMScheduler takes no `timesteps`: its steps are not from one to the next"),
        ("KDPM2DiscreteScheduler", {}, [900], "takes no `timesteps`"),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, FIVE, "with `use_karras_sigmas`: set that to false"),
        ("DDIMScheduler", {}, [1, 2], "must decrease, from 999 at most to 0 at least"),
        ("DDIMScheduler", {}, [1000, 2], "must decrease, from 999"),
        ("DDIMScheduler", {}, [], "must decrease"),
        ("DDIMScheduler", {}, [700.5, 2], "must be whole"),
        ("DDIMScheduler", {}, "ab", "must be a list of numbers"),
    ],
)
def test_timesteps_that_can_t_be_visited_are_refused(name, options, timesteps, message):
    with pytest.raises(ValueError, match=message):
        with_timesteps(stock(name, **options)).set_timesteps(timesteps=timesteps)


def test_a_configuration_that_keeps_nothing_is_left_as_it_was():
    assert VDMScheduler().config[KEPT] is None
