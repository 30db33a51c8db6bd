"""Optimisers: AdamW and its variants, with a learning rate of its own for a learned noise schedule."""

from collections.abc import Callable
from functools import partial

import torch

from ..guards.messages import Message
from ..vdm import VDM
from .config import TrainingConfig


def adamw_8bit(groups: list[dict], **kwargs) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes, with its state in eight bits."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(Message("{optimizer:adamw_8bit} needs bitsandbytes: `pip install bitsandbytes`.")) from error
    return AdamW8bit(groups, **kwargs)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw_fused": partial(torch.optim.AdamW, fused=True),
    "adamw_8bit": adamw_8bit,
}
"""The optimisers by the values of the option; each is called with groups of parameters, `betas` and `eps`."""


def build_optimizer(config: TrainingConfig, vdm: VDM) -> torch.optim.Optimizer:
    """The optimiser that the options name, without weight decay for the noise schedule."""
    denoiser = {"params": list(vdm.unet.parameters()), "lr": config.learning_rate, "weight_decay": config.adam_weight_decay}
    schedule = {"params": list(vdm.noise_schedule.parameters()), "lr": config.schedule_learning_rate, "weight_decay": 0.0}
    groups = [group for group in (denoiser, schedule) if any(parameter.requires_grad for parameter in group["params"])]
    return OPTIMIZERS[config.optimizer](groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon)
