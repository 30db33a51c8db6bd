"""What a scheduler visits: the indices of a β-chain, or a noise schedule. Both say which gammas each step leads between."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise_schedules import TableSchedule
from ..timestep_maps import AffineTimesteps, ChainTimesteps, TimestepMap
from .beta_chains import CHAIN_OPTIONS, SPACINGS, betas_of, chain_betas, chain_gammas
from .options import is_number
from .reverse_steps import StepFactors, ddim_steps, ddpm_steps


class Steps(NamedTuple):
    """Where steps lead, each `(n,)` on the CPU, gammas in float64.

    DDPM steps to the next timestep that is visited. DDIM steps by a fixed stride, whatever is visited next.
    """

    timesteps: Tensor
    gammas: Tensor
    gammas_ddpm: Tensor
    gammas_ddim: Tensor


class Visit:
    """
    The steps of one sampling.

    Args:
        steps ([`Steps`]): Where they lead.
        state (`tuple`): The state of the scheduler that they were made from, see `VDMScheduler._state`.
    """

    def __init__(self, steps: Steps, state: tuple):
        self.steps, self.state = steps, state
        self.values: list[float] = steps.timesteps.tolist()
        self._factors: dict[tuple[str, float | None, str | None], list[StepFactors]] = {}

    def factors(self, prediction_type: str, eta: float | None, variance_type: str | None) -> list[StepFactors]:
        """Of every step, DDPM's or with an `eta` DDIM's, computed when first asked for."""
        key = (prediction_type, eta, variance_type)
        known = isinstance(eta, (float, int, type(None))) and self._factors.get(key)
        if known:
            return known
        if not (eta is None or is_number(eta, 0, 1)):
            raise ValueError(f"`eta` is {reprlib.repr(eta)}, but the share of fresh noise is between 0 and 1.")
        timesteps, gammas, gammas_ddpm, gammas_ddim = self.steps
        if eta is None:
            self._factors[key] = ddpm_steps(prediction_type, gammas_ddpm, gammas, variance_type, noisy=timesteps > 0)
        else:
            self._factors[key] = ddim_steps(prediction_type, gammas_ddim, gammas, eta)
        return self._factors[key]


class Visits(ABC):
    """
    Which gammas are visited, and what the denoiser is told there.

    Attributes:
        timestep_map ([`TimestepMap`]): From gammas to timesteps.
        gamma_ddpm, gamma_ddim (`Tensor` of shape `()`):
            Where the last step leads, by the steps of each: `-inf` is `x` itself. Float64 on the CPU.
        range (`tuple[float, float]`): First and last timestep that can be visited.
        noise_schedule ([`TableSchedule`], *optional*): The one that is visited, if it is one.
        config (`dict`): What is written into the configuration of what is visited.
    """

    timestep_map: TimestepMap
    gamma_ddpm: Tensor
    gamma_ddim: Tensor
    range: tuple[float, float]
    noise_schedule: TableSchedule | None = None

    @property
    def config(self) -> dict[str, object]:
        return {}

    @abstractmethod
    def spaced(self, num_steps: int, config: Mapping[str, object]) -> Steps:
        """`num_steps` steps over the whole of it, spaced as the configuration says."""

    @abstractmethod
    def between(self, timesteps: Tensor, stride: int | None) -> Steps:
        """The steps from given `timesteps`, `(n,)`, float64, decreasing; DDIM's by `stride`, or without one to the next."""

    def check(self, timesteps: Tensor) -> None:
        """Raise `ValueError` for `timesteps` that no steps can be made from."""
        first, last = self.range
        if timesteps.ndim != 1 or not len(timesteps) or not (timesteps.diff() < 0).all() or timesteps.isnan().any():
            raise ValueError(f"`timesteps` must decrease, but are {_shown(timesteps)}.")
        rounding = 1e-6 * max(abs(first), abs(last))  # of those that the denoiser was told, in float32
        if timesteps[-1] < first - rounding or timesteps[0] > last + rounding:
            raise ValueError(
                f"`timesteps` run from {timesteps[0].item()} to {timesteps[-1].item()}, but must be in [{first}, {last}]."
            )


class ChainVisits(Visits):
    """The indices of a β-chain, for the model that was trained on it; its last step leads beyond index 0."""

    def __init__(self, timestep_map: ChainTimesteps, set_alpha_to_one: bool):
        self.timestep_map = timestep_map
        self.gamma_ddpm = torch.tensor(-torch.inf, dtype=torch.float64)
        self.gamma_ddim = self.gamma_ddpm if set_alpha_to_one else timestep_map.gammas[0]
        self.range = (0.0, timestep_map.last)

    def spaced(self, num_steps: int, config: Mapping[str, object]) -> Steps:
        length, spacing = config["num_train_timesteps"], config["timestep_spacing"]
        if num_steps > length:
            raise ValueError(f"`num_inference_steps` is {num_steps}, but the chain has {length} indices to visit.")
        indices = torch.from_numpy(SPACINGS[spacing](num_steps, length, config["steps_offset"]).copy()).long()
        if indices[0] > self.range[1]:
            raise ValueError(
                f"{num_steps} steps would begin at index {indices[0]} (`num_train_timesteps` {length}, `timestep_spacing`"
                f" {spacing!r}, `steps_offset` {config['steps_offset']}), but the last index of the chain is"
                f" {self.range[1]:.0f}."
            )
        return self.between(indices, length // num_steps)

    def between(self, timesteps: Tensor, stride: int | None) -> Steps:
        indices = timesteps.long()
        gammas = self.timestep_map.gammas[indices]
        gammas_ddim = _before(gammas, self.gamma_ddim) if stride is None else self._gammas_at(indices - stride)
        return Steps(indices, gammas, _before(gammas, self.gamma_ddpm), gammas_ddim)

    def check(self, timesteps: Tensor) -> None:
        super().check(timesteps)
        if (timesteps % 1).any():
            raise ValueError("`timesteps` must be whole: they are indices of a chain. Give a noise schedule to go between.")

    def _gammas_at(self, indices: Tensor) -> Tensor:
        return torch.where(indices < 0, self.gamma_ddim, self.timestep_map.gammas[indices.clamp(min=0)])


class ScheduleVisits(Visits):
    """A noise schedule, at equal distances of gamma or of its time; its last step leads to its `gamma(0)`."""

    def __init__(self, timestep_map: TimestepMap, noise_schedule: TableSchedule):
        self.timestep_map, self.noise_schedule = timestep_map, noise_schedule
        self.gamma_ddpm = self.gamma_ddim = noise_schedule.knot_gammas[0]
        self.range = tuple(timestep_map(noise_schedule.knot_gammas[[0, -1]]).tolist())

    @property
    def config(self) -> dict[str, object]:
        return {name: list(self.noise_schedule.config[name]) for name in ("gammas", "times")}

    def spaced(self, num_steps: int, config: Mapping[str, object]) -> Steps:
        spacing = config["spacing"] or ("time" if isinstance(self.timestep_map, ChainTimesteps) else "gamma")
        gammas = SCHEDULE_SPACINGS[spacing](self, num_steps).flip(0)
        return Steps(self.timestep_map(gammas[:-1]).float(), gammas[:-1], gammas[1:], gammas[1:])

    def between(self, timesteps: Tensor, stride: int | None) -> Steps:
        knots = self.noise_schedule.knot_gammas
        gammas = self.timestep_map.inverse(timesteps).clamp(knots[0], knots[-1])
        gammas_next = _before(gammas, self.gamma_ddpm)
        return Steps(timesteps.float(), gammas, gammas_next, gammas_next)


def _even(ends: Tensor, num_steps: int) -> Tensor:
    return torch.lerp(*ends, torch.linspace(0, 1, num_steps + 1, dtype=ends.dtype, device=ends.device))


def _even_timesteps(visits: ScheduleVisits, num_steps: int) -> Tensor:
    ends = visits.noise_schedule.knot_gammas[[0, -1]]
    inside = visits.timestep_map.inverse(_even(visits.timestep_map(ends), num_steps)[1:-1])
    return torch.cat([ends[:1], inside, ends[1:]])


SCHEDULE_SPACINGS: dict[str, Callable[[ScheduleVisits, int], Tensor]] = {
    "gamma": lambda visits, num_steps: _even(visits.noise_schedule.knot_gammas[[0, -1]], num_steps),
    "time": lambda visits, num_steps: visits.noise_schedule.chain(num_steps),
    "timestep": _even_timesteps,
}
"""`(visits, num_steps) -> gammas`, increasing, `(num_steps + 1,)`: at equal distances of which."""


def timesteps_of(config: Mapping[str, object]) -> tuple[TimestepMap, Tensor]:
    """What a denoiser is told, and the β of the chain whose index that is, `(N,)`: its own, or one made for its gammas."""
    length = config["num_train_timesteps"]
    if not _is_of_chain(config):
        timestep_map = AffineTimesteps(config["gamma_min"], config["gamma_max"], length)
        return timestep_map, betas_of(timestep_map.inverse(torch.arange(length, dtype=torch.float64)))
    chain = {name: config[name] for name in CHAIN_OPTIONS}
    betas = chain_betas(**{name: chain[name] for name in CHAIN_OPTIONS[:6]})
    return ChainTimesteps(chain_gammas((1 - betas).cumprod(0)), chain), betas


def visits_of(config: Mapping[str, object], timestep_map: TimestepMap) -> Visits:
    """What a configuration says to visit: its `gammas`, or else its chain, or for a VDM from `gamma_min` to `gamma_max`."""
    gammas = config["gammas"]
    if gammas is None and _is_of_chain(config):
        return ChainVisits(timestep_map, config["set_alpha_to_one"])
    gammas = [config["gamma_min"], config["gamma_max"]] if gammas is None else gammas
    return ScheduleVisits(timestep_map, TableSchedule(gammas, config["times"]))


def _is_of_chain(config: Mapping[str, object]) -> bool:
    """Whether the denoiser is told the index of a β-chain. A VDM has `trained_betas` too, but beside its `gammas`."""
    return config["beta_schedule"] is not None or (config["trained_betas"] is not None and config["gammas"] is None)


def _before(gammas: Tensor, last: Tensor) -> Tensor:
    return torch.cat([gammas[1:], last[None]])


def _shown(timesteps: Tensor) -> str:
    values = timesteps.flatten().tolist()
    return str(values) if len(values) <= 20 else f"{str(values[:20])[:-1]}, ...]"
