"""The timesteps with which few steps of a sampler come nearest to many, found without images and without training.

1. A fine trajectory of the model, without fresh noise, tells the local error of one step between any two of its points.
2. Dynamic programming finds the chains whose local errors add up to least.
3. The best of these, and of the sampler's own timesteps, is reshaped such that its samples come nearest to the fine sampler's.
4. Other seeds decide which is kept.

A sampler that adds fresh noise is searched for without it, image by image: as sets, images of few seeds tell nothing.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import SchedulerMixin
from scipy.optimize import minimize
from torch import Tensor

from ..scheduling_vdm import VDMScheduler
from .chains import best_chain
from .distances import Distance, energy_distance, squared_distance
from .sampling import Sampler
from .trajectories import local_errors


TEACHER_STEPS = 60
SEEDS, SEEDS_OF_SETS = 24, 96
SEARCHED, HELD_OUT, OF_SETS = range(SEEDS), range(SEEDS, 2 * SEEDS), range(SEEDS_OF_SETS)
"""Seeds of images that are compared one by one, first to search and then to decide; and of those that are compared as sets."""

POWERS = (1, 2)
"""Of the local errors that add up."""

NUM_SHAPES = 3
"""Degree of the polynomial by which timesteps are reshaped."""


@dataclass(frozen=True)
class Choice:
    """
    Timesteps, and how far what they sample is from the fine sampler, on seeds that nothing was searched with.

    Attributes:
        timesteps (`list[float]`): Decreasing.
        calls (`int`): Of the denoiser, for one image.
        distance ([`Distance`]): From the fine sampler.
    """

    timesteps: list[float]
    calls: int
    distance: Distance


@dataclass(frozen=True)
class Plan:
    """
    What a search takes, such that the denoiser is called at most `num_draws` times for one image in all.

    Attributes:
        is_random (`bool`): Whether the sampler adds fresh noise. It is searched for without it, and its images, which can only
            be compared as sets, are sampled in the end.
        trials (`int`): Times that some timesteps are tried, for each number of steps.
        calls (`int`): Of the denoiser.
    """

    is_random: bool
    trials: int
    calls: int


@dataclass(frozen=True)
class Probe:
    """
    What a sampler is like.

    Attributes:
        is_random (`bool`): Whether its steps add fresh noise.
        calls_a_step (`int`): Of the denoiser, at most.
    """

    is_random: bool
    calls_a_step: int


def probed(sampler: Sampler) -> Probe:
    """What few steps of one image tell of a sampler; `ValueError` for one that takes no timesteps."""
    copy.deepcopy(sampler.scheduler).set_timesteps(timesteps=Scale(sampler.scheduler).fine_timesteps(2))
    two, four = sampler(2, [0]), sampler(4, [0])
    return Probe(not torch.equal(two.draws, four.draws), -(-four.calls // 4))


def plan(probe: Probe, numbers: Sequence[int], num_draws: int) -> Plan:
    """
    The plan of a search for some numbers of steps.

    Raises `ValueError` where `num_draws` are too few for any, and for as many steps as the fine sampler takes.
    """
    if max(numbers) >= TEACHER_STEPS:
        raise ValueError(
            f"`num_inference_steps` is {max(numbers)}, but few steps are compared with {TEACHER_STEPS}: give less than that."
        )
    steps = sum(numbers)
    calls_a_step = 1 if probe.is_random else probe.calls_a_step
    fixed = TEACHER_STEPS * calls_a_step * 2 * SEEDS + 3 * steps * probe.calls_a_step  # of one image, to see what is visited
    if probe.is_random:
        fixed += (TEACHER_STEPS + 2 * steps) * probe.calls_a_step * SEEDS_OF_SETS
    trial = calls_a_step * steps * SEEDS
    trials = (num_draws - fixed) // trial - 2  # as many decide in the end
    if trials <= len(POWERS):
        needed = fixed + (len(POWERS) + 3) * trial
        raise ValueError(f"`num_draws` is {num_draws:,}, but timesteps for {list(numbers)} steps need {needed:,}.")
    return Plan(probe.is_random, trials, fixed + (trials + 2) * trial)


class Search:
    """
    The search for the timesteps of one sampler.

    Args:
        sampler ([`Sampler`]): The one that few steps are taken with.
        plan ([`Plan`]): How many images and trials it takes.
    """

    def __init__(self, sampler: Sampler, plan: Plan):
        self.sampler, self.plan, self.scale = sampler, plan, Scale(sampler.scheduler)
        self.still = sampler.without_noise() if plan.is_random else sampler
        grid = self.scale.fine_timesteps(TEACHER_STEPS)
        fine = self.still(grid, SEARCHED, keep_points=True)
        self.ends, self.ends_held_out = fine.ends, self.still(grid, HELD_OUT).ends
        self.set = sampler(grid, OF_SETS).ends if plan.is_random else None
        self.points = fine.points()
        gammas = self.scale.gamma(self.points.timesteps)
        self.errors = local_errors(self.points, gammas, self.scale.end, self.scale.prediction_type)

    def best(self, num_inference_steps: int) -> tuple[Choice, Choice]:
        """The sampler's own timesteps for so many steps, and the best ones, which may be the same."""
        own = self.sampler(num_inference_steps, SEARCHED[:1]).visited()
        choices = [own, *(self._chain(num_inference_steps, power) for power in POWERS)]
        distances = [self._distance(timesteps) for timesteps in choices]
        least = min(range(len(choices)), key=distances.__getitem__)
        better = self._reshaped(choices[least], distances[least], self.plan.trials - len(choices))
        held_out = [squared_distance(self.still(chosen, HELD_OUT).ends, self.ends_held_out) for chosen in (own, better)]
        chosen = better if held_out[1].value < held_out[0].value else own
        return self._choice(own, held_out[0]), self._choice(chosen, min(held_out, key=lambda distance: distance.value))

    def _chain(self, num_steps: int, power: float) -> list[float]:
        """The timesteps whose local errors, to that power, add up to least."""
        labels = torch.tensor([*self.points.timesteps, -1.0], dtype=torch.float64).flip(0)
        return self.scale.fit(best_chain(self.errors**power, labels, num_steps)[1:].flip(0))

    def _distance(self, timesteps: Sequence[float]) -> float:
        value = squared_distance(self.still(timesteps, SEARCHED).ends, self.ends).value
        return value if math.isfinite(value) else math.inf

    def _choice(self, timesteps: list[float], distance: Distance) -> Choice:
        """Timesteps with their distance, which is given unless it is one of sets."""
        if self.set is None:
            return Choice(timesteps, self.sampler(timesteps, SEARCHED[:1]).calls, distance)
        sampled = self.sampler(timesteps, OF_SETS)
        return Choice(timesteps, sampled.calls, energy_distance(sampled.ends, self.set))

    def _reshaped(self, timesteps: list[float], distance: float, trials: int) -> list[float]:
        """The best reshaping of timesteps that so many trials find."""
        found = [(distance, timesteps)]

        def trial(shape: Tensor) -> float:
            reshaped = self.scale.reshape(timesteps, shape)
            found.append((self._distance(reshaped), reshaped))
            return found[-1][0]

        if trials > 0 and len(timesteps) > 1:
            simplex = [[0.0] * NUM_SHAPES, *(0.4 * torch.eye(NUM_SHAPES)).tolist()]
            minimize(trial, simplex[0], method="Nelder-Mead", options={"maxfev": trials, "initial_simplex": simplex})
        return min(found)[1]


class Scale:
    """The noise levels of a scheduler's timesteps, and which timesteps it takes."""

    def __init__(self, scheduler: SchedulerMixin):
        model = VDMScheduler.from_config(scheduler.config)
        self.timestep_map, self.prediction_type = model.timestep_map, model.config.prediction_type
        self.is_whole = model.noise_schedule is None or not isinstance(scheduler, VDMScheduler)
        self.end = model.gamma_0
        self.low, self.high = model.timestep_range
        if not isinstance(scheduler, VDMScheduler):
            self.end = torch.tensor(-torch.inf, dtype=torch.float64)
            self.low, self.high = 0.0, len(model) - 1.0
        if self.gamma([self.high]).isinf():  # a chain that ends in pure noise
            self.high -= 1

    def gamma(self, timesteps: Sequence[float]) -> Tensor:
        """`(n,)`, float64."""
        return self.timestep_map.inverse(torch.as_tensor(timesteps, dtype=torch.float64))

    def fine_timesteps(self, number: int) -> list[float]:
        """So many timesteps from the highest on, at equal distances of the mean of a timestep's share and of its gamma's."""
        every = torch.linspace(self.low, self.high, 10_001, dtype=torch.float64)
        share = (_share(every) + _share(self.gamma(every))) / 2
        wanted = torch.linspace(1, 0, number + 1, dtype=torch.float64)[:-1]
        return self.fit(torch.from_numpy(np.interp(wanted, share, every)))

    def reshape(self, timesteps: Sequence[float], shape: Sequence[float]) -> list[float]:
        """As many timesteps, their distances in gamma multiplied by the exponential of a polynomial of their place."""
        gammas = torch.cat([self.gamma(timesteps), self.gamma([self.low])])
        if gammas[0] == gammas[-1]:
            return list(timesteps)
        place = np.linspace(-1, 1, len(timesteps))
        factors = np.exp(np.polynomial.legendre.legvander(place, len(shape))[:, 1:] @ np.asarray(shape))
        distances = gammas.diff() * torch.from_numpy(factors)
        distances = distances * (gammas[-1] - gammas[0]) / distances.sum()
        return self.fit(self.timestep_map(gammas[0] + torch.cat([distances.new_zeros(1), distances[:-1].cumsum(0)])))

    def fit(self, timesteps: Tensor) -> list[float]:
        """Timesteps that decrease, as near to given ones as the scheduler takes them."""
        if not self.is_whole:
            return timesteps.tolist()
        whole = timesteps.round().long().clamp(int(self.low), int(self.high)).tolist()
        for i in range(1, len(whole)):
            whole[i] = min(whole[i], whole[i - 1] - 1)
        for i in range(len(whole) - 1, -1, -1):
            whole[i] = max(whole[i], int(self.low) if i == len(whole) - 1 else whole[i + 1] + 1)
        return whole


def _share(values: Tensor) -> Tensor:
    return (values - values[0]) / (values[-1] - values[0])
