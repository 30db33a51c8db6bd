"""The options of a scheduler: what they may be, and what configurations mean that other classes wrote, or old versions."""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real

import diffusers
import numpy as np
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin
from diffusers.utils import DummyObject

from .. import gaussian
from ..noise_schedules import MAX_LENGTH, MAX_TABLE_GAMMA
from .beta_chains import BETA_SCHEDULES, SPACINGS


VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
"""Of an ancestral step, as [`~diffusers.DDPMScheduler`] names them."""

ONLY_SPACING = {name: {"timestep_spacing": "linspace"} for name in ("UnCLIPScheduler", "DPMSolverSinglestepScheduler")}
"""Of schedulers that visit their timesteps in one way and have no option for it."""


def is_whole(value: object, low: int = -(2**63), high: int = 2**63 - 1) -> bool:
    """Whether a value is an integer, of Python or NumPy but no `bool`, from `low` to `high`."""
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_)) and low <= value <= high


def is_number(value: object, low: float = -1e300, high: float = 1e300) -> bool:
    """Whether a value is a number, of Python or NumPy but no `bool`, from `low` to `high`."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and low <= value <= high


Rule = tuple[Callable[[object], bool], str]


def _one_of(names: Mapping[str, object] | tuple[str, ...], or_none: bool = False) -> Rule:
    expected = ", ".join(f"`{name}`" for name in names)
    return lambda value: (value is None and or_none) or (isinstance(value, str) and value in names), f"one of {expected}"


GAMMA: Rule = (
    lambda value: is_number(value, -MAX_TABLE_GAMMA, MAX_TABLE_GAMMA),
    f"a number from {-MAX_TABLE_GAMMA:g} to {MAX_TABLE_GAMMA:g}",
)
POSITIVE: Rule = (lambda value: is_number(value) and value > 0, "a positive number")
SWITCH: Rule = (lambda value: isinstance(value, (bool, np.bool_)), "true or false")
RULES: dict[str, Rule] = {
    "num_train_timesteps": (
        lambda value: is_whole(value, 1, MAX_LENGTH),
        f"a whole number from 1 to {MAX_LENGTH:,}",
    ),
    "gamma_min": GAMMA,
    "gamma_max": GAMMA,
    "eta": (lambda value: value is None or is_number(value, 0, 1), "none, or a share of fresh noise between 0 and 1"),
    "variance_type": _one_of(VARIANCE_TYPES, or_none=True),
    "clip_sample": SWITCH,
    "clip_sample_range": POSITIVE,
    "thresholding": SWITCH,
    "dynamic_thresholding_ratio": (lambda value: is_number(value, 0, 1), "a number from 0 to 1"),
    "sample_max_value": POSITIVE,
    "beta_schedule": _one_of(BETA_SCHEDULES, or_none=True),
    "beta_start": (lambda value: is_number(value, 0, 1), "a number from 0 to 1"),
    "beta_end": (lambda value: is_number(value, 0, 1), "a number from 0 to 1"),
    "rescale_betas_zero_snr": SWITCH,
    "set_alpha_to_one": SWITCH,
    "timestep_spacing": _one_of(SPACINGS),
    "spacing": _one_of(("gamma", "time", "timestep"), or_none=True),
    "steps_offset": (lambda value: is_whole(value, 0, MAX_LENGTH), "a whole number, 0 or more"),
}
"""Of each option but the lists: whether a value is allowed, and the end of the sentence if not."""


def check_options(options: Mapping[str, object]) -> None:
    """Raise `ValueError` for an option that has a value of another kind than it takes."""
    for name, (holds, expected) in RULES.items():
        if not holds(options[name]):
            raise ValueError(f"`{name}` is {reprlib.repr(options[name])}, but it must be {expected}.")
    gaussian.check_prediction_type(options["prediction_type"])
    if not options["gamma_min"] < options["gamma_max"]:
        raise ValueError(
            f"`gamma_min` ({options['gamma_min']}) must be below `gamma_max` ({options['gamma_max']}): gamma is -log SNR."
        )


def complete(config: Mapping[str, object], own: type[SchedulerMixin]) -> dict[str, object]:
    """
    A configuration with the values that it leaves out, as the class that it names has them by default.

    Options that this class does not have are those of the schedulers whose steps are taken, DDPM and DDIM.

    Args:
        config (`dict`): As loaded, of a scheduler of diffusers or of ours.
        own (`type`): Our class, whose options are completed.

    Raises:
        `ValueError`: for the configuration of a sampler that visits no β-chain, and for what is no configuration.
    """
    config = _renamed(config)
    stock = _named_class(config, own)
    named = {} if stock is None else _defaults(stock)
    if not _is_variance_preserving(named | config, is_chain=stock is None or "beta_schedule" in named, own=own):
        raise ValueError(
            f"The configuration of {config.get('_class_name', 'this scheduler')} has neither gammas nor a plain β-chain, as"
            " those of flow matching, EDM, consistency models and CogVideoX: only models of a variance-preserving chain can be"
            " sampled here."
        )
    if stock is None:
        return config
    defaults = _defaults(DDIMScheduler) | _defaults(DDPMScheduler) | named | config
    return config | {name: defaults[name] for name in inspect.signature(own).parameters if name in defaults}


def _named_class(config: Mapping[str, object], own: type[SchedulerMixin]) -> type | None:
    """The class of diffusers that a configuration names, unless it is one of ours, unknown or not installed."""
    name = config.get("_class_name")
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"`_class_name` is {reprlib.repr(name)}, but it must be the name of a scheduler.")
    found = getattr(diffusers, name, None) if name else None
    return found if inspect.isclass(found) and not isinstance(found, DummyObject) and not issubclass(found, own) else None


def _defaults(scheduler: type) -> dict[str, object]:
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return defaults | ONLY_SPACING.get(scheduler.__name__, {})


def _is_variance_preserving(known: Mapping[str, object], is_chain: bool, own: type[SchedulerMixin]) -> bool:
    shifted = known.get("use_flow_sigmas") or known.get("snr_shift_scale") is not None
    if shifted or known.get("timestep_type") == "continuous":  # the denoiser is told log σ / 4
        return False
    is_vdm = known.get("gammas") is not None or "gamma_min" in known or known.get("_class_name") == own.__name__
    return is_vdm or is_chain and any(known.get(name) is not None for name in ("beta_schedule", "trained_betas"))


def _renamed(config: Mapping[str, object]) -> dict[str, object]:
    """What `predict_epsilon` said until diffusers 0.9, `prediction_type` says today."""
    rest = {name: value for name, value in config.items() if name != "predict_epsilon"}
    old = config.get("predict_epsilon")
    return rest if old is None else {"prediction_type": "epsilon" if old else "sample"} | rest
