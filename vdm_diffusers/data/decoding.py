"""From a stored image, a file or an array, to the integers of a model: the one place where images are read and prepared.

What a check says of an image is true of what training gets, because both come from [`Decoder`].
"""

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from torch import Tensor

from ..guards.loading import reason_of
from ..guards.messages import Message
from ..pictures import MODES, UnsuitableImage, integers_of, to_tensor


CONVERSIONS = ("L", "LA", "RGB", "RGBA")
CONVERTIBLE = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"}
"""PIL modes that are pictures of 8 bits, or become some without a choice of range."""
EIGHT_BIT_FORMATS = {"JPEG", "MPO", "WEBP", "GIF", "QOI"}
SAMPLE_FORMAT = 339
"""The tag of a TIFF that says whether its numbers are unsigned."""
RAW_LEVELS = {
    r"1(;\w+)?": 2,
    r"L;2\w*": 4,
    r"L;4\w*": 16,
    r"(L|LA|RGB|RGBA|BGR|BGRA|BGRX|R|G|B|A)(;[IRL]+)?": 256,
    r"I;12": 4096,
    r"I;16[BLN]?": 65536,
}
"""How many levels Pillow's descriptions of stored pixels ("raw modes") have, where it reads them without loss."""
RAW_FORMATS = {"PNG", "TIFF", "BMP", "DIB", "PPM", "TGA", "PCX"}
"""Formats whose raw modes tell the depth."""


MAX_SIDE = 8192
"""Of resized images, which are larger than any that are trained on long before they fill the memory."""


class UnreadableImage(UnsuitableImage):
    """An image that can't be read: missing, damaged, too large, or no image at all."""


class DecodedImage(NamedTuple):
    """
    Attributes:
        pixels (`Tensor`): Integers from 0, `(C, *size)`, uint8 if they fit, else int32.
        levels (`int`, *optional*): How many the type of the stored image holds; `None` if it says nothing, as int64 doesn't.
    """

    pixels: Tensor
    levels: int | None


@dataclass(frozen=True)
class Preparation:
    """
    What is done to images beyond reading them. It makes them another data set, with another likelihood.

    Args:
        resize (`int`, *optional*): Pixels of the shorter side; by Pillow's bilinear filter, antialiased. Smaller images are
            enlarged.
        center_crop (`bool`): Whether the middle square of `resize` pixels is cut out.
        convert (`str`, *optional*): A PIL mode, `L`, `LA`, `RGB` or `RGBA`, to convert to as Pillow does: palettes and CMYK
            become colours, transparency is dropped and not blended, colours become luma, 16 bits their upper 8, files of
            several pictures their first. It comes first.
    """

    resize: int | None = None
    center_crop: bool = False
    convert: str | None = None

    def __post_init__(self):
        if self.resize is not None and not 1 <= self.resize <= MAX_SIDE:
            raise ValueError(Message("{resize} is {}, but must be at least 1 and at most {:,}.", self.resize, MAX_SIDE))
        if self.center_crop and self.resize is None:
            raise ValueError(Message("{center_crop} needs {resize}, which says how large the square is."))
        if self.convert not in (None, *CONVERSIONS):
            raise ValueError(Message("{convert} is {!r}, but must be one of {}.", self.convert, ", ".join(CONVERSIONS)))

    def __bool__(self) -> bool:
        return self != AS_STORED

    def __str__(self) -> str:
        """In words, such as "converted to RGB, resized to 32 pixels on the shorter side, cropped to the middle 32×32"."""
        steps = {
            f"converted to {self.convert}": self.convert,
            f"resized to {self.resize} pixels on the shorter side": self.resize,
            f"cropped to the middle {self.resize}×{self.resize}": self.center_crop,
        }
        return ", ".join(step for step, taken in steps.items() if taken)

    def flags(self) -> list[str]:
        """What asks for it on a command line."""
        resize = [] if self.resize is None else ["--resize", str(self.resize)]
        convert = [] if self.convert is None else ["--convert", self.convert]
        return resize + ["--center_crop"] * self.center_crop + convert


AS_STORED = Preparation()


@dataclass(frozen=True)
class Decoder:
    """
    Reads stored images.

    Args:
        preparation ([`Preparation`]): What is done to them.
        dtype (`str`, *optional*): Declared type of arrays that come as lists.
        num_spatial_dims (`int`, *optional*): Dimensions of a sample beside its channels, 1 to 3. By default those of arrays
            are 1 of `(L)`, 2 of `(H, W)` and `(H, W, C)`, and 3 of `(D, H, W, C)`.
    """

    preparation: Preparation = AS_STORED
    dtype: str | None = None
    num_spatial_dims: int | None = None

    def __call__(self, stored: Any) -> DecodedImage:
        """
        Args:
            stored: `{"bytes": ..., "path": ...}` of a file, its bytes, a PIL image, or an integer array
                `(*size)` or `(*size, C)`.

        Raises:
            [`UnreadableImage`]: if it can't be read, with the reason.
            [`UnsuitableImage`]: if something would be lost or guessed, with the remedy.
        """
        if stored is None:
            raise UnreadableImage("There is no image.")
        if isinstance(stored, str):
            text = (
                "It is text, but images must be integers or files: make paths images by `cast_column(..., Image())` of"
                " datasets, or name another {image_column}."
            )
            raise UnsuitableImage(Message(text))
        if isinstance(stored, (dict, bytes)):
            array, levels = self._read_file(stored)
        elif isinstance(stored, PIL.Image.Image):
            array, levels = self._read_picture(stored)
        else:
            array, levels = self._read_array(stored)
        return DecodedImage(to_tensor(array), levels)

    def _read_file(self, stored: dict | bytes) -> tuple[np.ndarray, int]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
                with _open(stored) as picture:
                    return self._read_picture(picture)
        except UnsuitableImage:
            raise
        except Exception as error:  # Pillow's plugins raise whatever a damaged file leads to
            raise UnreadableImage(f"It can't be read: {reason_of(error)}") from error

    def _read_picture(self, picture: PIL.Image.Image) -> tuple[np.ndarray, int]:
        if self.num_spatial_dims not in (None, 2):
            text = "Pictures have 2 spatial dimensions, but {num_spatial_dims} is {}."
            raise UnsuitableImage(Message(text, self.num_spatial_dims))
        convert = self.preparation.convert
        levels = _stored_levels(picture) if convert else _levels(picture)
        picture.load()
        picture = _upright(picture)
        if convert:
            picture, levels = _converted(picture, convert, levels), 256
        if self.preparation.resize is not None:
            if levels not in (256, 65536):
                text = "Images of {} levels can't be blended as {resize} does: convert them by {convert:L} or `RGB`."
                raise UnsuitableImage(Message(text, levels))
            picture = self._resized(picture)
        array = _contracted(np.asarray(picture), levels)
        return array if array.ndim == 3 else array[..., None], levels

    def _read_array(self, stored: Any) -> tuple[np.ndarray, int | None]:
        if self.preparation.convert is not None:
            raise UnsuitableImage(Message("{convert} is for image files: arrays don't say which colours their channels are."))
        array = integers_of(stored, self.dtype, self.num_spatial_dims)
        bits = 8 * array.dtype.itemsize - (array.dtype.kind == "i")
        levels = 2 if array.dtype.kind == "b" else 2**bits if bits <= 16 else None
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
            raise UnsuitableImage(
                f"It has values from {array.min()} to {array.max()}, but images must be integers in [0, num_levels)."
            )
        if self.preparation.resize is not None:
            if levels == 2:
                raise UnsuitableImage(Message("Arrays of booleans can't be blended as {resize} does: store them as integers."))
            if array.ndim != 3:
                raise UnsuitableImage(Message("{resize} is for images, but it has {} spatial dimensions.", array.ndim - 1))
            planes = np.moveaxis(array, 2, 0).astype(np.int32)
            planes = [np.asarray(self._resized(PIL.Image.fromarray(plane))) for plane in planes]
            array = np.stack(planes, axis=2).astype(array.dtype)
        return array, levels

    def _resized(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        side = self.preparation.resize
        width, height = (max(side, round(side * length / min(picture.size))) for length in picture.size)
        if picture.mode not in CONVERTIBLE:
            picture = picture.convert("I")  # 16 bits are resized as 32
        picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
        if self.preparation.center_crop:
            left, top = round((width - side) / 2), round((height - side) / 2)
            picture = picture.crop((left, top, left + side, top + side))
        return picture


PLAIN_DECODER = Decoder()


def _open(stored: dict | bytes) -> PIL.Image.Image:
    """A file as Pillow opens it, its pixels unread; [`UnreadableImage`] if there is none, or of what is no image."""
    content, path = (stored, None) if isinstance(stored, bytes) else (stored.get("bytes"), stored.get("path"))
    if content is None and path is None:
        raise UnreadableImage("There is no image.")
    if content is None:
        content = _content(path)
    if not content:
        raise UnreadableImage("It is empty.")
    try:
        return PIL.Image.open(io.BytesIO(content))
    except PIL.UnidentifiedImageError as error:
        raise UnreadableImage(f"It is no image that Pillow knows; it begins with {content[:12]!r}.") from error


def _content(path: str) -> bytes:
    if "://" not in path:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"It can't be read: {error.strerror}.") from error
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UnreadableImage(f"There is no file {path}.") from error
    except Exception as error:  # of a network that is down: no reason to leave images out
        raise UnsuitableImage(f"It can't be fetched: {reason_of(error)}") from error


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture turned as its EXIF tag says, or as it is stored if there is none that can be read."""
    try:
        turned = PIL.ExifTags.Base.Orientation in picture.getexif()
        return PIL.ImageOps.exif_transpose(picture) if turned else picture
    except Exception:  # Pillow raises whatever damaged tags lead to
        return picture


def _levels(picture: PIL.Image.Image) -> int:
    """How many levels a picture's file holds, before its pixels are read; [`UnsuitableImage`] if that would lose something."""
    if getattr(picture, "is_animated", False):
        text = "It holds {} pages or frames, of which one would be trained on: {convert:RGB} takes the first."
        raise UnsuitableImage(Message(text, picture.n_frames))
    if "transparency" in picture.info and picture.mode != "P":
        text = "One of its colours means transparent, which would be lost: {convert:RGBA} keeps it, {convert:RGB} drops it."
        raise UnsuitableImage(Message(text))
    mode = _general(picture.mode)
    levels = _stored_levels(picture)
    if mode not in MODES and not (mode == "I" and levels is not None):
        text = "There are images of PIL mode {!r}, whose values are not levels of what they show: {}."
        raise UnsuitableImage(Message(text, picture.mode, _remedy(picture.mode)))
    if levels is None or (mode in MODES and levels > MODES[mode][1]):
        if any("16" in raw_mode for raw_mode in _raw_modes(picture)):
            raise UnsuitableImage(Message("It has 16 bits a channel, of which Pillow reads 8: {convert:RGB} takes those."))
        text = "It's not sure that Pillow reads {} files like it without loss: {convert:RGB} takes what it reads."
        raise UnsuitableImage(Message(text, picture.format))
    return levels


def _general(mode: str) -> str:
    """A PIL mode without the order of its bytes."""
    return "I;16" if mode.startswith("I;16") else mode


def _remedy(mode: str) -> Message | str:
    if mode in CONVERTIBLE:
        return Message("convert them by {convert:RGB}, or to L, LA or RGBA")
    return "store them as 8- or 16-bit integers, or as arrays"


def _stored_levels(picture: PIL.Image.Image) -> int | None:
    """Levels in the file, `None` if they aren't known or not kept."""
    if picture.format in EIGHT_BIT_FORMATS:
        return 256
    if picture.format not in {None, *RAW_FORMATS}:
        return None
    if picture.format == "TIFF" and set(picture.tag_v2.get(SAMPLE_FORMAT, ())) - {1}:
        return None  # signed or real numbers
    if not getattr(picture, "tile", None):  # made by a program, or read before
        return MODES.get(_general(picture.mode), (0, None))[1]
    if picture.tile[0][0] in ("ppm", "ppm_plain") and isinstance(picture.tile[0][3], tuple):
        levels = picture.tile[0][3][1] + 1
        return levels if levels <= 256 or picture.mode == "I" else None
    found = {
        next((levels for pattern, levels in RAW_LEVELS.items() if re.fullmatch(pattern, raw_mode)), None)
        for raw_mode in _raw_modes(picture)
    }
    return found.pop() if len(found) == 1 else None


def _raw_modes(picture: PIL.Image.Image) -> set[str]:
    arguments = (tile[3] for tile in picture.tile)
    return {str(argument[0] if isinstance(argument, tuple) else argument) for argument in arguments}


def _contracted(array: np.ndarray, levels: int) -> np.ndarray:
    """Levels as they are stored, of pixels that Pillow has spread over the range of its type, as it does with 2 and 4 bits."""
    last = {"b": 1, "u": 255}.get(array.dtype.kind, 65535) if array.dtype.itemsize == 1 else 65535
    if levels == last + 1 or (levels == 4096 and array.dtype.itemsize == 2):
        return array
    return np.rint(array * ((levels - 1) / last)).astype(np.uint8 if levels <= 256 else np.int32)


def _converted(picture: PIL.Image.Image, mode: str, stored_levels: int | None) -> PIL.Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and stored_levels is not None):
        upper = np.asarray(picture) >> (4 if stored_levels == 4096 else 8)  # Pillow's own conversion clips
        picture = PIL.Image.fromarray(upper.astype(np.uint8))
    if picture.mode not in CONVERTIBLE:
        text = "{convert} can't convert images of PIL mode {!r}: {}."
        raise UnsuitableImage(Message(text, picture.mode, _remedy(picture.mode)))
    if picture.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return picture.convert(mode)
    return picture.convert("RGBA").convert(mode)
