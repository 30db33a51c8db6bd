"""Chains of few steps: the dynamic programme against all chains, costs against torch's KL divergences and closed forms."""

from itertools import combinations

import pytest
import torch
from gaussian_model import COVARIANCE, GaussianDenoiser, cubature, discrete_diffusion_loss, epsilon_error
from scipy.optimize import minimize
from torch.distributions import Normal, kl_divergence

from vdm_diffusers import VDM, LinearSchedule, TableSchedule, gaussian
from vdm_diffusers.error_profiles import ErrorProfile
from vdm_diffusers.few_steps import best_chain, chain_cost, grid_costs, refined, step_cost
from vdm_diffusers.timestep_maps import AffineTimesteps


GAMMAS = torch.linspace(-6, 4, 12, dtype=torch.float64)
VARIANCES, AXES = torch.linalg.eigh(COVARIANCE)


def along_axes(gammas: torch.Tensor) -> ErrorProfile:
    """The closed form of the Gaussian's: `v / (v + exp(gamma))` along the axis of the variance v."""
    moments = VARIANCES / (VARIANCES + gammas.exp()[:, None])
    return ErrorProfile(gammas, moments, torch.zeros_like(moments), "principal", AXES.T)


def isotropic(gammas: torch.Tensor) -> ErrorProfile:
    moments = epsilon_error(gammas)[:, None] / 3
    return ErrorProfile(gammas, moments, torch.zeros_like(moments))


def entries(gammas: torch.Tensor) -> ErrorProfile:
    identity = torch.eye(3, dtype=torch.float64)
    moments = torch.stack([(COVARIANCE @ torch.linalg.inv(COVARIANCE + g.exp() * identity)).diagonal() for g in gammas])
    return ErrorProfile(gammas, moments, torch.zeros_like(moments), "entries")


PROFILES = {"isotropic": isotropic, "entries": entries, "principal": along_axes}


@pytest.mark.parametrize("variance", ["q", "optimal"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 11])
def test_the_best_chain_is_the_best_of_all(variance, num_steps):
    cost = step_cost(along_axes(GAMMAS), variance)
    inner = combinations(range(1, len(GAMMAS) - 1), num_steps - 1)
    least = min(chain_cost(cost, GAMMAS[[0, *places, len(GAMMAS) - 1]]) for places in inner)
    chain = best_chain(grid_costs(cost, GAMMAS), GAMMAS, num_steps)
    assert len(chain) == num_steps + 1 and (chain.diff() > 0).all()
    assert (chain[0], chain[-1]) == (GAMMAS[0], GAMMAS[-1])
    assert chain_cost(cost, chain) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("num_steps", [0, 12])
def test_chains_longer_than_the_grid_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"`num_steps` is {num_steps}, but must be from 1 to 11"):
        best_chain(grid_costs(step_cost(isotropic(GAMMAS)), GAMMAS), GAMMAS, num_steps)


def test_a_refined_chain_costs_as_little_as_scipy_finds():
    cost = step_cost(along_axes(torch.linspace(-6, 4, 300, dtype=torch.float64)))
    chain = best_chain(grid_costs(cost, GAMMAS), GAMMAS, 4)
    found = refined(cost, chain)

    def whole(inner) -> float:
        return chain_cost(cost, torch.cat([GAMMAS[:1], torch.from_numpy(inner).sort().values, GAMMAS[-1:]]))

    least = minimize(whole, chain[1:-1].numpy(), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).fun
    assert chain_cost(cost, found) <= least * (1 + 1e-9)
    assert chain_cost(cost, found) < chain_cost(cost, chain)


def test_the_kl_of_a_step_is_that_of_torch_s_normal_distributions():
    """Means from `gaussian`'s posterior, with the estimate in the place of the data; variances from the definition."""
    gamma_s, gamma_t = torch.tensor([-3.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    x, eps, error = torch.randn(3, 50, dtype=torch.float64)
    z_t = gaussian.diffuse(x, eps, gamma_t)
    x_hat = gaussian.predicted_sample("epsilon", eps - error, z_t, gamma_t)
    (mean, variance), (estimate, _) = (gaussian.posterior(data, z_t, gamma_s, gamma_t) for data in (x, x_hat))
    step = torch.expm1(gamma_t - gamma_s)
    for moment in (0.0, 0.3, 2.0):
        reverse = Normal(estimate, (variance * (1 + step * moment)).sqrt())
        expected = kl_divergence(Normal(mean, variance.sqrt()), reverse)
        found = gaussian.reverse_kl(step, error**2, torch.tensor([moment], dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def gaussian_vdm(chain: torch.Tensor, profile: ErrorProfile | None) -> VDM:
    timesteps = AffineTimesteps(-6.0, 4.0)
    steps = len(chain) - 1
    schedule = TableSchedule(chain.tolist())
    return VDM(GaussianDenoiser(timesteps), schedule, num_levels=None, num_timesteps=steps, timestep_map=timesteps,
               error_profile=profile).double()  # fmt: skip


def expected_diffusion(vdm: VDM) -> float:
    """The mean over the steps, and over points that give a quadratic function's expectation exactly."""
    x, eps = cubature()
    times = torch.arange(1, vdm.num_timesteps + 1, dtype=torch.float64) / vdm.num_timesteps
    losses = [vdm.diffusion(x, vdm.noise_level(t.expand(len(x))), eps).mean() for t in times]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("name", PROFILES)
def test_the_bound_with_optimal_variances_is_the_closed_form(name):
    chain = torch.tensor([-6.0, -2.5, -1.0, 0.5, 4.0], dtype=torch.float64)
    profile = PROFILES[name](chain)
    found = expected_diffusion(gaussian_vdm(chain, profile))
    with_q = expected_diffusion(gaussian_vdm(chain, None))
    step, moments = torch.expm1(chain.diff())[:, None], profile.moments[1:]
    expected = 0.5 * (torch.log1p(step * moments).sum() * (3 if name == "isotropic" else 1)).item()
    assert found == pytest.approx(expected, rel=1e-10)
    assert with_q == pytest.approx(discrete_diffusion_loss(chain).item(), rel=1e-10)
    assert found < with_q
    assert 3 * chain_cost(step_cost(profile), chain) == pytest.approx(found, rel=1e-10)
    assert 3 * chain_cost(step_cost(profile, "q"), chain) == pytest.approx(with_q, rel=1e-10)


@pytest.mark.parametrize("name", PROFILES)
def test_optimal_variances_are_never_worse_and_the_same_in_the_limit(name):
    for steps in (1, 3, 10, 3000):
        chain = torch.linspace(-6, 4, steps + 1, dtype=torch.float64)
        with_q, optimal = (chain_cost(step_cost(PROFILES[name](GAMMAS), kind), chain) for kind in ("q", "optimal"))
        assert optimal < with_q
    assert optimal == pytest.approx(with_q, rel=2e-3)


def test_variances_need_a_chain():
    with pytest.raises(ValueError, match="`error_profile` gives the steps of a chain their variances"):
        VDM(GaussianDenoiser(AffineTimesteps(-6.0, 4.0)), LinearSchedule(-6.0, 4.0), error_profile=isotropic(GAMMAS))
