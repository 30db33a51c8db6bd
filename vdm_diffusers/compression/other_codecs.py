"""What other lossless codecs make of the same images, to compare with: one file of all, tiled to a sheet."""

import io
import lzma
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor


FORMATS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6, "exact": True},
    "JPEG2000": {"irreversible": False},
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "QOI": {},
}
"""Formats of Pillow that may be without loss, and how they are written; those that turn out not to be are left out."""


def rates_of_others(images: Tensor, num_levels: int) -> dict[str, float]:
    """Bits per dimension of integer images `(N, C, *size)` as one file, by codec; LZMA's of the bytes, image after image."""
    array = images.cpu().numpy().astype(np.uint8 if num_levels <= 256 else np.uint16 if num_levels <= 1 << 16 else np.uint32)
    sizes = {"LZMA": len(lzma.compress(array.tobytes(), preset=9 | lzma.PRESET_EXTREME))}
    if array.ndim == 4 and (array.dtype == np.uint8 or (array.dtype == np.uint16 and array.shape[1] == 1)):
        sheet = _sheet(array)
        found = {name: _size(sheet, name, options) for name, options in FORMATS.items()}
        sizes |= {name: size for name, size in found.items() if size is not None}
    return {name: 8 * size / array.size for name, size in sizes.items()}


def _sheet(images: np.ndarray) -> np.ndarray:
    """Images `(N, C, H, W)` side by side, `(rows H, columns W, C)`; what is left over is zero."""
    number, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    padded = np.zeros((rows * columns, channels, height, width), images.dtype)
    padded[:number] = images
    return padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2).reshape(rows * height, -1, channels)


def _size(sheet: np.ndarray, name: str, options: Mapping[str, Any]) -> int | None:
    """Bytes in that format, `None` if Pillow doesn't write it, or not without loss."""
    file = io.BytesIO()
    picture = PIL.Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
    try:
        picture.save(file, name, **options)
        with PIL.Image.open(file) as written:
            back = np.asarray(written if written.mode == picture.mode or written.mode == "I" else written.convert(picture.mode))
    except (OSError, ValueError, KeyError):  # whatever a plugin says of what it doesn't do
        return None
    return len(file.getvalue()) if np.array_equal(back, np.asarray(picture)) else None
