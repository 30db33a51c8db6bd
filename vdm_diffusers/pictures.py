"""PIL's pictures as integers."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor


MODES = {"1": (1, 2), "L": (1, 256), "LA": (2, 256), "RGB": (3, 256), "RGBA": (4, 256), "I;16": (1, 65536)}
"""Channels and levels of the PIL modes whose values are what they show; a palette's are not."""


class UnsuitableImage(ValueError):
    """An image that can be read but not trained on as it is."""


def image_format(image: PIL.Image.Image) -> tuple[tuple[int, int, int], int]:
    """The `(C, H, W)` of a PIL image and the number of levels of its mode; `ValueError` for modes without levels."""
    if image.mode not in MODES:
        raise ValueError(f"There are images of PIL mode {image.mode!r}: convert them to one of {', '.join(MODES)} first.")
    channels, levels = MODES[image.mode]
    return (channels, image.height, image.width), levels


def image_to_tensor(image: PIL.Image.Image | np.ndarray | list) -> Tensor:
    """A PIL image, or an integer array `(H, W)` or `(H, W, C)`, as integers `(C, H, W)`: uint8 if they fit, else int32."""
    return to_tensor(integers_of(image, None))


def integers_of(stored: Any, dtype: str | None) -> np.ndarray:
    """An integer array `(H, W)` or `(H, W, C)`, of the declared type if there is one; [`UnsuitableImage`] for anything else."""
    try:
        array = np.asarray(stored)
    except ValueError as error:
        raise UnsuitableImage("Its rows are of different lengths, but images must be integers, (H, W) or (H, W, C).") from error
    if array.dtype.kind not in "biu" or array.ndim not in (2, 3) or array.size == 0:
        raise UnsuitableImage(
            f"An image has the shape {array.shape} and the type {array.dtype}, but images must be integers, (H, W) or"
            " (H, W, C)."
        )
    return array if dtype is None else array.astype(dtype)


def to_tensor(array: np.ndarray) -> Tensor:
    array = array[:, :, None] if array.ndim == 2 else array
    dtype = np.uint8 if array.dtype.itemsize == 1 else np.int32
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)).astype(dtype))
