"""The bound pixel by pixel: against closed forms of every element, and against the bound of the same draws."""

import math

import pytest
import torch
from gaussian_model import COVARIANCE, GaussianDenoiser, cubature
from tiny_pipelines import unet, vae
from torch.distributions import Categorical, Normal, kl_divergence

from vdm_diffusers import VDM, CosineSchedule, LearnedMonotoneSchedule, LinearSchedule, VDMUNet2DModel
from vdm_diffusers.error_profiles import ErrorProfile, cosine_axes
from vdm_diffusers.gaussian import PREDICTIONS
from vdm_diffusers.likelihood import bits_per_pixel
from vdm_diffusers.timestep_maps import AffineTimesteps


GAMMAS = torch.tensor([-6.0, 4.0])
IDENTITY = torch.eye(3, dtype=torch.float64)


def tiny_vdm(**options) -> VDM:
    options_of_unet = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "fourier_powers": ()}
    denoiser = VDMUNet2DModel(6, 2, **options_of_unet, num_class_embeds=4)
    torch.nn.init.normal_(denoiser.conv_out.weight)
    schedule = LearnedMonotoneSchedule(-6.0, 4.0, num_features=16)
    return VDM(denoiser, schedule, **({"num_levels": 16} | options))


def profile(basis: str) -> ErrorProfile:
    size = 1 if basis == "isotropic" else 72
    moments = torch.rand(2, size) + 0.1
    return ErrorProfile(GAMMAS, moments, moments / 9, basis, cosine_axes((2, 6, 6)) if basis == "dct" else None)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("num_timesteps", [None, 7])
def test_every_element_of_gaussian_data_has_its_closed_form(num_timesteps, prediction_type):
    """The expectation over data and noise, of which the mean over the points of the cubature is one."""
    timesteps = AffineTimesteps(-6.0, 4.0)
    schedule = CosineSchedule(-6.0, 4.0).double()
    denoiser = GaussianDenoiser(timesteps, prediction_type)
    denoiser.register_parameter("of_float64", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    vdm = VDM(denoiser, schedule, prediction_type, None, num_timesteps)
    x, eps = cubature()
    t = torch.tensor(0.6, dtype=torch.float64)
    bits = bits_per_pixel(vdm, x, times=t.repeat(12), noise=torch.stack([eps, eps]))
    if num_timesteps is None:
        gamma = vdm.noise_schedule(t)
        width = torch.autograd.functional.jacobian(vdm.noise_schedule, t)
    else:
        gamma_s, gamma = vdm.noise_schedule(torch.tensor([4 / 7, 5 / 7], dtype=torch.float64))  # 0.6 is of the fifth step
        width = 7 * torch.expm1(gamma - gamma_s)
    gamma_0, gamma_1 = vdm.noise_schedule.end_points()
    of_residual = IDENTITY - gamma.exp() * torch.linalg.inv(COVARIANCE + gamma.exp() * IDENTITY)  # its covariance
    last = Normal(torch.sigmoid(-gamma_1).sqrt() * x, torch.sigmoid(gamma_1).sqrt())
    expected = 0.5 * width * of_residual.diagonal() + Normal(0.0, (gamma_0 / 2).exp()).entropy()
    expected = expected + kl_divergence(last, Normal(torch.zeros_like(x), 1.0)).mean((0, 2, 3))
    torch.testing.assert_close(bits.mean((0, 2, 3)), expected, rtol=1e-9, atol=0)


def test_reconstruction_of_every_element_is_a_softmax_over_all_levels():
    vdm = tiny_vdm()
    images, noise = torch.randint(0, 16, (3, 2, 6, 6)), torch.randn(2, 3, 2, 6, 6)
    alpha, sigma = (torch.sigmoid(sign * vdm.noise_schedule.end_points()[0]).sqrt() for sign in (-1, 1))
    levels = (2 * torch.arange(16) + 1) / 16 - 1
    z = alpha * levels[images] + sigma * noise[0]
    expected = -Categorical(logits=Normal(alpha * levels, sigma).log_prob(z[..., None])).log_prob(images)
    loss = vdm(images, torch.arange(3), torch.rand(3), noise, reduction="none")
    torch.testing.assert_close(loss.reconstruction, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_timesteps": 5},
        {"prediction_type": "v_prediction"},
        {"num_timesteps": 5, "error_profile": "isotropic"},
        {"num_timesteps": 5, "error_profile": "entries"},
        {"num_levels": None},
    ],
    ids=str,
)
def test_a_map_sums_to_the_bound_of_the_same_draws(options):
    if "error_profile" in options:
        options = options | {"error_profile": profile(options["error_profile"])}
    vdm = tiny_vdm(**options)
    images = torch.randn(5, 2, 6, 6) if "num_levels" in options else torch.randint(0, 16, (5, 2, 6, 6), dtype=torch.uint8)
    labels, nats = torch.arange(5) % 3, 1 if "num_levels" in options else math.log(2)
    draws = {"times": torch.rand(5), "noise": torch.randn(2, 5, 2, 6, 6)}
    bits = bits_per_pixel(vdm, images, labels, **draws)
    assert bits.shape == images.shape and bits.dtype == torch.float32 and vdm.training and not bits.requires_grad
    bound = vdm.eval()(images, labels, **draws)
    torch.testing.assert_close(bits.sum((1, 2, 3)) * nats, bound.nats, rtol=1e-5, atol=0)
    torch.testing.assert_close(bits.mean((1, 2, 3)), bound.per_dim, rtol=1e-5, atol=0)
    drawn = bits_per_pixel(vdm, images, labels, generator=torch.Generator().manual_seed(3))
    expected = vdm(images, labels, generator=torch.Generator().manual_seed(3)).nats
    torch.testing.assert_close(drawn.sum((1, 2, 3)) * nats, expected, rtol=1e-5, atol=0)


def test_a_map_of_latents_is_shaped_as_they_are():
    vdm = VDM(unet(4, 4), LinearSchedule(-6.0, 4.0), vae=vae())
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    maps = bits_per_pixel(vdm, images, generator=torch.Generator().manual_seed(1))
    assert maps.shape[1:] == vdm.scale(images).shape[1:] != images.shape[1:]
    nats = vdm.eval()(images, generator=torch.Generator().manual_seed(1)).nats
    torch.testing.assert_close(maps.flatten(1).sum(1), nats, rtol=1e-5, atol=0)


def test_repeats_spread_the_times_of_every_image():
    vdm = tiny_vdm()
    told = []
    vdm.unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True)
    images, labels = torch.randint(0, 16, (3, 2, 6, 6)), torch.arange(3)
    mean = bits_per_pixel(vdm, images, labels, generator=torch.Generator().manual_seed(2), num_repeats=8)
    gammas = torch.stack(told) / 1000 * 10 - 6
    chain = vdm.noise_schedule.chain(8)
    for of_image in gammas.T:  # one of its times in every eighth
        assert torch.searchsorted(chain, of_image.sort().values).tolist() == list(range(1, 9))
    source = torch.Generator().manual_seed(2)
    u = torch.rand((), generator=source)
    times = ((u + torch.arange(24) / 24) % 1).reshape(8, 3)[:, torch.randperm(3, generator=source)]
    singles = [bits_per_pixel(vdm, images, labels, t, generator=source) for t in times]
    torch.testing.assert_close(mean, torch.stack(singles).mean(0))


def test_neighbouring_images_have_other_times():
    """A chain that is steep at one end would else show as a band over the first images or the last."""
    vdm = tiny_vdm()
    told = []
    vdm.unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True)
    images, labels = torch.randint(0, 16, (1, 2, 6, 6)).expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.int64)
    bits_per_pixel(vdm, images, labels, generator=torch.Generator().manual_seed(0), num_repeats=2)
    assert abs(torch.corrcoef(torch.stack([told[0], torch.arange(64.0)]))[0, 1]) < 0.3


def test_without_reduction_the_objective_and_its_gradients_are_the_same():
    """Those of the schedule's interior too, which descend the variance of the estimate of whole images."""
    gradients = []
    images, labels = torch.randint(0, 16, (3, 2, 6, 6)), torch.arange(3)
    vdm = tiny_vdm(weighting="sigmoid").eval()
    for reduction in ("sum", "none"):
        vdm.zero_grad()
        loss = vdm(images, labels, generator=torch.Generator().manual_seed(0), reduction=reduction)
        loss.objective.sum().backward()
        gradients.append([parameter.grad for parameter in vdm.parameters() if parameter.grad is not None])
    assert vdm.noise_schedule.logits.grad.abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"num_repeats": 0}, "`num_repeats` is 0"),
        ({}, {"num_repeats": 2, "times": torch.rand(2)}, "are those of one draw, but `num_repeats` is 2"),
        ({"num_timesteps": 5, "error_profile": "dct"}, {}, "basis 'dct', .* of the basis 'isotropic' or 'entries'"),
    ],
)
def test_what_has_no_map_is_refused(options, arguments, message):
    if "error_profile" in options:
        options = options | {"error_profile": profile(options["error_profile"])}
    with pytest.raises(ValueError, match=message):
        bits_per_pixel(tiny_vdm(**options), torch.zeros(2, 2, 6, 6, dtype=torch.uint8), torch.arange(2), **arguments)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="`reduction` is 'mean', but must be one of sum, none"):
        tiny_vdm()(torch.zeros(2, 2, 6, 6, dtype=torch.uint8), torch.arange(2), reduction="mean")
