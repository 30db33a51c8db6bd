"""The best chain of few steps for a frozen denoiser: exactly on a grid of gammas, then between its points."""

from collections.abc import Callable
from typing import Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .. import gaussian
from ..error_profiles import ErrorProfile


Variance = Literal["q", "optimal"]
"""Of `p(z_s|z_t)`: that of `q(z_s|z_t, x)`, or the one that is optimal by the error profile."""

StepCost = Callable[[Tensor, Tensor], Tensor]
"""`cost(gamma_s, gamma_t)` of a step, elementwise; they broadcast."""


def step_cost(profile: ErrorProfile, variance: Variance = "optimal") -> StepCost:
    """The expected `KL(q(z_s|z_t, x) || p(z_s|z_t))` of a step, in nats a dimension.

    With d = expm1(gamma_t - gamma_s), that is the mean over the coordinates of `½ d m` or, with optimal variances,
    `½ log1p(d m)` (Bao et al. 2022, Analytic-DPM).
    """

    def cost(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
        step, moments = torch.expm1(gamma_t - gamma_s)[..., None], profile(gamma_t)
        return gaussian.reverse_kl(step, moments, torch.zeros_like(moments) if variance == "q" else moments).mean(-1)

    return cost


def grid_costs(cost: StepCost, gammas: Tensor) -> Tensor:
    """The cost of the step from each gamma of a grid `(G,)` to each other one, `(G, G)`; infinite unless that is higher."""
    costs = gammas.new_full((len(gammas), len(gammas)), torch.inf)
    for t in range(1, len(gammas)):
        costs[:t, t] = cost(gammas[:t], gammas[t])
    return costs


def best_chain(costs: Tensor, gammas: Tensor, num_steps: int) -> Tensor:
    """
    The chain of least cost from the first gamma of a grid to the last, `(num_steps + 1,)`, by dynamic programming.

    Args:
        costs (`Tensor` of shape `(G, G)`): Those of [`grid_costs`].
        gammas (`Tensor` of shape `(G,)`): The grid, increasing, float64.
        num_steps (`int`): T, below G.

    Raises:
        `ValueError`: for more steps than the grid has.
    """
    size = len(gammas)
    if not 1 <= num_steps < size:
        raise ValueError(f"`num_steps` is {num_steps}, but must be from 1 to {size - 1}: the grid has {size} gammas.")
    total, before = costs[0], []
    for _ in range(num_steps - 1):
        total, origin = (total[:, None] + costs).min(0)
        before.append(origin)
    place, places = size - 1, [size - 1]
    for origin in reversed(before):
        place = int(origin[place])
        places.append(place)
    return gammas[[0, *reversed(places)]]


def refined(cost: StepCost, chain: Tensor, tolerance: float = 1e-6, max_sweeps: int = 100) -> Tensor:
    """A chain between whose neighbours every gamma is where it costs least; the end points stay."""
    chain = chain.clone()
    for _ in range(max_sweeps):
        before = chain.clone()
        for i in range(1, len(chain) - 1):
            chain[i] = _best_between(cost, chain[i - 1], chain[i], chain[i + 1])
        if (chain - before).abs().max() < tolerance:
            break
    return chain


def _best_between(cost: StepCost, low: Tensor, present: Tensor, high: Tensor) -> Tensor:
    def both(gamma: float) -> float:
        middle = torch.as_tensor(gamma, dtype=low.dtype)
        return (cost(low, middle) + cost(middle, high)).item()

    found = minimize_scalar(both, bounds=(low.item(), high.item()), method="bounded", options={"xatol": 1e-8})
    return low.new_tensor(found.x) if found.fun < both(present.item()) else present


def chain_cost(cost: StepCost, chain: Tensor) -> float:
    """Of all its steps together."""
    return cost(chain[:-1], chain[1:]).sum().item()
