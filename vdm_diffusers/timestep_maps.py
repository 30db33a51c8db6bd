"""Timestep maps: the number that a denoiser is conditioned on at a given gamma.

A schedule says which gammas to visit; a map says what to tell the network there. Keeping the two apart is what lets
schedules and schedulers be swapped.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .precision import FullPrecisionModule


class TimestepMap(FullPrecisionModule, ABC):
    """A strictly increasing function `gamma -> timestep` and its inverse, elementwise, for floating-point arguments.

    Attributes:
        config (`dict`): What makes it, in the terms of a [`VDMScheduler`]'s configuration.
        last (`float`): The largest timestep that the model was trained with; the smallest is 0.
    """

    config: dict[str, object]
    last: float

    @abstractmethod
    def forward(self, gamma: Tensor) -> Tensor:
        """The timestep, fractional, shaped as `gamma`."""

    @abstractmethod
    def inverse(self, timestep: Tensor) -> Tensor:
        """The gamma that a timestep stands for, shaped as `timestep`."""


class AffineTimesteps(TimestepMap):
    """A VDM's map: `N (gamma - gamma_min) / (gamma_max - gamma_min)`, N = `num_train_timesteps`.

    The two constants are those of the configuration, also when a schedule has learned other end points.
    """

    def __init__(self, gamma_min: float, gamma_max: float, num_train_timesteps: int = 1000):
        super().__init__()
        self.gamma_min, self.gamma_max, self.num_train_timesteps = gamma_min, gamma_max, num_train_timesteps
        self.last = float(num_train_timesteps)

    @property
    def config(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("gamma_min", "gamma_max", "num_train_timesteps")}

    def forward(self, gamma: Tensor) -> Tensor:
        return (gamma - self.gamma_min) * (self.num_train_timesteps / (self.gamma_max - self.gamma_min))

    def inverse(self, timestep: Tensor) -> Tensor:
        return self.gamma_min + timestep * ((self.gamma_max - self.gamma_min) / self.num_train_timesteps)


class ChainTimesteps(TimestepMap):
    """The map of a model trained on a β-chain: the index into the chain's gammas, linearly interpolated between indices.

    Beyond the chain it is extended along the chain's first and last interval.

    Args:
        gammas (`Tensor` of shape `(N,)`): `log((1 - ᾱ_i) / ᾱ_i)` of the chain's indices i = 0, ..., N - 1, increasing.
        config (`dict`): The chain, in the terms of a scheduler's configuration.
    """

    def __init__(self, gammas: Tensor, config: dict[str, object]):
        super().__init__()
        self.config, self.last = config, len(gammas) - 1.0
        self.register_buffer("gammas", gammas, persistent=False)

    def forward(self, gamma: Tensor) -> Tensor:
        index = self._interval(torch.searchsorted(self.gammas, gamma.detach().to(self.gammas.dtype).contiguous()) - 1)
        low, high = self.gammas[index], self.gammas[index + 1]
        return (index + (gamma - low) / (high - low)).to(gamma.dtype)

    def inverse(self, timestep: Tensor) -> Tensor:
        index = self._interval(timestep.detach().floor().long())
        low, high, weight = self.gammas[index], self.gammas[index + 1], timestep - index
        return torch.where(weight == 0, low, low + weight * (high - low)).to(timestep.dtype)  # a chain may end in inf

    def _interval(self, index: Tensor) -> Tensor:
        return index.clamp(0, len(self.gammas) - 2)
