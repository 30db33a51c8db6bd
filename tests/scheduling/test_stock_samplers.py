"""Every sampler of diffusers on a VDM: samples of Gaussian data by its optimal denoiser have its mean and covariance."""

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import is_torchsde_available
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser
from torch import Tensor

from vdm_diffusers import LearnedMonotoneSchedule, NoiseSchedule, VDMPipeline, VDMScheduler
from vdm_diffusers.timestep_maps import AffineTimesteps


GAMMA_MIN, GAMMA_MAX = -9.0, 10.0
NOT_FOR_VDM = {"EDMEulerScheduler": "it has no β-chain: it tells the denoiser log σ / 4"}
"""Of `KarrasDiffusionSchedulers`."""
NEEDS_TORCHSDE = "DPMSolverSDEScheduler"
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", NEEDS_TORCHSDE)
NO_SAMPLE_PREDICTION = ("PNDMScheduler", "KDPM2DiscreteScheduler")
SAMPLERS = [sampler.name for sampler in KarrasDiffusionSchedulers if sampler.name not in NOT_FOR_VDM]
CASES = {name: (name, {}) for name in SAMPLERS} | {
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM-Solver++, Lu": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
}


class GaussianUNet(GaussianDenoiser):
    """The optimal denoiser with the attributes that VDMPipeline reads; it refuses what no VDM of this range was trained on."""

    config = diffusers.configuration_utils.FrozenDict(sample_size=1, in_channels=3)
    device, dtype = torch.device("cpu"), torch.float64

    def forward(self, sample: Tensor, timestep: Tensor, **kwargs) -> tuple[Tensor]:
        assert (timestep >= 0).all() and (timestep <= 1000).all()
        return super().forward(sample, timestep)


def learned_schedule() -> NoiseSchedule:
    """One that has moved its end points into its original range and bent in between."""
    schedule = LearnedMonotoneSchedule(GAMMA_MIN, GAMMA_MAX, num_features=32)
    with torch.no_grad():
        schedule.gamma_0 += 0.5
        schedule.gamma_1 -= 0.5
        for parameter in schedule.parameters():
            parameter += 0.3 * torch.randn_like(parameter) if parameter.ndim else 0.0
    return schedule.eval()


def pipeline(prediction_type: str = "epsilon") -> VDMPipeline:
    unet = GaussianUNet(AffineTimesteps(GAMMA_MIN, GAMMA_MAX), prediction_type)
    scheduler = VDMScheduler.from_noise_schedule(learned_schedule(), prediction_type=prediction_type)
    pipe = VDMPipeline(unet, scheduler, num_levels=256)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def swap(pipe: VDMPipeline, case: str) -> None:
    name, options = CASES[case]
    if name == NEEDS_TORCHSDE and not is_torchsde_available():
        pytest.skip("it needs torchsde")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)


def is_stochastic(case: str) -> bool:
    return CASES[case][0] in STOCHASTIC or "SDE" in case


def moments(pipe: VDMPipeline, latents: Tensor, num_inference_steps: int, **kwargs) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the samples that `latents` lead to; a list of generators would be slow."""
    kwargs |= {"generator": torch.Generator().manual_seed(1), "output_type": "latent"}
    x = pipe(latents=latents, num_inference_steps=num_inference_steps, **kwargs).images.flatten(1).double()
    return x.mean(0), x.T.cov(correction=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("case", [case for case in CASES if not is_stochastic(case)])
def test_deterministic_samplers_reach_mean_and_covariance(case, prediction_type):
    """Their maps are affine here, so that six points with the moments of a standard normal stand for all latents.

    What is left is the discretisation error of 100 steps, up to 0.02 for the first-order ones (variances are 0.1 to 0.3).
    """
    pipe = pipeline(prediction_type)
    swap(pipe, case)
    if prediction_type == "sample" and case in NO_SAMPLE_PREDICTION:
        pytest.skip("it knows no such prediction type")
    latents = 3**0.5 * torch.cat([torch.eye(3), -torch.eye(3)]).reshape(6, 3, 1, 1)
    mean, covariance = moments(pipe, latents, 100)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=0.02)


@pytest.mark.parametrize("case", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_samplers_that_take_timesteps_visit_those_of_the_learned_schedule(case):
    """Times that fall on one index of the chain become one step."""
    pipe = pipeline()
    pipe.scheduler = VDMScheduler.from_config(pipe.scheduler.config, spacing="time")
    pipe.scheduler.set_timesteps(100)
    timesteps = pipe.scheduler.timesteps
    swap(pipe, case)
    latents = 3**0.5 * torch.cat([torch.eye(3), -torch.eye(3)]).reshape(6, 3, 1, 1)
    mean, covariance = moments(pipe, latents, 7, timesteps=timesteps)
    expected = dict.fromkeys(timesteps.round().tolist())
    assert list(dict.fromkeys(pipe.scheduler.timesteps.tolist())) == list(expected)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=0.02)


def test_timesteps_for_a_sampler_that_takes_none_are_refused():
    pipe = pipeline()
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="PNDMScheduler takes no `timesteps`"):
        pipe(timesteps=[900, 500, 100])


@pytest.mark.parametrize("case", [case for case in CASES if is_stochastic(case)])
def test_stochastic_samplers_reach_mean_and_covariance(case):
    """Within four standard errors of 20,000 samples and 0.01 of discretisation error in 400 steps."""
    pipe, num_samples = pipeline(), 20_000
    swap(pipe, case)
    mean, covariance = moments(pipe, torch.randn(num_samples, 3, 1, 1), 400)
    variances = COVARIANCE.diagonal()
    assert ((mean - MEAN).abs() < 4 * (variances / num_samples).sqrt() + 2e-3).all()
    spread = ((variances[:, None] * variances + COVARIANCE**2) / num_samples).sqrt()
    assert ((covariance - COVARIANCE).abs() < 4 * spread + 0.01).all()


def test_latents_are_scaled_by_the_first_timestep_that_is_visited():
    """Euler scales its latents by the first noise level and divides by it again for the denoiser."""
    pipe = pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    seen = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0]))
    pipe(latents=torch.ones(1, 3, 1, 1), num_inference_steps=4, output_type="latent")
    torch.testing.assert_close(seen[0].float(), torch.ones(1, 3, 1, 1))
