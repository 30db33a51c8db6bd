"""Noise schedules: `t in [0, 1] -> gamma = -log SNR`, strictly increasing, from data (t = 0) to noise (t = 1).

A schedule is a class with one method, `forward`; the base class derives the rest from it. Most schedules are a curve pinned
to two end points, and say only what the curve is.
"""

import copy
import inspect
import math
import os
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from scipy.optimize.elementwise import find_root
from torch import Tensor, nn
from torch.nn.functional import softplus

from .guards.arguments import Within, checked
from .guards.loading import loading
from .guards.plain_config import PlainConfigMixin
from .precision import FullPrecisionModule, at_least_float32, highest_precision, in_full_precision, is_half


NOISE_SCHEDULES: dict[str, type["NoiseSchedule"]] = {}
"""Every schedule by its name in options and saved configurations. Defining a class adds it."""

MAX_GAMMA = 80.0
"""The largest gamma of either sign: beyond it float32 can't hold the signal-to-noise ratio."""

MAX_TABLE_GAMMA = 2 * MAX_GAMMA
"""The largest in tables and timesteps, since chains reach further: float32 still holds the square root of the ratio."""

Size = Annotated[int, Within(1, 2**20)]


class NoiseSchedule(FullPrecisionModule, ModelMixin, PlainConfigMixin, ABC):
    """Base class of all noise schedules, fixed and learnable.

    Gammas are float32 at least, whatever the autocast, the dtype of `t` and the one that the model is moved to or loaded in;
    float64 times give float64 gammas. A subclass is one of `NOISE_SCHEDULES`, and so can be loaded, by being defined. The
    arguments of its constructor are its configuration, `gamma_min` and `gamma_max` among them unless it has such properties.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "with_derivative", "with_interior"):
            if name in vars(cls):
                setattr(cls, name, in_full_precision(vars(cls)[name]))
        if not any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls)):
            _register(cls)
            _keep_arguments(cls)

    def __getattr__(self, name: str):
        # not ModelMixin's, which finds options as well, so that a parameter could not have the name of its option
        return nn.Module.__getattr__(self, name)

    @property
    def device(self) -> torch.device:
        """That of its parameters and buffers; the CPU if it has none."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "NoiseSchedule":
        """
        As in diffusers, but in float32 at least; and on a class that is abstract, of the class that was saved.

        Raises `ValueError` if that is not defined, or if the files are not those of a schedule; `OSError` if there are none.
        """
        for name in ("torch_dtype", "dtype"):
            if isinstance(kwargs.get(name), torch.dtype) and is_half(kwargs[name]):
                del kwargs[name]
        with loading(f"The noise schedule of {str(pretrained_model_name_or_path)!r}"):
            saved = cls.load_config(pretrained_model_name_or_path, **kwargs)
            if cls.__name__ not in NOISE_SCHEDULES:
                cls = _saved_class(saved.get("_class_name"))
            schedule = cls.from_config(saved)
            if not schedule.state_dict():  # nothing but the configuration was saved
                return schedule.eval()
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_schedule(cls, schedule: "NoiseSchedule", **kwargs) -> "NoiseSchedule":
        """
        A schedule of this class that starts where another one is, such as the chain of a model to be trained on.

        Its end points are the other's, in float32, so that the continuous-time bound of a model is the same; between them it
        is as near as [`~NoiseSchedule.take_shape`] makes it. `kwargs` are further arguments of the constructor.
        """
        gamma_0, gamma_1 = (end.item() for end in schedule.end_points())
        started = cls(gamma_min=gamma_0, gamma_max=gamma_1, **kwargs)
        with torch.no_grad():
            started.take_shape(schedule)
        return started

    def take_shape(self, schedule: "NoiseSchedule") -> None:
        """Make the interior as near to another schedule's, of the same end points, as parameters can; here it has none."""

    @torch.no_grad()
    def shifted(self, ratio: float) -> "TableSchedule":
        """
        This schedule for images of `ratio` times the height and width, `gamma + 2 log ratio`, as a table.

        The mean of `ratio²` pixels, at the resolution that the schedule was made for, then has the same noise as before
        ([Hoogeboom et al. 2023](https://arxiv.org/abs/2301.11093)). `ValueError` unless `ratio` is positive.
        """
        if not ratio > 0:
            raise ValueError(f"`ratio` is {ratio!r}, but must be positive: how many times as high and wide images are.")
        times, gammas = self.table()
        return TableSchedule((gammas + 2 * math.log(ratio)).tolist(), times.tolist())

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """`gamma(t)`, shaped as `t`, for times in [0, 1]; differentiable in forward and reverse mode."""

    @property
    def gamma_min(self) -> float:
        """The configured `gamma(0)`: where a learnable schedule starts from, and what its denoiser's timestep 0 means."""
        return self._configured("gamma_min")

    @property
    def gamma_max(self) -> float:
        """The configured `gamma(1)`: where a learnable schedule starts from, and what its denoiser's last timestep means."""
        return self._configured("gamma_max")

    def _configured(self, name: str) -> float:
        config = getattr(self, "config", {})
        if name not in config:
            raise ValueError(
                f"{type(self).__name__} does not say its `{name}`: give its constructor an argument of this name, or define it"
                " as a property."
            )
        return config[name]

    @in_full_precision
    def with_derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(gamma(t), dgamma/dt)`, both shaped as `t`, by forward-mode differentiation."""
        return _with_derivative(self.forward, t)

    def with_interior(self, t: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """
        As [`~NoiseSchedule.with_derivative`], and the tensors, shaped as `t`, through which both depend on what lies between
        the end points: a gradient scaled there is scaled for the interior, not for the end points.

        There are none unless the end points are parameters of their own.
        """
        return *self.with_derivative(t), ()

    def fix_end_points(self) -> None:
        """Learn nothing but the interior from now on; `ValueError` where the end points are not parameters of their own."""
        if any(True for _ in self.parameters()):
            raise ValueError(
                f"The end points of {type(self).__name__} are not parameters of their own and so can't be kept: choose another"
                " schedule."
            )

    def end_points(self) -> tuple[Tensor, Tensor]:
        """`(gamma(0), gamma(1))`, scalars: all that the continuous-time bound depends on."""
        return self.chain(1).unbind()

    def chain(self, num_steps: int) -> Tensor:
        """`gamma(i/T)` for i = 0, ..., T, shape `(T + 1,)`: the discrete chain that the schedule stands for.

        Float64, except on devices that lack it; differentiable in the parameters of a learnable schedule.
        """
        times = torch.linspace(0, 1, num_steps + 1, dtype=highest_precision(self.device), device=self.device)
        return self(times)

    def alphas(self, num_steps: int) -> Tensor:
        """The coefficients `α_i = ᾱ_i / ᾱ_{i-1}` of `q(x_i|x_{i-1}) = N(√α_i x_{i-1}, (1-α_i) I)`, i = 1, ..., T, shape `(T,)`.

        `ᾱ_i = sigmoid(-gamma(i/T))`; index 0 is the least noisy latent, `z_0` of the paper.
        """
        gamma = self.chain(num_steps)
        return torch.exp(softplus(gamma[:-1]) - softplus(gamma[1:]))

    @torch.no_grad()
    def table(self, num_intervals: int = 2000) -> tuple[Tensor, Tensor]:
        """Knots `(times, gammas)`, each `(num_intervals + 1,)`, float64 on the CPU, for [`TableSchedule`] to interpolate.

        They are equidistant in the mean of `t` and of normalised `gamma`, hence dense wherever the curve is steep: neither
        jumps by more than `2 / num_intervals` of its range.
        """
        schedule = copy.deepcopy(self).cpu().double()
        gamma_0, gamma_1 = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))

        def distance(time: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            t = torch.from_numpy(time)
            return ((t + (schedule(t) - gamma_0) / (gamma_1 - gamma_0)) / 2).numpy() - wanted

        wanted = np.linspace(0, 1, num_intervals + 1)[1:-1]
        inside = find_root(distance, (np.zeros_like(wanted), np.ones_like(wanted)), args=(wanted,)).x
        times = torch.from_numpy(np.concatenate([[0.0], inside, [1.0]]))
        return times, schedule(times)


def _register(schedule: type[NoiseSchedule]) -> None:
    """Add a class to `NOISE_SCHEDULES`, or define it again, as in a notebook; `ValueError` if another one has its name."""
    known = NOISE_SCHEDULES.get(schedule.__name__, schedule)
    if (known.__module__, known.__qualname__) != (schedule.__module__, schedule.__qualname__):
        raise ValueError(
            f"There is a noise schedule {schedule.__name__} already, {known.__module__}.{known.__qualname__}: saved models are"
            " loaded by this name, so choose another."
        )
    NOISE_SCHEDULES[schedule.__name__] = schedule


def _keep_arguments(schedule: type[NoiseSchedule]) -> None:
    """Make the arguments of its own constructor its configuration, without which they would be lost in saving."""
    init = vars(schedule).get("__init__")
    if init is None or hasattr(init, "__wrapped__"):
        return
    kinds = {parameter.kind for parameter in inspect.signature(init).parameters.values()}
    if not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        schedule.__init__ = register_to_config(init)


def _saved_class(name: object) -> type[NoiseSchedule]:
    if not isinstance(name, str) or name not in NOISE_SCHEDULES:
        raise ValueError(
            f"it is a {name}, which is none of {', '.join(NOISE_SCHEDULES)}: import the module that defines it before loading."
        )
    return NOISE_SCHEDULES[name]


class PinnedSchedule(NoiseSchedule, ABC):
    """A curve, renormalised so that it runs from `gamma_0` to `gamma_1` exactly: parameters if learnable, else buffers.

    Raises `ValueError` unless `gamma_min < gamma_max`, both between `-MAX_GAMMA` and `MAX_GAMMA`.
    """

    @checked
    def __init__(self, gamma_min: float, gamma_max: float, learnable: bool):
        super().__init__()
        _check_end_points(gamma_min, gamma_max)
        for name, value in (("gamma_0", gamma_min), ("gamma_1", gamma_max)):
            value = torch.tensor(float(value), dtype=torch.float32)
            if learnable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @abstractmethod
    def curve(self, t: Tensor) -> Tensor:
        """Any strictly increasing function of `t`, shaped as `t`."""

    def curve_with_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The curve and its derivative, by forward-mode differentiation unless a schedule has a closed form."""
        return _with_derivative(self.curve, t)

    def end_points(self) -> tuple[Tensor, Tensor]:
        return at_least_float32(self.gamma_0), at_least_float32(self.gamma_1)

    def fix_end_points(self) -> None:
        self.gamma_0.requires_grad_(False)
        self.gamma_1.requires_grad_(False)

    def forward(self, t: Tensor) -> Tensor:
        ends = torch.linspace(0, 1, 2, dtype=t.dtype, device=t.device)
        start, end, inside = self.curve(torch.cat([ends, t.flatten()])).split([1, 1, t.numel()])
        return self._between_end_points(((inside - start) / (end - start)).reshape(t.shape))

    def with_derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.with_interior(t)[:2]

    def with_interior(self, t: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        # apart from the slope, which may be infinite at an end of the curve: its gradient would be NaN, times 0
        start, end = self.curve(torch.linspace(0, 1, 2, dtype=t.dtype, device=t.device)).unbind()
        curve, slope = self.curve_with_slope(t.flatten())
        rise = end - start
        progress, rate = ((curve - start) / rise).reshape(t.shape), (slope / rise).reshape(t.shape)
        return self._between_end_points(progress), (self.gamma_1 - self.gamma_0) * rate, (progress, rate)

    def _between_end_points(self, progress: Tensor) -> Tensor:
        return (1 - progress) * self.gamma_0 + progress * self.gamma_1


def _check_end_points(gamma_min: float, gamma_max: float) -> None:
    low, high = gamma_min, gamma_max
    if not (-MAX_GAMMA <= low < high <= MAX_GAMMA and torch.tensor(float(low)) < torch.tensor(float(high))):
        raise ValueError(
            f"`gamma_min` is {gamma_min} and `gamma_max` is {gamma_max}, but gamma is -log SNR, which rises from data to"
            f" noise: give two finite numbers from {-MAX_GAMMA:g} to {MAX_GAMMA:g}, with `gamma_min` below `gamma_max`."
        )


class LinearSchedule(PinnedSchedule):
    """`gamma` linear in `t`: the log-SNR-linear schedule."""

    @register_to_config
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0):
        super().__init__(gamma_min, gamma_max, learnable=False)

    def curve(self, t: Tensor) -> Tensor:
        return t


class TruncatedSchedule(PinnedSchedule, ABC):
    """The piece of a fixed curve over (0, 1) that lies between `gamma_min` and `gamma_max`, traversed at constant speed.

    A curve is a function of `u` and of its complement `v = 1 - u`, so that it is as precise near 1 as near 0.
    """

    def __init__(self, gamma_min: float, gamma_max: float):
        super().__init__(gamma_min, gamma_max, learnable=False)
        try:
            self.start, self.end = self.u_and_v(float(gamma_min)), self.u_and_v(float(gamma_max))
            rises = self.start[0] < self.end[0] and all(map(math.isfinite, (*self.start, *self.end)))
        except (ArithmeticError, ValueError):
            rises = False
        if not rises:
            raise ValueError(
                f"The curve of {type(self).__name__} reaches no further than float64 can tell, so it has no piece from"
                f" `gamma_min` {gamma_min} to `gamma_max` {gamma_max}: choose less extreme parameters."
            )

    @abstractmethod
    def gamma_at(self, u: Tensor, v: Tensor) -> Tensor:
        """The curve, shaped as `u`."""

    @abstractmethod
    def u_and_v(self, gamma: float) -> tuple[float, float]:
        """Its inverse."""

    def curve(self, t: Tensor) -> Tensor:
        return self.gamma_at(*((1 - t) * start + t * end for start, end in zip(self.start, self.end)))


class CosineSchedule(TruncatedSchedule):
    """`alpha = cos(πu/2)`, so `gamma = 2 log tan(πu/2)` (Nichol & Dhariwal 2021, without their offset)."""

    @register_to_config
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0):
        super().__init__(gamma_min, gamma_max)

    def gamma_at(self, u: Tensor, v: Tensor) -> Tensor:
        return 2 * (torch.sin(math.pi / 2 * u).log() - torch.sin(math.pi / 2 * v).log())

    def u_and_v(self, gamma: float) -> tuple[float, float]:
        return 2 / math.pi * math.atan(math.exp(gamma / 2)), 2 / math.pi * math.atan(math.exp(-gamma / 2))


class BetaLinearSchedule(TruncatedSchedule):
    """DDPM's chain in continuous time: `alpha² = exp(-∫β)` with β rising linearly, so `gamma = log expm1(∫β)` (Ho et al. 2020).

    `beta_start` and `beta_end` are those of a chain of 1000 steps, as diffusers configures it.
    """

    @register_to_config
    @checked
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, beta_start: float = 1e-4, beta_end: float = 0.02):
        if not 0 < beta_start < beta_end < 1:
            raise ValueError(
                f"`beta_start` ({beta_start}) must be positive and below `beta_end` ({beta_end}), and that below 1."
            )
        self.slope, self.curvature = 1000 * beta_start, 500 * (beta_end - beta_start)
        super().__init__(gamma_min, gamma_max)

    def gamma_at(self, u: Tensor, v: Tensor) -> Tensor:
        integral = (self.slope + self.curvature * u) * u
        return integral + torch.log(-torch.expm1(-integral))

    def u_and_v(self, gamma: float) -> tuple[float, float]:
        integral = max(gamma, 0.0) + math.log1p(math.exp(-abs(gamma)))
        u = 2 * integral / (self.slope + math.sqrt(self.slope**2 + 4 * self.curvature * integral))
        return u, 1 - u


class SigmoidSchedule(TruncatedSchedule):
    """`alpha²` falling as a sigmoid between `start` and `end` at temperature `tau` (Jabri et al. 2022, "sigmoid").

    Differences of sigmoids are quotients of hyperbolic sines, which leaves `gamma = log(sinh(ku) / sinh(kv)) + offset` with
    `k = (end - start) / (2 tau)`.
    """

    @register_to_config
    @checked
    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
    ):
        if not (start < end and tau > 0 and max(-start, end) <= 200 * tau):
            raise ValueError(
                f"`start` ({start}) must be below `end` ({end}), both less than 200 `tau` from 0, and `tau` ({tau}) positive."
            )
        self.k = (end - start) / (2 * tau)
        self.offset = math.log(math.cosh(end / (2 * tau)) / math.cosh(start / (2 * tau)))
        super().__init__(gamma_min, gamma_max)

    def gamma_at(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.sinh(self.k * u).log() - torch.sinh(self.k * v).log() + self.offset

    def u_and_v(self, gamma: float) -> tuple[float, float]:
        def inverse(log_odds: float) -> float:
            return math.atanh(math.sinh(self.k) / (math.exp(-log_odds) + math.cosh(self.k))) / self.k

        return inverse(gamma - self.offset), inverse(self.offset - gamma)


class TableSchedule(NoiseSchedule):
    """Monotone C¹ interpolation of given gammas: how a schedule travels in a scheduler's configuration.

    Args:
        gammas (`list[float]`): strictly increasing values of gamma, at least two.
        times (`list[float]`, *optional*): where they are taken, strictly increasing from 0 to 1. Defaults to equidistant.

    Raises `ValueError` for tables that break these rules or have more than `MAX_LENGTH` entries.
    """

    @register_to_config
    def __init__(self, gammas: Sequence[float], times: Sequence[float] | None = None):
        super().__init__()
        gammas = as_vector("gammas", gammas)
        times = torch.linspace(0, 1, len(gammas), dtype=torch.float64) if times is None else as_vector("times", times)
        _check_table(times, gammas)
        self.register_to_config(gammas=gammas.tolist(), times=times.tolist())
        self.register_buffer("knot_times", times)
        self.register_buffer("knot_gammas", gammas)

    @classmethod
    def from_schedule(cls, schedule: NoiseSchedule, num_intervals: int = 2000) -> "TableSchedule":
        """A table of another schedule, with `num_intervals` intervals."""
        times, gammas = schedule.table(num_intervals)
        return cls(gammas.tolist(), times.tolist())

    @property
    def gamma_min(self) -> float:
        return self.config.gammas[0]

    @property
    def gamma_max(self) -> float:
        return self.config.gammas[-1]

    def forward(self, t: Tensor) -> Tensor:
        return self.with_derivative(t)[0]

    def with_derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma, slope = monotone_cubic(self.knot_times, self.knot_gammas, t)
        return gamma.to(t.dtype), slope.to(t.dtype)


class LearnedLinearSchedule(PinnedSchedule):
    """Log-SNR linear between two learned end points."""

    @register_to_config
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0):
        super().__init__(gamma_min, gamma_max, learnable=True)

    def curve(self, t: Tensor) -> Tensor:
        return t


class LearnedMonotoneSchedule(PinnedSchedule):
    """The paper's learned schedule (appendix H): a monotone network between two learned end points.

    A mixture of `num_features` sigmoids of `t` with positive slopes, and a thousandth of `t` itself, which keeps it strictly
    increasing. The sigmoids begin as a tiling of [0, 1], the narrower the nearer to either end, where optimal schedules are
    steep: it begins somewhat steeper there than log-SNR linear, from which it differs by 7 % of its range at most.
    """

    @register_to_config
    @checked
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, num_features: Size = 1024):
        super().__init__(gamma_min, gamma_max, learnable=True)
        center = torch.sigmoid(torch.linspace(-6, 6, num_features))
        width = center * (1 - center)
        self.log_slope = nn.Parameter(torch.log(2 / width))
        self.bias = nn.Parameter(-2 * center / width)
        self.logits = nn.Parameter(0.7 * torch.log(width))

    def take_shape(self, schedule: NoiseSchedule) -> None:
        """Tile not [0, 1] but the other curve: places between even time and even gamma, then weights of greatest likelihood."""
        times, gammas = schedule.table()
        places = torch.sigmoid(torch.linspace(-6, 6, len(self.logits), dtype=times.dtype))
        center, speed = monotone_cubic(torch.linspace(0, 1, len(times), dtype=times.dtype), times, places)
        slope = 2 / (places * (1 - places) * speed)
        features = torch.sigmoid(slope * (times[:, None] - center))
        mass = features[-1] - features[0]
        shares = mixture_shares(features.diff(dim=0) / mass, times.diff(), gammas.diff() / (gammas[-1] - gammas[0]))
        for parameter, value in zip((self.log_slope, self.bias, self.logits), (slope.log(), -slope * center, shares / mass)):
            parameter.copy_(value)
        self.logits.log_()

    def curve(self, t: Tensor) -> Tensor:
        features = torch.sigmoid(self.log_slope.exp() * t[..., None] + self.bias)
        return 1e-3 * t + (self.logits.softmax(0) * features).sum(-1)

    def curve_with_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slopes, weights = self.log_slope.exp(), self.logits.softmax(0)
        features = torch.sigmoid(slopes * t[..., None] + self.bias)
        curve = 1e-3 * t + (weights * features).sum(-1)
        return curve, 1e-3 + (weights * slopes * (features - features**2)).sum(-1)


class LearnedChainSchedule(PinnedSchedule):
    """A chain of `num_steps` free steps between two learned end points: each α_i of the chain is a parameter.

    The increments of gamma are a softmax, with 1e-4 of their sum spread evenly so that none vanishes; between the times
    `i / num_steps` gamma is interpolated as in [`TableSchedule`].
    """

    @register_to_config
    @checked
    def __init__(self, num_steps: Size, gamma_min: float = -13.3, gamma_max: float = 5.0):
        super().__init__(gamma_min, gamma_max, learnable=True)
        self.logits = nn.Parameter(torch.zeros(num_steps))

    def take_shape(self, schedule: NoiseSchedule) -> None:
        """That of the other's chain: exact at its knots, except for steps that are below 1e-4 of the mean one."""
        steps = schedule.chain(len(self.logits)).diff()
        self.logits.copy_((steps / steps.sum() - 1e-4 / len(steps)).clamp(min=1e-12).log())

    def curve(self, t: Tensor) -> Tensor:
        return self.curve_with_slope(t)[0]

    def curve_with_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        dtype = highest_precision(t.device)
        steps = (1 - 1e-4) * self.logits.to(dtype).softmax(0) + 1e-4 / len(self.logits)
        knots = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        times = torch.linspace(0, 1, len(knots), dtype=dtype, device=t.device)
        curve, slope = monotone_cubic(times, knots, t)
        return curve.to(t.dtype), slope.to(t.dtype)


class LearnedUnpinnedSchedule(NoiseSchedule):
    """A line plus a monotone network, not renormalised, as in the authors' code: its end points are wherever learning goes.

    `gamma(t) = intercept + |slope| t + mean_k |weight_k| tanh((|rate_k| (2t - 1) + shift_k) / 2)`, k = 1, ..., `num_features`,
    which may be 0. It begins as that code begins: at `gamma_min` and `gamma_max` up to 1e-4.

    Raises `ValueError` unless `gamma_min < gamma_max`, both between `-MAX_GAMMA` and `MAX_GAMMA`.
    """

    @register_to_config
    @checked
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, num_features: Annotated[int, Within(0, 2**20)] = 1024):
        super().__init__()
        _check_end_points(gamma_min, gamma_max)
        self.intercept = nn.Parameter(torch.tensor(float(gamma_min)))
        self.slope = nn.Parameter(torch.tensor(float(gamma_max - gamma_min)))
        if num_features:
            self.rate = nn.Parameter(0.01 * torch.randn(num_features))
            self.shift = nn.Parameter(torch.zeros(num_features))
            self.weight = nn.Parameter(0.01 * torch.randn(num_features))

    def take_shape(self, schedule: NoiseSchedule) -> None:
        """None but a line, which leads to the other's end points whatever the network is."""
        start, end = self(torch.tensor([0.0, 1.0])) - torch.tensor([self.gamma_min, self.gamma_max])
        self.intercept.sub_(start)
        self.slope.sub_(end - start)

    def forward(self, t: Tensor) -> Tensor:
        line = self.intercept + self.slope.abs() * t
        return line + self._network(t) if self.config.num_features else line

    def _network(self, t: Tensor) -> Tensor:
        features = torch.tanh((self.rate.abs() * (2 * t[..., None] - 1) + self.shift) / 2)
        return (self.weight.abs() * features).mean(-1)


def _with_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))


def monotone_cubic(times: Tensor, values: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The C¹ monotone cubic through `values` `(N,)` at `times` `(N,)` and its derivative, at `t` (Fritsch & Butland 1984).

    For strictly increasing values the derivative is positive everywhere: inner slopes are weighted harmonic means of the
    neighbouring secants, and the parabolic slopes of the two ends are kept within a factor of two of theirs.
    """
    step = times.diff()
    secant = values.diff() / step
    slopes = secant.expand(2) if len(secant) == 1 else _slopes(step, secant)
    index = torch.searchsorted(times, t.detach().to(times.dtype).contiguous(), right=True).sub(1).clamp(0, len(step) - 1)
    h, mean, start, end = step[index], secant[index], slopes[index], slopes[index + 1]
    u = (t - times[index]) / h
    square, cube = 3 * mean - 2 * start - end, start + end - 2 * mean
    return values[index] + h * u * (start + u * (square + u * cube)), start + u * (2 * square + 3 * u * cube)


def _slopes(step: Tensor, secant: Tensor) -> Tensor:
    before, after = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    inner = (before + after) / (before / secant[:-1] + after / secant[1:])
    return torch.cat([_end_slope(step, secant), inner, _end_slope(step.flip(0), secant.flip(0))])


def _end_slope(step: Tensor, secant: Tensor) -> Tensor:
    parabola = ((2 * step[:1] + step[1:2]) * secant[:1] - step[:1] * secant[1:2]) / (step[:1] + step[1:2])
    return parabola.clamp(secant[:1] / 2, secant[:1] * 2)


def mixture_shares(components: Tensor, line: Tensor, increments: Tensor, num_iterations: int = 100) -> Tensor:
    """
    The shares `(K,)` of a mixture that is likeliest to have made the increments of a curve, by expectation maximisation.

    Args:
        components (`Tensor` of shape `(N, K)`): The increments of each component, whose sums are 1.
        line (`Tensor` of shape `(N,)`): Those of one more, whose share remains a thousandth.
        increments (`Tensor` of shape `(N,)`): Those of the curve.
    """
    shares = components.new_full(components.shape[1:], 1 / components.shape[1])
    for _ in range(num_iterations):
        shares = shares * (components.T @ (increments / (components @ shares + 1e-3 * line)))
        shares = 0.999 * shares / shares.sum()
    return shares


MAX_LENGTH = 100_000
"""The most entries of a table or a chain in a configuration; published ones have 4,000 at most."""


def as_vector(name: str, values: Sequence[float]) -> Tensor:
    """A list of numbers from a configuration, float64, `(N,)`; `ValueError` for what is none or longer than `MAX_LENGTH`."""
    if hasattr(values, "__len__") and not isinstance(values, (str, bytes, dict)) and len(values) > MAX_LENGTH:
        raise ValueError(f"`{name}` has {len(values):,} elements, but {MAX_LENGTH:,} are the most that it may have.")
    try:
        if isinstance(values, Tensor):
            values = (values.double() if values.is_floating_point() else values).detach().cpu().numpy()
        array = np.asarray(values)
    except ValueError:  # lists of different lengths in a list
        array = None
    if array is None or array.ndim != 1 or array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"`{name}` is {reprlib.repr(values)}, but it must be a list of numbers.")
    return torch.from_numpy(array.astype(np.float64))


def _check_table(times: Tensor, gammas: Tensor) -> None:
    if gammas.ndim != 1 or len(gammas) < 2 or times.shape != gammas.shape:
        raise ValueError(
            f"A table needs at least two gammas and as many times, but `gammas` has the shape {tuple(gammas.shape)} and"
            f" `times` {tuple(times.shape)}."
        )
    if not (gammas.isfinite().all() and (gammas.diff() > 0).all()):
        raise ValueError("`gammas` must be finite and strictly increasing: gamma is -log SNR, from data to noise.")
    if max(-gammas[0], gammas[-1]) > MAX_TABLE_GAMMA:
        raise ValueError(f"`gammas` must be from {-MAX_TABLE_GAMMA:g} to {MAX_TABLE_GAMMA:g}: beyond, float32 has no SNR.")
    if times[0] != 0 or times[-1] != 1 or not (times.diff() > 0).all():
        raise ValueError("`times` must increase strictly from 0 (data) to 1 (noise).")
