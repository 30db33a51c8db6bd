"""Error bars: that they cover as often as they say, however few the repeats, and that there is none where none can be had."""

import pytest
import torch
from gaussian_model import GaussianDenoiser
from scipy import stats

from vdm_diffusers import VDM, LinearSchedule
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood.estimates import Estimate
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood


NUM_IMAGES = 30
NUM_TRIALS = 1500


def simulated(num_repeats: int, draws: float, generator: torch.Generator) -> tuple[Estimate, float]:
    """The estimate of a population's figure, 0, and the same images' own figure.

    `draws` is the spread of a value about its image's; a tenth of it all images of a repeat have in common.
    """
    images = torch.randn(NUM_IMAGES, generator=generator, dtype=torch.float64)
    own = torch.randn(num_repeats, NUM_IMAGES, generator=generator, dtype=torch.float64)
    common = torch.randn(num_repeats, 1, generator=generator, dtype=torch.float64)
    return Estimate.from_repeats(images + draws * (own + 0.1 * common)), images.mean().item()


@pytest.mark.parametrize(("num_repeats", "draws"), [(1, 0.3), (2, 0.3), (4, 0.3), (2, 2.0), (4, 2.0), (8, 2.0)])
def test_95_percent_intervals_cover_that_often(num_repeats, draws):
    """Never less, and 99 % at most. What a repeat's values have in common a single one can't see, so there it is small."""
    generator = torch.Generator().manual_seed(0)
    trials = [simulated(num_repeats, draws, generator) for _ in range(NUM_TRIALS)]
    covered = sum(estimate.interval_95[0] < 0 < estimate.interval_95[1] for estimate, _ in trials) / NUM_TRIALS
    chance = 3 * (0.95 * 0.05 / NUM_TRIALS) ** 0.5
    assert 0.95 - chance < covered < 0.99 + chance
    if num_repeats > 1:
        t = stats.t.ppf(0.975, num_repeats - 1)
        of_these = [abs(estimate.per_dim - own) < t * estimate.standard_error_draws for estimate, own in trials]
        assert sum(of_these) / NUM_TRIALS == pytest.approx(0.95, abs=chance)


def test_the_interval_of_one_repeat_is_the_t_interval_of_a_mean():
    values = torch.randn(1, 12, dtype=torch.float64)
    estimate = Estimate.from_repeats(values)
    expected = stats.t.interval(0.95, 11, values.mean().item(), stats.sem(values[0]))
    assert estimate.interval_95 == pytest.approx(expected)


@pytest.mark.parametrize(("num_images", "num_repeats", "message"), [(0, 4, "has 0"), (1, 4, "has 1"), (2, 0, "is 0")])
def test_no_error_bar_is_refused_before_the_denoiser_is_asked(num_images, num_repeats, message):
    schedule = LinearSchedule(-6.0, 4.0)
    vdm = VDM(GaussianDenoiser(None), schedule)
    images = ImageDataset([{"image": torch.zeros(1, 1, 3, dtype=torch.uint8).numpy()}] * num_images)
    for function, model in ((variational_bound, vdm), (ode_likelihood, vdm), (ddpm_bound, DDPM(vdm.unet, schedule.chain(9)))):
        with pytest.raises(ValueError, match=message):
            function(model, images, num_repeats)
