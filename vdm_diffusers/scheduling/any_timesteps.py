"""Timesteps kept for few steps in a scheduler's configuration, and schedulers of diffusers that visit these, or any others."""

import copy
import inspect
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache, wraps

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LMSDiscreteScheduler,
    SASolverScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ..noise_schedules import as_vector


KEPT = "few_step_timesteps"
"""The option that keeps them: `{class of the scheduler: {number of steps: timesteps, decreasing}}`."""

Kept = Mapping[str, Mapping[str, Sequence[float]]]

FROM_ONE_TO_THE_NEXT = (
    DDIMScheduler,
    DEISMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LMSDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
"""Classes that take no timesteps, but whose steps lead from each to the next, or may."""

OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")


def kept_timesteps(scheduler: SchedulerMixin, num_inference_steps: int) -> list[float] | None:
    """What the configuration keeps for this class of scheduler and number of steps; `ValueError` for what can't be kept."""
    kept = scheduler.config.get(KEPT)
    if kept is None:
        return None
    check_kept(kept)
    timesteps = kept.get(type(scheduler).__name__, {}).get(str(num_inference_steps))
    return None if timesteps is None else list(timesteps)


def check_kept(kept: object) -> None:
    """Raise `ValueError` unless it is `None`, or timesteps by the class of the scheduler and the number of steps."""
    if kept is None:
        return
    if not isinstance(kept, Mapping) or not all(isinstance(lists, Mapping) for lists in kept.values()):
        raise ValueError(f"`{KEPT}` must be {{class of the scheduler: {{number of steps: timesteps}}}}.")
    for name, lists in kept.items():
        for number, timesteps in lists.items():
            vector = as_vector(KEPT, timesteps)
            if not len(vector) == _number(number) > 0 or not (vector.diff() < 0).all() or not vector.isfinite().all():
                raise ValueError(
                    f"`{KEPT}` of {name} for {number} steps must be {number} timesteps that decrease, but are"
                    f" {reprlib.repr(list(timesteps))}."
                )


def _number(text: object) -> int:
    return int(text) if str(text).isdecimal() else 0


def keep_timesteps(scheduler: SchedulerMixin, timesteps: Sequence[float]) -> None:
    """Keep timesteps in the configuration of a scheduler, for its class and their number, beside those that it has."""
    kept = {name: dict(lists) for name, lists in (scheduler.config.get(KEPT) or {}).items()}
    kept.setdefault(type(scheduler).__name__, {})[str(len(timesteps))] = list(timesteps)
    check_kept(kept)
    scheduler.register_to_config(**{KEPT: kept})


def with_timesteps(scheduler: SchedulerMixin) -> SchedulerMixin:
    """
    The same scheduler, but one that takes `timesteps`, also if its class does not, and that takes those that its configuration
    keeps for a number of steps where there are some.

    It is still one of its class: pipelines take it, and save it by the name of that class. A [`VDMScheduler`] does so anyway
    and is returned itself. `set_timesteps` of classes whose steps lead otherwise than from one timestep to the next, such as
    PNDM's, raises `ValueError` when it is given some.
    """
    if isinstance(scheduler, AnyTimesteps) or KEPT in inspect.signature(type(scheduler)).parameters:
        return scheduler
    visiting = copy.copy(scheduler)
    visiting.__class__ = _visiting(type(scheduler))
    return visiting


class AnyTimesteps:
    """What [`with_timesteps`] mixes into a class of diffusers."""


class AnyStrides(AnyTimesteps):
    """The same for DDIM, whose steps are of one stride: `num_train_timesteps // num_inference_steps`."""

    @wraps(DDIMScheduler.step)
    def step(self, model_output: Tensor, timestep: Tensor | int, *args, **kwargs):
        if isinstance(self.num_inference_steps, _Stride):
            later = self.timesteps[self.timesteps < timestep].tolist()
            self.num_inference_steps.distance = int(timestep) - (later[0] if later else -1)
        return super().step(model_output, timestep, *args, **kwargs)


class _Stride(int):
    """A number of steps that, dividing the length of a chain, gives the distance to the next timestep."""

    distance: int = 1

    def __rfloordiv__(self, length: int) -> int:
        return self.distance


@cache
def _visiting(stock: type[SchedulerMixin]) -> type[SchedulerMixin]:
    """The subclass of a class of diffusers, under its name, whose `set_timesteps` is as [`with_timesteps`] says."""
    signature = inspect.signature(stock.set_timesteps)
    takes_them = "timesteps" in signature.parameters

    def set_timesteps(self, num_inference_steps=None, device=None, *args, timesteps=None, **kwargs):
        if timesteps is None and num_inference_steps is not None and not args and kwargs.get("sigmas") is None:
            timesteps = kept_timesteps(self, num_inference_steps)
            num_inference_steps = num_inference_steps if timesteps is None else None
        if timesteps is None:
            stock.set_timesteps(self, num_inference_steps, device, *args, **kwargs)
        elif takes_them:
            stock.set_timesteps(self, num_inference_steps, device=device, timesteps=timesteps, **kwargs)
        else:
            _visit(stock, self, timesteps, device)

    if not takes_them:
        extra = inspect.Parameter("timesteps", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=list[int] | None)
        signature = signature.replace(parameters=[*signature.parameters.values(), extra])
    set_timesteps.__signature__ = signature
    set_timesteps.__doc__ = stock.set_timesteps.__doc__
    members = {"set_timesteps": set_timesteps, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (AnyStrides if issubclass(stock, DDIMScheduler) else AnyTimesteps, stock), members)


def _visit(
    stock: type[SchedulerMixin], scheduler: SchedulerMixin, timesteps: Sequence[float], device: str | torch.device | None
) -> None:
    """Have a scheduler of a class that takes no timesteps visit some."""
    name = stock.__name__
    if not issubclass(stock, FROM_ONE_TO_THE_NEXT):
        raise ValueError(f"{name} takes no `timesteps`: its steps are not from one to the next. Take another scheduler.")
    vector, last = as_vector("timesteps", timesteps), scheduler.config.num_train_timesteps - 1
    if not len(vector) or not (vector.diff() < 0).all() or not 0 <= vector[-1] <= vector[0] <= last:
        raise ValueError(f"`timesteps` must decrease, from {last} at most to 0 at least, but are {reprlib.repr(timesteps)}.")
    for option in OTHER_SPACINGS:
        if scheduler.config.get(option):
            raise ValueError(f"{name} takes no `timesteps` with `{option}`: set that to false.")
    stock.set_timesteps(scheduler, len(vector), device=device)
    if not scheduler.timesteps.is_floating_point() and (vector % 1).any():
        raise ValueError(f"`timesteps` of {name} must be whole, but are {reprlib.repr(timesteps)}.")
    if isinstance(scheduler, AnyStrides):
        scheduler.num_inference_steps = _Stride(len(vector))
    else:
        alphas_cumprod = scheduler.alphas_cumprod.cpu()
        chain = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()
        visited = torch.from_numpy(np.interp(vector.numpy(), np.arange(len(chain)), chain)).to(scheduler.sigmas)
        scheduler.sigmas = torch.cat([visited, scheduler.sigmas[-1:]])
    scheduler.timesteps = vector.to(scheduler.timesteps)
