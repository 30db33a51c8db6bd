"""Ancestral steps with the variances that are optimal for a denoiser: their moments, and how the profile travels."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from tiny_pipelines import unet

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.error_profiles import ErrorProfile, cosine_axes


GAMMAS = torch.tensor([-8.0, 0.0, 6.0])


def profile(basis: str, num_dims: int = 4) -> ErrorProfile:
    size = 1 if basis == "isotropic" else num_dims
    moments = torch.linspace(0.1, 0.9, 3 * size).reshape(3, size)
    axes = cosine_axes((2, num_dims // 2)) if basis == "dct" else None
    return ErrorProfile(GAMMAS, moments, torch.zeros(3, size), basis, axes)


def scheduler(basis: str | None) -> VDMScheduler:
    made = VDMScheduler(gamma_min=-8.0, gamma_max=6.0)
    if basis is not None:
        made.set_error_profile(profile(basis))
    return made


@pytest.mark.parametrize("basis", ["isotropic", "entries", "dct"])
def test_the_variance_of_a_step_is_q_s_times_one_plus_d_m(basis):
    """In the coordinates of the basis, from many draws of one step whose mean does not change."""
    steps = scheduler(basis)
    steps.set_timesteps(timesteps=[800, 300])
    z = torch.ones(1, 1, 2, 2).expand(40_000, -1, -1, -1).double()
    drawn = steps.step(0.3 * z, steps.timesteps[0], z, generator=torch.Generator().manual_seed(0)).prev_sample
    gamma_t, gamma_s = (-8.0 + 14.0 * torch.tensor([0.8, 0.3])).double()
    of_q = torch.sigmoid(gamma_s) * -torch.expm1(gamma_s - gamma_t)
    above = GAMMAS[2] - gamma_t
    weight = 1 - above / 6.0
    m = torch.exp((1 - weight) * profile(basis).moments[1].log() + weight * profile(basis).moments[2].log())
    expected = of_q * (1 + torch.expm1(gamma_t - gamma_s) * m)
    axes = cosine_axes((2, 2)) if basis == "dct" else torch.eye(4).double()
    covariance = (drawn.flatten(1) @ axes.T).T.cov()
    torch.testing.assert_close(covariance.diagonal(), expected.expand(4), rtol=0.03, atol=0)
    off = covariance - covariance.diagonal().diag()
    assert off.abs().max() < 0.03 * expected.max()


def draw(steps: VDMScheduler) -> torch.Tensor:
    z = torch.ones(2, 1, 2, 2)
    steps.set_timesteps(3)
    return steps.step(0.3 * z, steps.timesteps[0], z, generator=torch.Generator().manual_seed(0)).prev_sample


def test_steps_with_an_eta_have_variances_of_their_own():
    def step(steps: VDMScheduler) -> torch.Tensor:
        steps.set_timesteps(3)
        z = torch.ones(1, 1, 2, 2)
        return steps.step(z, steps.timesteps[0], z, eta=0.5, generator=torch.Generator().manual_seed(0)).prev_sample

    assert torch.equal(step(scheduler("entries")), step(scheduler(None)))


@pytest.mark.parametrize("basis", ["isotropic", "entries", "dct"])
def test_the_profile_is_saved_and_loaded_with_the_scheduler_and_its_pipeline(basis, tmp_path):
    steps = scheduler(basis)
    steps.save_pretrained(tmp_path / "scheduler")
    assert (tmp_path / "scheduler" / "error_profile").exists() == (basis != "isotropic")
    expected = draw(steps)
    assert not torch.equal(expected, draw(scheduler(None)))
    assert torch.equal(draw(VDMScheduler.from_pretrained(tmp_path, subfolder="scheduler")), expected)
    assert torch.equal(draw(copy.deepcopy(steps)), expected)
    size = unet().config.sample_size
    steps.set_error_profile(profile(basis, num_dims=3 * size**2) if basis != "dct" else profile("entries", 3 * size**2))
    VDMPipeline(unet(), steps).save_pretrained(tmp_path / "pipeline")
    loaded = VDMPipeline.from_pretrained(tmp_path / "pipeline")
    images = [
        VDMPipeline(loaded.unet, each)(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        for each in (steps, loaded.scheduler)
    ]
    assert torch.equal(images[0].images, images[1].images)


def test_a_configuration_alone_carries_what_is_isotropic_and_refuses_the_rest():
    steps = scheduler("isotropic")
    there_and_back = VDMScheduler.from_config(DPMSolverMultistepScheduler.from_config(steps.config).config)
    assert torch.equal(draw(there_and_back), draw(steps))
    without = VDMScheduler.from_config(scheduler("dct").config)
    with pytest.raises(ValueError, match="'dct', is no part of its configuration: give it by `set_error_profile`"):
        without.set_timesteps(3)
    without.set_error_profile(None)
    assert torch.equal(draw(without), draw(scheduler(None)))


def test_the_last_step_of_a_chain_has_no_noise_to_widen():
    steps = VDMScheduler.from_config(DDPMScheduler().config)
    steps.set_error_profile(profile("isotropic"))
    steps.set_timesteps(1)
    z = torch.ones(1, 1, 2, 2)
    assert steps.step(z, steps.timesteps[0], z).prev_sample.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"basis": "wavelets"}, "`basis` is 'wavelets'"),
        ({"basis": "isotropic"}, "gammas"),
        ({"basis": "isotropic", "gammas": [1, 0], "moments": [1, 1]}, "increasing"),
        ({"basis": "isotropic", "gammas": [0, 1], "moments": [1, -1]}, "positive"),
        (["basis"], "error_profile"),
    ],
)
def test_what_is_no_profile_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        VDMScheduler(error_profile=config)


def test_a_profile_of_another_size_is_refused():
    steps = scheduler("entries")
    steps.set_timesteps(3)
    z = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match="error profile is one of 4 dimensions, but the samples have 16"):
        steps.step(z, steps.timesteps[0], z)
