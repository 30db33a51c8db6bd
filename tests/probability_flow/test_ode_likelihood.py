"""The probability flow and the likelihood by it, against the closed forms of Gaussians and mixtures."""

import math

import numpy as np
import pytest
import torch
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser
from mixture_model import GAUSSIAN, MIXTURE, mixture_images, mixture_vdm
from scipy.special import softmax
from scipy.stats import kstest, norm
from torch.distributions import MultivariateNormal, Normal

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMUNet2DModel, gaussian
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood
from vdm_diffusers.likelihood.per_image import generators
from vdm_diffusers.probability_flow import exact, hutchinson, integrate
from vdm_diffusers.probability_flow.dequantization import DEQUANTIZATIONS
from vdm_diffusers.probability_flow.likelihood import TRACES, log_likelihood
from vdm_diffusers.timestep_maps import AffineTimesteps


LOG_2 = math.log(2)


def tiny_vdm() -> VDM:
    unet = VDMUNet2DModel(4, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=4).double()


def log_density(vdm: VDM, z_0: torch.Tensor, **kwargs) -> torch.Tensor:
    """Of latents, by the flow with the exact trace."""
    flow = integrate(vdm, z_0, *vdm.noise_schedule.end_points(), divergence=exact, **kwargs)
    return -0.5 * (flow.z**2 + math.log(2 * math.pi)).flatten(1).sum(1) + flow.log_det


@pytest.mark.parametrize("prediction_type", gaussian.PREDICTIONS)
def test_density_of_gaussian_data(prediction_type):
    """With the tolerance of 1e-5 that is the default, to 1e-3 nats a dimension."""
    schedule = LinearSchedule(-8.0, 18.0).double()
    vdm = VDM(GaussianDenoiser(AffineTimesteps(-8.0, 18.0), prediction_type), schedule, prediction_type)
    gamma_0 = schedule.end_points()[0].double()
    alpha, sigma_sq = torch.sigmoid(-gamma_0).sqrt(), torch.sigmoid(gamma_0)
    marginal = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma_sq * torch.eye(3, dtype=torch.float64))
    z_0 = marginal.sample((20,)).reshape(20, 3, 1, 1)
    expected = marginal.log_prob(z_0.flatten(1))
    assert (log_density(vdm, z_0) - expected).abs().max() / 3 < 1e-3
    assert (log_density(vdm, z_0, tolerance=1e-8) - expected).abs().max() / 3 < 5e-5  # the prior is not quite the marginal


@pytest.mark.parametrize("tolerance, error", [(1e-5, 1e-3), (1e-8, 5e-5)])
def test_density_of_a_mixture(tolerance, error):
    vdm = mixture_vdm(MIXTURE, 256, gamma_max=18.0)
    gamma_0 = vdm.noise_schedule.end_points()[0]
    x = MIXTURE.sample(200, torch.Generator().manual_seed(0))
    z_0 = gaussian.diffuse(x, torch.randn_like(x), gamma_0)
    density = log_density(vdm, z_0.reshape(-1, 1, 1, 2), tolerance=tolerance)
    assert (density - MIXTURE.log_marginal(z_0, gamma_0)).abs().max() / 2 < error


@pytest.mark.parametrize("probe", [torch.randn, lambda *size, **kwargs: 2 * torch.randint(0, 2, size, **kwargs) - 1])
def test_hutchinson_has_the_expectation_of_the_exact_divergence(probe):
    z = torch.randn(1, 2, 3, 3, dtype=torch.float64).expand(20_000, -1, -1, -1).clone().requires_grad_()
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    v = torch.tanh(torch.nn.functional.conv2d(z, weight, padding=1)) * z
    (jacobian,) = torch.autograd.functional.jacobian(
        lambda z: torch.tanh(torch.nn.functional.conv2d(z, weight, padding=1)) * z, (z[:1].detach(),)
    )
    trace = jacobian.reshape(18, 18).trace()
    estimates = hutchinson(probe(20_000, 2, 3, 3, dtype=torch.float64))(v, z)
    assert estimates.mean().item() == pytest.approx(trace.item(), abs=4 * estimates.std().item() / 20_000**0.5)
    z = z[:2].detach().requires_grad_()
    v = torch.tanh(torch.nn.functional.conv2d(z, weight, padding=1)) * z
    torch.testing.assert_close(exact(v, z), trace.expand(2))


def levels_vdm(gamma_0: float) -> VDM:
    return VDM(torch.nn.Linear(1, 1), LinearSchedule(gamma_0, 5.0), num_levels=17).double()


def one_level(level: int, u: torch.Tensor) -> torch.Tensor:
    """Images of one pixel, as many as `u` has."""
    return torch.full_like(u, level, dtype=torch.uint8)


def samples(vdm: VDM, name: str, level: int) -> torch.Tensor:
    """Of `z_0 / alpha_0 - x`."""
    u = torch.rand(100_000, 1, 1, 1, dtype=torch.float64)
    z_0, _ = DEQUANTIZATIONS[name](vdm, one_level(level, u), u)
    return (z_0 / gaussian.alpha(vdm.noise_schedule.end_points()[0]) - vdm.scale(one_level(level, u))).flatten()


@pytest.mark.parametrize("gamma_0", [-9.0, -4.0, 1.0])
@pytest.mark.parametrize("name", ["truncated_normal", "uniform"])
def test_dequantisation_is_a_density_on_the_bin(name, gamma_0):
    """Its samples lie in the bin, are distributed as an independent sampler's, and the mass of q is 1."""
    vdm, half_width = levels_vdm(gamma_0), 1 / 17
    shift = samples(vdm, name, 11)
    assert shift.abs().max() <= half_width * (1 + 1e-12)
    draws = half_width * (2 * torch.rand(1_000_000, dtype=torch.float64) - 1)
    if name == "truncated_normal":
        draws = math.exp(gamma_0 / 2) * torch.randn(1_000_000, dtype=torch.float64)
        draws = draws[draws.abs() < half_width]
    assert shift.std().item() == pytest.approx(draws.std().item(), rel=0.01)
    assert shift.mean().item() == pytest.approx(0, abs=4 * half_width / 100_000**0.5)
    points = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64).reshape(-1, 1, 1, 1)
    z_0, log_weight = DEQUANTIZATIONS[name](vdm, one_level(11, points), points)
    mass = torch.trapezoid((-log_weight).exp(), z_0.flatten())
    assert mass.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("gamma_0", [-9.0, -4.0, 1.0])
def test_decoder_reads_latents_of_the_diffusion(gamma_0):
    """`z_0` is of `q(z_0|x)`, and the weight is the dense softmax over the levels divided by torch's normal density."""
    vdm = levels_vdm(gamma_0)
    width = math.exp(gamma_0 / 2)
    shift = samples(vdm, "decoder", 0)
    assert kstest(shift.numpy() / width, "norm").pvalue > 1e-3
    u = torch.rand(100, 1, 1, 1, dtype=torch.float64)
    gamma = vdm.noise_schedule.end_points()[0]
    alpha, sigma = gaussian.alpha(gamma), gaussian.sigma(gamma)
    for level in (0, 7, 16):
        z_0, log_weight = DEQUANTIZATIONS["decoder"](vdm, one_level(level, u), u)
        densities = Normal(alpha * vdm.scale(torch.arange(17)), sigma).log_prob(z_0.reshape(-1, 1))
        torch.testing.assert_close(log_weight, densities.log_softmax(1)[:, level] - densities[:, level])


def reading(name: str, alpha: float, sigma: float, level: int, z: float) -> float:
    """`P(v|z_0)` of one pixel of 16 levels."""
    centres = alpha * ((2 * np.arange(16) + 1) / 16 - 1)
    if name == "uniform":
        return float(abs(z - centres[level]) <= alpha / 16)
    return softmax(norm.logpdf(z, centres, sigma))[level]


@pytest.mark.parametrize("dequantization, gamma_min", [("decoder", -4.0), ("uniform", -7.0)])
def test_importance_samples_approach_the_probability_from_below(dequantization, gamma_min):
    """`log P(v)` by cubature; the mean over K draws, with its `log K`, rises towards it."""
    vdm = mixture_vdm(MIXTURE, 16, gamma_min=gamma_min, gamma_max=18.0)
    gamma_0, gamma_1 = vdm.noise_schedule.end_points()
    alpha, sigma = gaussian.alpha(gamma_0).item(), gaussian.sigma(gamma_0).item()
    levels = (8, 11)
    cells = (np.arange(1600) + 0.5) / 160 - 5  # their midpoints, in halves of a bin
    axes = [alpha * ((2 * v + 1 + cells) / 16 - 1) for v in levels]
    first, second = ([reading(dequantization, alpha, sigma, v, z) for z in axis] for v, axis in zip(levels, axes))
    grid = torch.cartesian_prod(*(torch.from_numpy(axis) for axis in axes))
    density = MIXTURE.log_marginal(grid, gamma_0).exp().reshape(1600, 1600).numpy()
    probability = np.sum(density * np.outer(first, second)) * (alpha / 16 / 160) ** 2
    images = torch.tensor(levels).reshape(1, 1, 1, 2).expand(1000, -1, -1, -1)
    means, errors = [], []
    for num_samples in (1, 4, 16):
        nats = log_likelihood(
            vdm, images, dequantization=dequantization, num_importance_samples=num_samples, trace="exact", tolerance=1e-4,
            generator=torch.Generator().manual_seed(0),
        ).nats  # fmt: skip
        means.append(nats.mean().item())
        errors.append(nats.std().item() / len(nats) ** 0.5)
    gaps = [math.log(probability) - mean for mean in means]
    assert gaps[0] > gaps[1] > gaps[2] > -3 * errors[2]
    assert gaps[2] < 0.1 * gaps[0] and gaps[0] > 5 * errors[0]


@pytest.mark.parametrize("dequantization", ["truncated_normal", "uniform"])
@pytest.mark.parametrize("mixture", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
def test_bits_of_fine_levels_are_those_of_the_density(mixture, dequantization):
    """With bins much narrower than the noise, `-log2 P(v)` is that of the density times the bin."""
    vdm, data = mixture_vdm(mixture, 4096, gamma_max=18.0), mixture_images(mixture, 100, 4096, seed=0)
    result = ode_likelihood(vdm, data, 2, dequantization=dequantization, trace="exact", tolerance=1e-6)
    gamma_0 = vdm.noise_schedule.end_points()[0]
    alpha = torch.sigmoid(-gamma_0).sqrt()
    x = torch.stack([vdm.scale(item["images"][None]).flatten() for item in data]).double()
    nats = -mixture.log_marginal(alpha * x, gamma_0).mean() - 2 * torch.log(2 * alpha / 4096)
    assert result.bits_per_dim == pytest.approx(nats.item() / (2 * LOG_2), abs=2e-3)
    assert result.max_evaluations >= result.num_evaluations > 20


@pytest.mark.parametrize("trace", TRACES)
def test_batches_do_not_matter(trace):
    images = torch.randint(0, 4, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    data = ImageDataset([{"image": image.numpy()} for image in images])
    results = [ode_likelihood(tiny_vdm_of_seed(0), data, 2, batch_size, trace=trace, tolerance=1e-2) for batch_size in (2, 3)]
    for result in results[1:]:
        assert result.bits_per_dim == pytest.approx(results[0].bits_per_dim, abs=1e-8)
        assert result.standard_error == pytest.approx(results[0].standard_error, abs=1e-8)
        assert result.num_evaluations == results[0].num_evaluations


def tiny_vdm_of_seed(seed: int) -> VDM:
    torch.manual_seed(seed)
    return tiny_vdm()


def test_images_take_steps_of_their_own():
    vdm = tiny_vdm()
    images = torch.randint(0, 4, (8, 1, 4, 4))
    together = log_likelihood(vdm, images, tolerance=1e-4, generator=generators(0, torch.arange(8)))
    alone = log_likelihood(vdm, images[5:6], tolerance=1e-4, generator=generators(0, torch.tensor([5])))
    torch.testing.assert_close(alone.nats, together.nats[5:6], rtol=0, atol=1e-8)
    assert alone.num_evaluations == together.num_evaluations[5]
    assert len(set(together.num_evaluations.tolist())) > 1


class Broken(torch.nn.Module):
    """NaN beyond a noise level, for bright images."""

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        bad = (sample.flatten(1).mean(1) > 0.1) & (timestep > 300)
        return (torch.where(bad[:, None, None, None], torch.nan, sample),)


def test_nan_names_image_and_timestep():
    rows = [{"image": torch.full((4, 4), 3 if i == 5 else 0).numpy()} for i in range(8)]
    vdm = VDM(Broken(), LinearSchedule(-9.0, 5.0), num_levels=4)
    with pytest.raises(FloatingPointError, match=r"image 1 of the batch.* timestep [3-9]\d\d.* begins with image 4"):
        ode_likelihood(vdm, ImageDataset(rows), batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantization": "none"}, "`dequantization` is 'none'"),
        ({"trace": "skilling"}, "`trace` is 'skilling'"),
        ({"num_importance_samples": 0}, "`num_importance_samples` is 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(tiny_vdm(), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), **options)
