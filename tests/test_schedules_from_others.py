"""Schedules that start where another one is: their end points, how near they are in between, and what the bound makes of it."""

import pytest
import torch
from cases import SCHEDULES
from diffusers import DDPMScheduler

from vdm_diffusers import VDMScheduler
from vdm_diffusers.noise_schedules import NOISE_SCHEDULES, LearnedChainSchedule, LearnedMonotoneSchedule, TableSchedule


CHAINS = {
    "linear": {},
    "Stable Diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "laplace": {"beta_schedule": "laplace"},
    "short": {"num_train_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.4},
}
NEAR = {"LearnedMonotoneSchedule": 4e-3, "LearnedChainSchedule": 2e-6, "TableSchedule": 3e-6}
"""Of the range of gamma, the most that these classes are away from any of the chains; others have no such interior."""


@pytest.fixture(params=CHAINS.values(), ids=CHAINS.keys())
def chain(request) -> TableSchedule:
    config = DDPMScheduler(**request.param).config
    return TableSchedule(VDMScheduler.from_config(config).timestep_map.gammas.tolist())


def started(name: str, chain: TableSchedule):
    steps = {"num_steps": len(chain.knot_times) - 1} if name == "LearnedChainSchedule" else {}
    return NOISE_SCHEDULES[name].from_schedule(chain, **steps)


@pytest.mark.parametrize("name", SCHEDULES)
@torch.no_grad()
def test_a_schedule_starts_where_a_chain_is(name, chain):
    schedule, range_ = started(name, chain), chain.gamma_max - chain.gamma_min
    ends, expected = (torch.stack(each.end_points()).double() for each in (schedule, chain))
    exact = name not in ("LearnedUnpinnedSchedule", "TableSchedule")  # the first is not pinned, the second has all of float64
    torch.testing.assert_close(ends, expected.float().double() if exact else expected, rtol=0, atol=0 if exact else 2e-6)
    t = torch.linspace(0, 1, 4001)
    assert ((schedule(t) - chain(t.double())).abs().max() / range_).item() < NEAR.get(name, 0.5)


@torch.no_grad()
def test_a_chain_is_taken_exactly_at_its_knots(chain):
    schedule = started("LearnedChainSchedule", chain)
    found = schedule.chain(len(chain.knot_times) - 1)
    torch.testing.assert_close(found, chain.knot_gammas, rtol=0, atol=2e-6 * (chain.gamma_max - chain.gamma_min))


@pytest.mark.parametrize("power", [0.0, 0.3])
@torch.no_grad()
def test_neither_the_bound_nor_its_variance_jumps(chain, power):
    """Of a model whose loss is `exp(power γ)` at γ: `½ γ'(t) exp(power γ(t))` for a time, `½ ∫ exp(power γ) dγ` in the mean."""
    schedule, (knots, _) = LearnedMonotoneSchedule.from_schedule(chain), chain.table(4000)
    t, weight = (knots[1:] + knots[:-1]) / 2, knots.diff()
    moments = []
    for each in (chain, schedule.double()):
        gamma, slope = each.with_derivative(t)
        loss = 0.5 * slope * torch.exp(power * (gamma - chain.gamma_max))
        moments.append(((weight * loss).sum().item(), (weight * loss.square()).sum().item()))
    (mean, square), (mean_learned, square_learned) = moments
    assert mean_learned == pytest.approx(mean, rel=1e-4)
    assert square_learned == pytest.approx(square, rel=0.05)


def test_the_interior_that_was_taken_is_learned(chain):
    for name in ("LearnedMonotoneSchedule", "LearnedChainSchedule"):
        schedule = started(name, chain)
        gamma, slope = schedule.with_derivative(torch.rand(64))
        (gamma.sum() + slope.sum()).backward()
        assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in schedule.parameters())


def test_what_was_learned_is_taken_too():
    """Its end points are where learning led them, and a class can follow its own kind."""
    first = LearnedMonotoneSchedule(-9.0, 4.0, num_features=32)
    with torch.no_grad():
        first.gamma_0.sub_(1.5), first.gamma_1.add_(2.5), first.logits.add_(torch.randn(32))
        again = LearnedMonotoneSchedule.from_schedule(first)
        t = torch.linspace(0, 1, 501)
        assert again.gamma_min == -10.5 and again.gamma_max == 6.5
        assert (again(t) - first(t)).abs().max() < 0.01 * 17


@pytest.mark.parametrize("ratio", [0.5, 2.0, 8.0])
def test_a_shifted_schedule_gives_averaged_pixels_the_noise_of_before(ratio, chain):
    """The mean of `ratio²` pixels keeps their signal and has `1 / ratio²` of the noise's variance."""
    shifted, t = chain.shifted(ratio), torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha2, sigma2 = torch.sigmoid(-shifted(t)), torch.sigmoid(shifted(t))
    torch.testing.assert_close(torch.log(sigma2 / ratio**2 / alpha2), chain(t), rtol=0, atol=1e-4)
    learned = LearnedMonotoneSchedule.from_schedule(shifted)
    assert [end.item() for end in learned.end_points()] == [
        torch.tensor(end).item() for end in (shifted.gamma_min, shifted.gamma_max)
    ]


def test_a_shift_by_nothing_is_refused():
    with pytest.raises(ValueError, match="`ratio` is 0, but must be positive"):
        LearnedChainSchedule(3).shifted(0)
