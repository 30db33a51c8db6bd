"""Bits per dimension of a data set: every image once, the same for every batch size, right where the answer is known."""

import math
import statistics

import numpy as np
import pytest
import torch
from mixture_model import GAUSSIAN, MIXTURE, Mixture, mixture_images, mixture_vdm
from scipy.stats import t

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMUNet2DModel
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.data.histogram import histogram_bits_per_dim
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.estimates import Estimate


def dataset(num_images: int, num_levels: int = 4) -> ImageDataset:
    images = torch.randint(0, num_levels, (num_images, 4, 4), generator=torch.Generator().manual_seed(0))
    return ImageDataset([{"image": image.numpy()} for image in images])


def tiny_vdm() -> VDM:
    unet = VDMUNet2DModel(4, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=4)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_batch_size_does_not_matter(batch_size):
    vdm, images = tiny_vdm(), dataset(15)
    whole = variational_bound(vdm, images, num_repeats=2, batch_size=15)
    parts = variational_bound(vdm, images, num_repeats=2, batch_size=batch_size)
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, abs=1e-5)
    assert parts.standard_error == pytest.approx(whole.standard_error, abs=1e-5)


def test_every_draw_depends_on_the_seed():
    """Also the noise by itself: without times that matter, only the reconstruction term's."""
    vdm, images = tiny_vdm(), dataset(5)
    with torch.no_grad():
        vdm.noise_schedule.gamma_0.fill_(1.0)
    terms = {variational_bound(vdm, images, seed=seed).reconstruction for seed in range(4)}
    assert len(terms) == 4


def test_terms_add_up_and_the_mode_is_restored():
    vdm = tiny_vdm().train()
    bound = variational_bound(vdm, dataset(9))
    assert bound.bits_per_dim == pytest.approx(bound.prior + bound.reconstruction + bound.diffusion)
    assert vdm.training and vdm.unet.training


class Memory(torch.nn.Module):
    """Knows the one image that there is, so it predicts the noise exactly."""

    def __init__(self, x: torch.Tensor, schedule: LinearSchedule):
        super().__init__()
        self.x, self.schedule = x, schedule

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        gamma = self.schedule.gamma_min + timestep / 1000 * (self.schedule.gamma_max - self.schedule.gamma_min)
        gamma = gamma[:, None, None, None]
        return ((sample - torch.sigmoid(-gamma).sqrt() * self.x) / torch.sigmoid(gamma).sqrt(),)


def test_a_known_image_costs_only_its_prior_term():
    rows = dataset(1).rows * 20
    schedule = LinearSchedule(-12.0, 4.0)
    x = (torch.as_tensor(rows[0]["image"])[None, None] + 0.5) / 2 - 1
    vdm = VDM(Memory(x, schedule), schedule, num_levels=4)
    bound = variational_bound(vdm, ImageDataset(rows), num_repeats=2)
    alpha_sq = 1 / (1 + math.exp(4.0))
    nats = 0.5 * (alpha_sq * (x**2).mean().item() - alpha_sq - math.log1p(-alpha_sq))
    assert bound.bits_per_dim == pytest.approx(nats / math.log(2), abs=1e-5)
    assert bound.diffusion == pytest.approx(0, abs=1e-6)


def expected_bound(mixture: Mixture, vdm: VDM) -> float:
    """The bound of the optimal denoiser in continuous time, in bits/dim, for levels much narrower than the noise at t = 0.

    `½ ∫ E ||eps - eps_hat||² dgamma` is the mutual information of `x` and `z_0` less that of `x` and `z_1` (I-MMSE), so what
    remains is `E[-log p(x|z_0) + log q(z_0|x) - log q(z_0)] + KL(q(z_1) || p(z_1))`, and the first two cancel but for units.
    """
    gamma_0, gamma_1 = vdm.noise_schedule.chain(1)
    levels_per_unit = vdm.num_levels / 2 / torch.sigmoid(-gamma_0).sqrt()
    nats = 2 * levels_per_unit.log().item() + mixture.entropy(gamma_0) + mixture.prior_mismatch(gamma_1)
    return nats / (2 * math.log(2))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mixture", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
def test_bound_of_an_optimal_denoiser_against_its_closed_form(mixture, prediction_type):
    vdm = mixture_vdm(mixture, 512, prediction_type)
    bound = variational_bound(vdm, mixture_images(mixture, 1500, 512, seed=0), num_repeats=16)
    expected = expected_bound(mixture, vdm)
    assert bound.standard_error < 0.005 * expected
    assert bound.bits_per_dim == pytest.approx(expected, abs=4 * bound.standard_error)


def test_error_bars_cover_as_often_as_they_should():
    """Over 150 repetitions: 95 % intervals for the population with new images each, and for the same images."""
    vdm = mixture_vdm(MIXTURE, 64, gamma_min=-4.0, gamma_max=3.0)
    new = [variational_bound(vdm, mixture_images(MIXTURE, 60, 64, seed), 8, seed=seed) for seed in range(150)]
    images = mixture_images(MIXTURE, 60, 64, seed=0)
    same = [variational_bound(vdm, images, 8, seed=seed) for seed in range(150)]
    truth = statistics.mean(bound.bits_per_dim for bound in same)
    covered = [abs(bound.bits_per_dim - truth) / bound.standard_error_draws < float(t(7).ppf(0.975)) for bound in same]
    assert 0.91 <= statistics.mean(covered) <= 0.99
    truth = expected_bound(MIXTURE, vdm)
    covered = [bound.interval_95[0] < truth < bound.interval_95[1] for bound in new]
    assert 0.91 <= statistics.mean(covered) <= 0.99


def test_errors_of_known_components():
    """Images of variance 4 and draws of variance 9, with 5 repeats of 300 images."""
    generator = torch.Generator().manual_seed(0)

    def estimate() -> Estimate:
        images = 2 * torch.randn(300, generator=generator, dtype=torch.float64)
        return Estimate.from_repeats(images + 3 * torch.randn(5, 300, generator=generator, dtype=torch.float64))

    estimates = [estimate() for _ in range(400)]
    for name, expected in (("images", 4 / 300), ("draws", 9 / 1500)):
        squares = [getattr(estimate, f"standard_error_{name}") ** 2 for estimate in estimates]
        assert statistics.mean(squares) == pytest.approx(expected, rel=0.1)
    assert statistics.mean(estimate.standard_error**2 for estimate in estimates) == pytest.approx(4 / 300 + 9 / 1500, rel=0.1)
    assert statistics.mean(estimate.variance for estimate in estimates) == pytest.approx(13, rel=0.05)
    assert statistics.stdev(estimate.per_dim for estimate in estimates) ** 2 == pytest.approx(4 / 300 + 9 / 1500, rel=0.2)


def test_one_repeat_has_one_error():
    bound = variational_bound(tiny_vdm(), dataset(15))
    assert bound.standard_error > 0 and bound.standard_error_images is None and bound.standard_error_draws is None


@pytest.mark.parametrize("num_timesteps", [None, 7, 200])
def test_profile_integrates_to_the_diffusion_term(num_timesteps):
    vdm = mixture_vdm(MIXTURE, 64)
    vdm.num_timesteps = num_timesteps
    bound = variational_bound(vdm, mixture_images(MIXTURE, 400, 64, seed=0), num_repeats=4)
    gammas = torch.tensor(bound.profile.gammas)
    torch.testing.assert_close(gammas[[0, -1]], vdm.noise_schedule.chain(1).float())
    integral = (gammas.diff() * torch.tensor(bound.profile.per_dim)).sum().item()
    assert integral == pytest.approx(bound.diffusion, rel=0.01)
    assert all(error > 0 for error in bound.profile.standard_error)


def test_profile_of_gaussian_data():
    vdm = mixture_vdm(GAUSSIAN, 512)
    profile = variational_bound(vdm, mixture_images(GAUSSIAN, 2000, 512, seed=0), num_repeats=8).profile
    gammas = torch.tensor(profile.gammas, dtype=torch.float64)
    variances = GAUSSIAN.scales[0] ** 2
    antiderivative = (gammas[:, None] - torch.log(variances + gammas.exp()[:, None])).sum(1) / (4 * math.log(2))
    expected = antiderivative.diff() / gammas.diff()
    deviations = (torch.tensor(profile.per_dim) - expected) / torch.tensor(profile.standard_error)
    assert deviations.abs().max() < 4 and deviations.square().mean().sqrt() < 1.4


class Broken(torch.nn.Module):
    """Gives NaN for the images of one level, at timesteps above 500."""

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        bad = (sample.flatten(1).mean(1) > 0.5) & (timestep > 500)
        return (torch.where(bad[:, None, None, None], torch.nan, sample),)


def test_nan_names_image_and_timestep():
    rows = [{"image": np.full((4, 4), 3 if i == 11 else 0, dtype=np.uint8)} for i in range(20)]
    vdm = VDM(Broken(), LinearSchedule(-9.0, -1.0), num_levels=4)
    with pytest.raises(FloatingPointError, match=r"image 11 is not finite at timestep [5-9]\d\d"):
        variational_bound(vdm, ImageDataset(rows), num_repeats=12, batch_size=8)


def test_histogram_against_counting_by_hand():
    train = [{"image": [[0, 1]]}, {"image": [[0, 2]]}]
    test = [{"image": [[0, 1]]}, {"image": [[2, 2]]}]
    cost = [-math.log2(3 / 5) - math.log2(2 / 5), -math.log2(1 / 5) - math.log2(2 / 5)]
    value = histogram_bits_per_dim(ImageDataset(train), ImageDataset(test), num_levels=3)
    assert value == pytest.approx(sum(cost) / 4)
