"""What ends a training run: a loss that is not finite, a schedule that has collapsed."""

import torch
from torch import Tensor

from ..guards.messages import Message
from ..noise_schedules import NoiseSchedule


MIN_GAMMA_RANGE = 1.0
"""The least that gamma must rise by from t = 0 to t = 1: with less even the noisiest latent shows the data."""


def first_not_finite(window: Tensor, with_gradient: bool) -> int | None:
    """The index of the first row that is not finite; the last column, the gradient's norm, counts only `with_gradient`."""
    bad = (~(window if with_gradient else window[:, :-1]).isfinite().all(1)).nonzero()
    return bad[0].item() if len(bad) else None


@torch.no_grad()
def check_schedule(schedule: NoiseSchedule, step: int) -> None:
    """`FloatingPointError` unless gamma rises everywhere, and by [`MIN_GAMMA_RANGE`] at least."""
    gamma_0, gamma_1 = schedule.chain(1).tolist()
    slope = schedule.with_derivative((torch.arange(100, device=schedule.device) + 0.5) / 100)[1]
    if gamma_1 - gamma_0 < MIN_GAMMA_RANGE or not (slope.isfinite() & (slope > 0)).all():
        raise FloatingPointError(
            Message(
                "The noise schedule has collapsed by step {}: gamma runs from {:.4g} to {:.4g}, its derivative from {:.4g} to"
                " {:.4g}, but it must rise everywhere and by {} at least; begin with a lower {schedule_learning_rate} or with"
                " end points further apart.",
                *(step, gamma_0, gamma_1, slope.min().item(), slope.max().item(), MIN_GAMMA_RANGE),
            )
        )


def drifted_end_points(record: dict[str, float]) -> list[str]:
    """A sentence for each end point that has drifted so far that the term which depends on it dominates the bound."""
    return [
        f"the {term} term is {record[term]:.4f} of {record['bits_per_dim']:.4f} bits/dim: {end} has drifted to"
        f" {record[end]:.4g}."
        for term, end in (("prior", "gamma_1"), ("reconstruction", "gamma_0"))
        if record[term] > record["bits_per_dim"] / 2
    ]
