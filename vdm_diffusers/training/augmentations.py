"""Augmentations: random changes to a batch of training images, on their device, and what the denoiser is told of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..conditioning import Condition
from ..guards.messages import Message
from ..pictures import in_words


Augmented = tuple[Tensor, Condition | None]
"""Images `(B, C, H, W)` as they were or changed, and what the denoiser is told of it, if anything."""


def unchanged(images: Tensor) -> Augmented:
    """Images as they are."""
    return images, None


def flip(images: Tensor) -> Augmented:
    """Every image mirrored with probability ½; the denoiser is not told."""
    return torch.where(_coin(images), images.flip(-1), images), None


def flip_and_turn(images: Tensor) -> Augmented:
    """The paper's: mirrored with probability ½, and then turned by one, two or three quarters with probability ½.

    The denoiser's `conditioning` is 1 for images that were mirrored or turned: told 0, it is a model of the data as they are.
    """
    mirrored, turned = _coin(images), _coin(images)
    images = torch.where(mirrored, images.flip(-1), images)
    quarters = torch.randint(1, 4, turned.shape, device=images.device)
    for k in (1, 2, 3):
        images = torch.where(turned & (quarters == k), images.rot90(k, (-2, -1)), images)
    return images, {"conditioning": (mirrored | turned).flatten(1).float()}


AUGMENTATIONS: dict[str, Callable[[Tensor], Augmented]] = {"none": unchanged, "flip": flip, "paper": flip_and_turn}
"""Augmentations by the names of the option; they draw from the global generator of the images' device."""


def check_augmentation(augmentation: str, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` for one that samples of a shape `(C, *size)` can't have."""
    if augmentation != "none" and len(shape) != 3:
        message = "{augmentation} is {!r}, which is for images, but the data are {}."
        raise ValueError(Message(message, augmentation, in_words(shape)))
    if augmentation == "paper" and shape[1] != shape[2]:
        raise ValueError(Message("{augmentation:paper} turns images, which must be square, but they are {}×{}.", *shape[1:]))


def _coin(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
