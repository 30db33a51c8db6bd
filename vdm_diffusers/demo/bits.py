"""What images cost: their bits per dimension with their errors, and where in them the bits are spent."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Condition
from ..guards.arguments import Seed, Within, check_argument
from ..likelihood import bits_per_pixel
from ..vdm import VDM


ROUNDS = 8
"""Of draws that don't depend on each other, from whose spread the errors are."""
MAX_DRAWS = 512


class Cost(NamedTuple):
    """
    Attributes:
        of_elements (`Tensor` of shape `(B, C, H, W)`): Bits of each, the mean over the draws.
        bits_per_dim, standard_errors (`Tensor` of shape `(B,)`): Of each image, and the error from the draws.
        mean, standard_error (`float`): Of all images, and the error from the draws: a figure for these images.
    """

    of_elements: Tensor
    bits_per_dim: Tensor
    standard_errors: Tensor
    mean: float
    standard_error: float


def cost_of(vdm: VDM, images: Tensor, condition: Condition, num_draws: int = 64, seed: int = 0) -> Cost:
    """
    The negative variational bound of images, by [`bits_per_pixel`] in `ROUNDS` rounds, the draws of each stratified.

    Args:
        vdm ([`VDM`]): Of integer images.
        images (`Tensor` of shape `(B, C, H, W)`): Integers in `[0, num_levels)`.
        condition (`Condition`): What the denoiser is told of them.
        num_draws (`int`): Times and noises an image, a multiple of `ROUNDS`.
        seed (`int`): Of a generator on the model's device.

    Raises:
        `TypeError` and `ValueError`: as [`bits_per_pixel`], and for numbers beyond their limits.
    """
    check_argument("seed", seed, Seed)
    check_argument("num_draws", num_draws, Annotated[int, Within(ROUNDS, MAX_DRAWS)])
    if num_draws % ROUNDS:
        raise ValueError(f"`num_draws` is {num_draws}, but must be a multiple of {ROUNDS}, the rounds that errors come from.")
    device = vdm.noise_schedule.device
    generator = torch.Generator(device).manual_seed(seed)
    repeats, images = num_draws // ROUNDS, images.to(device)
    rounds = [bits_per_pixel(vdm, images, condition, generator=generator, num_repeats=repeats) for _ in range(ROUNDS)]
    maps = torch.stack(rounds).cpu()
    values = maps.double().flatten(2).mean(2)
    mean, error = _mean(values.mean(1))
    return Cost(maps.mean(0), *_mean(values), mean.item(), error.item())


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of independent rounds, along the first axis, and its standard error."""
    return values.mean(0), values.std(0) / len(values) ** 0.5
