"""Images as callers of a pipeline give and get them: pictures, arrays or tensors, and the integers that they are."""

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .pictures import image_format, image_to_tensor


Images = PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | Tensor


def levels_of(images: Images, num_spatial_dims: int, num_levels: int) -> Tensor:
    """
    Images of any size as integers `(B, C, *size)`.

    Args:
        images: A picture or a list of them, shown levels: `v` at `255 v / (num_levels - 1)`. Or integers in `[0, num_levels)`:
            an array `(B, *size, C)` or a tensor `(B, C, *size)`.
        num_spatial_dims (`int`): Dimensions of `size`.
        num_levels (`int`): Of the model.

    Raises:
        `ValueError`: for an array of another shape or type, and for pictures of several formats or with other levels.
    """
    if isinstance(images, PIL.Image.Image):
        images = [images]
    if isinstance(images, list):
        return _shown_levels(images, num_levels)
    if isinstance(images, np.ndarray):
        if images.ndim != 2 + num_spatial_dims or images.dtype.kind not in "iu":
            axes = "H, W" if num_spatial_dims == 2 else "*size"
            raise ValueError(
                f"`images` are an array of the shape {images.shape} and the type {images.dtype}, but must be integers,"
                f" (B, {axes}, C)."
            )
        return torch.from_numpy(images.astype(np.int64)).movedim(-1, 1)
    return images


def _shown_levels(pictures: list[PIL.Image.Image], num_levels: int) -> Tensor:
    """The levels of pictures, `(B, C, H, W)`, of which a pipeline shows `255 v / (num_levels - 1)`."""
    highest = num_levels - 1
    if highest > 255:
        raise ValueError(f"PIL images hold 256 levels, but this model has {highest + 1}: give an array or a tensor.")
    shown = torch.stack([image_to_tensor(picture) for picture in _checked_pictures(pictures)])
    levels = (shown.double() * highest / 255).round()
    if ((levels * 255 / highest).round() != shown).any():
        raise ValueError(
            f"These PIL images have other levels than the {highest + 1} of this model, which are shown evenly spaced in"
            " [0, 255]: give them as integers in [0, num_levels), without resizing or normalisation."
        )
    return levels.int()


def _checked_pictures(images: list) -> list[PIL.Image.Image]:
    """The images, if they are PIL's, of one shape, with 8 bits that are what they show."""
    if not images or not all(isinstance(image, PIL.Image.Image) for image in images):
        raise ValueError("A list of `images` must hold PIL images, at least one: give integers as one array or tensor.")
    formats = {image_format(image) for image in images}
    if len(formats) > 1:
        raise ValueError("All `images` must have one size and mode.")
    ((_, levels),) = formats
    if levels != 256:
        raise ValueError(f"There are images of PIL mode {images[0].mode!r}, which holds {levels} levels: convert them to 256.")
    return images


def to_pictures(images: np.ndarray) -> list[PIL.Image.Image]:
    """As `numpy_to_pil` of diffusers, which would lose a side of one pixel along with the channel of a grey image."""
    levels = (images * 255).round().astype("uint8")
    return [PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in levels]
