"""What the shared tests run over: every noise schedule and every prediction type. A new one joins its list."""

from collections.abc import Callable
from functools import partial

from vdm_diffusers import gaussian
from vdm_diffusers.noise_schedules import (
    BetaLinearSchedule,
    CosineSchedule,
    LearnedChainSchedule,
    LearnedLinearSchedule,
    LearnedMonotoneSchedule,
    LearnedUnpinnedSchedule,
    LinearSchedule,
    NoiseSchedule,
    SigmoidSchedule,
    TableSchedule,
)


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "LinearSchedule": LinearSchedule,
    "CosineSchedule": CosineSchedule,
    "BetaLinearSchedule": BetaLinearSchedule,
    "SigmoidSchedule": SigmoidSchedule,
    "TableSchedule": partial(TableSchedule, gammas=[-13.3, -9.0, -4.5, 1.25, 5.0], times=[0.0, 0.1, 0.35, 0.6, 1.0]),
    "LearnedLinearSchedule": LearnedLinearSchedule,
    "LearnedMonotoneSchedule": partial(LearnedMonotoneSchedule, num_features=64),
    "LearnedChainSchedule": partial(LearnedChainSchedule, num_steps=7),
    "LearnedUnpinnedSchedule": partial(LearnedUnpinnedSchedule, num_features=64),
}
FIXED = ("LinearSchedule", "CosineSchedule", "BetaLinearSchedule", "SigmoidSchedule")
LEARNED_PINNED = ("LearnedLinearSchedule", "LearnedMonotoneSchedule", "LearnedChainSchedule")
LEARNED = (*LEARNED_PINNED, "LearnedUnpinnedSchedule")
PREDICTION_TYPES = tuple(gaussian.PREDICTIONS)
