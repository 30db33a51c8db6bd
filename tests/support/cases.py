"""What the shared tests run over: noise schedules, prediction types and conditions. A new one joins its list."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import ModelMixin
from tiny_pipelines import TEXT_AND_SIZES, conditional_unet, pixart

from vdm_diffusers import VDMUNet2DModel, gaussian
from vdm_diffusers.conditioning import Condition
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


def _unet(**options) -> VDMUNet2DModel:
    return VDMUNet2DModel(8, 4, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(), **options)


CONDITIONS: dict[str, tuple[Callable[[], ModelMixin], Callable[[int], Condition]]] = {
    "classes": (partial(_unet, num_class_embeds=4), lambda n: {"class_labels": torch.arange(n) % 3}),
    "a vector": (partial(_unet, conditioning_dim=2), lambda n: {"conditioning": torch.randn(n, 2)}),
    "both": (
        partial(_unet, num_class_embeds=4, conditioning_dim=2),
        lambda n: {"class_labels": torch.arange(n) % 3, "conditioning": torch.randn(n, 2)},
    ),
    "text": (conditional_unet, lambda n: {"encoder_hidden_states": torch.randn(n, 3, 8)}),
    "text and sizes": (
        partial(conditional_unet, **TEXT_AND_SIZES),
        lambda n: {
            "encoder_hidden_states": torch.randn(n, 3, 8),
            "added_cond_kwargs": {"text_embeds": torch.randn(n, 8), "time_ids": torch.rand(n, 6)},
        },
    ),
    "masked text and sizes": (
        partial(pixart, use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=24),
        lambda n: {
            "encoder_hidden_states": torch.randn(n, 3, 8),
            "encoder_attention_mask": torch.arange(3) <= torch.arange(n)[:, None],
            "added_cond_kwargs": {"resolution": torch.rand(n, 2), "aspect_ratio": torch.rand(n, 1)},
        },
    ),
}
"""A denoiser of samples (4, 8, 8), and conditions for so many samples."""
