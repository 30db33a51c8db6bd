"""How far samples are from those of a fine sampler: one by one, or as sets."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """
    An estimate and its error.

    Attributes:
        value (`float`): In units of the samples, squared if they are compared one by one.
        standard_error (`float`): Over the samples, the others being given.
    """

    value: float
    standard_error: float


def squared_distance(samples: Tensor, others: Tensor) -> Distance:
    """The mean square of the elements of `samples - others`, `(B, *shape)` both, each with its own other."""
    squares = (samples.double() - others.double()).square().flatten(1).mean(1)
    return Distance(squares.mean().item(), squares.std().item() / len(squares) ** 0.5)


def energy_distance(samples: Tensor, others: Tensor) -> Distance:
    """
    `2 E|X - Y| - E|X - X'| - E|Y - Y'|` without bias, for samples `(n, *shape)` and `(m, *shape)`: 0 for one distribution
    ([Székely and Rizzo 2013](https://doi.org/10.1016/j.jspi.2013.03.018)). `|·|` is the Euclidean norm.
    """
    x, y = samples.double().flatten(1), others.double().flatten(1)
    to_others, among = torch.cdist(x, y).mean(1), torch.cdist(x, x).sum(1) / (len(x) - 1)
    among_others = torch.cdist(y, y).sum() / (len(y) * (len(y) - 1))
    influence = 2 * (to_others - among)
    value = 2 * to_others.mean() - among.mean() - among_others
    return Distance(value.item(), influence.std().item() / len(x) ** 0.5)
