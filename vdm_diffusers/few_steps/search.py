"""The best few steps of a frozen model for its bound, and what they gain on images that were not searched with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..error_profiles import ErrorProfile
from ..likelihood.bound import variational_bound
from ..likelihood.estimates import Estimate
from ..vdm import VDM
from .chains import Variance, best_chain, grid_costs, refined, step_cost


GRID = 1000
"""Gammas from which the dynamic programme takes a chain."""

NAMES: dict[Variance, str] = {"q": "q's", "optimal": "optimal"}


@dataclass(frozen=True)
class Steps:
    """
    A chain of few steps, and the variances that they are taken with.

    Attributes:
        name (`str`): For tables and plots.
        gammas (`Tensor` of shape `(T + 1,)`): From the least noise to the most.
        variance (`str`): Of the reverse steps, `"q"` or `"optimal"`.
    """

    name: str
    gammas: Tensor
    variance: Variance


def candidates(vdm: VDM, profile: ErrorProfile, num_steps: Sequence[int]) -> list[Steps]:
    """
    For each number of steps the chain that the model's own schedule stands for, and the best ones with q's variances and with
    optimal ones.
    """
    gamma_0, gamma_1 = vdm.noise_schedule.end_points()
    grid = torch.linspace(gamma_0.item(), gamma_1.item(), GRID, dtype=torch.float64)
    costs = {variance: step_cost(profile, variance) for variance in NAMES}
    on_grid = {variance: grid_costs(cost, grid) for variance, cost in costs.items()}
    found = []
    for number in num_steps:
        own_chain = vdm.noise_schedule.chain(number).detach().cpu().double()
        found.append(Steps(f"evenly in t, {NAMES['q']} variance", own_chain, "q"))
        for variance, cost in costs.items():
            chain = refined(cost, best_chain(on_grid[variance], grid, number))
            found.append(Steps(f"best chain, {NAMES[variance]} variance", chain, variance))
    return found


def bounds(
    vdm: VDM, profile: ErrorProfile, num_steps: Sequence[int], dataset: Dataset, **settings: Any
) -> list[tuple[Steps, Estimate]]:
    """The bounds of all candidates on a data set; `settings` are those of [`variational_bound`]."""
    return [
        (steps, variational_bound(in_steps(vdm, steps, profile), dataset, description=steps.name, **settings))
        for steps in candidates(vdm, profile, num_steps)
    ]


def in_steps(vdm: VDM, steps: Steps, profile: ErrorProfile) -> VDM:
    """The model with the bound of these steps."""
    return vdm.in_steps(steps.gammas.tolist(), profile if steps.variance == "optimal" else None)
