"""What is drawn for all images of a step together, the same on every process: times, and which captions are taken."""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ..randomness import counted_generator
from ..vdm import stratified_times
from .config import TrainingConfig


class Draws(NamedTuple):
    """
    The draws of a batch.

    Attributes:
        times (`Tensor` of shape `(B,)`): Stratified over all images of the step.
        captions (`Tensor` of shape `(2, B)`): Uniform on [0, 1), for [`draw_captions`].
    """

    times: Tensor
    captions: Tensor


def draws_of(config: TrainingConfig, accelerator: Accelerator, step: int, micro_step: int) -> Draws:
    """The share of one batch of this process in the draws of a step, which depend on the seed and its number alone."""
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    part = accelerator.process_index + accelerator.num_processes * micro_step
    uniform = torch.rand(3, parts * config.train_batch_size, generator=counted_generator(config.seed, step))
    times = stratified_times(uniform[0, 0], uniform.shape[1])
    return Draws(times[part::parts].to(accelerator.device), uniform[1:, part::parts])
