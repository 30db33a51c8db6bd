"""Pictures and arrays as integers, their channels first."""

from collections.abc import Sequence
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
    """A picture, or an integer array `(H, W)` or `(H, W, C)`, as integers `(C, *size)`: uint8 if they fit, else int32."""
    return to_tensor(integers_of(image, None))


def integers_of(stored: Any, dtype: str | None, num_spatial_dims: int | None = None) -> np.ndarray:
    """
    An integer array `(*size, C)` of what is stored as such, or without channels as `(*size)`.

    Args:
        stored: The array, or lists of numbers.
        dtype (`str`, *optional*): Its declared type, which lists don't say.
        num_spatial_dims (`int`, *optional*): Dimensions of `size`. Default: [`SPATIAL_DIMS`].

    Raises:
        [`UnsuitableImage`]: for anything else.
    """
    try:
        array = np.asarray(stored)
    except ValueError as error:
        raise UnsuitableImage(f"Its rows are of different lengths, but images must be {_arrays(num_spatial_dims)}.") from error
    num_dims = num_spatial_dims or SPATIAL_DIMS.get(array.ndim)
    fits = num_dims is not None and array.ndim in (num_dims, num_dims + 1)
    if not fits or array.dtype.kind not in "biu" or array.size == 0:
        raise UnsuitableImage(
            f"An image has the shape {array.shape} and the type {array.dtype}, but images must be {_arrays(num_spatial_dims)}."
        )
    array = array if dtype is None else array.astype(dtype)
    return array[..., None] if array.ndim == num_dims else array


SPATIAL_DIMS = {1: 1, 2: 2, 3: 2, 4: 3}
"""Those of an array of so many dimensions, unless it is said: a sequence, a grey image, an image, and a volume."""

AXES = {1: "L", 2: "H, W", 3: "D, H, W"}
"""What their sizes are called."""


def _arrays(num_spatial_dims: int | None) -> str:
    if num_spatial_dims is None:
        return "integers, (L), (H, W), (H, W, C) or (D, H, W, C)"
    return f"integers, ({AXES[num_spatial_dims]}) or ({AXES[num_spatial_dims]}, C)"


def to_tensor(array: np.ndarray) -> Tensor:
    """An integer array `(*size, C)` as integers `(C, *size)`."""
    dtype = np.uint8 if array.dtype.itemsize == 1 else np.int32
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)).astype(dtype))


def in_words(shape: Sequence[int]) -> str:
    """Such as `3×32×32`."""
    return "×".join(map(str, shape))
