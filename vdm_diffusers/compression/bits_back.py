"""Bits-back coding of one image over the chain of its latents, in the order of Bit-Swap (Kingma, Abbeel & Ho 2019).

An image costs the bits that are pushed less those that are popped, in expectation the bound of the chain:

    -log p(x|z_0) - Σ log p(z_{i-1}|z_i) - log p(z_T)  +  log q(z_0|x) + Σ log q(z_i|z_{i-1})

q is Markov, so that each latent is pushed as soon as the next one is popped, and never more than two are waiting.
"""

import torch
from torch import Tensor

from ..conditioning import Condition
from .ans import STATE_BITS, BitStack, ImpossibleDraw
from .latents import CodedLatents


def push_image(stack: BitStack, latents: CodedLatents, image: Tensor, condition: Condition, place: int) -> None:
    """Push an integer image `(C, *size)`. Its latents are drawn from the bits of the stack, whitened by a key for its place
    among the images and for the step."""
    key = place * (latents.num_steps + 1)
    z = stack.draw(latents.given_image(image), key)
    stack.push_levels(image.flatten().long().numpy(), latents.image_given_first(z))
    for i in range(1, latents.num_steps + 1):
        z_s, z = z, stack.draw(latents.given_previous(i, z), key + i)
        stack.push_normal(z_s, latents.given_next(i, z, condition))
    stack.push_normal(z, latents.last())


def pop_image(stack: BitStack, latents: CodedLatents, condition: Condition, place: int) -> Tensor:
    """The image that was pushed last, int64 `(C, *size)`; the stack is then as it was before.

    Raises `ArithmeticError` for bits that no image left, which may also lead to a wrong one.
    """
    if stack.num_bits < latents.num_dims - STATE_BITS:  # before anything of the size that a header claims is computed
        raise ImpossibleDraw("There are fewer bits than the last latent takes, which are more than one a number.")
    key = place * (latents.num_steps + 1)
    z = stack.pop_normal(latents.last())
    for i in range(latents.num_steps, 0, -1):
        z_t, z = z, stack.pop_normal(latents.given_next(i, z, condition))
        stack.give_back(z_t, latents.given_previous(i, z), key + i)
    levels = stack.pop_levels(latents.image_given_first(z))
    image = torch.from_numpy(levels).reshape(latents.shape)
    stack.give_back(z, latents.given_image(_in_range(image, latents.vdm.num_levels)), key)
    return image


def _in_range(image: Tensor, num_levels: int) -> Tensor:
    """Levels that images can have; damaged bits hold others, which a checksum will find."""
    return image.clamp(0, num_levels - 1)
