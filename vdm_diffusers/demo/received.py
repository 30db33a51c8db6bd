"""Files that a visitor gives, as images of a model: what has to be done to each, and that it was."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

from ..data.decoding import AS_STORED, CONVERSIONS, MAX_SIDE, DecodedImage, Decoder, Preparation, UnreadableImage
from ..guards.loading import reason_of
from ..pictures import MODES, UnsuitableImage, in_words


MAX_FILES = 8
MAX_BYTES = 1 << 24
MAX_PIXELS = 1 << 24
"""Of a file, before it is decoded."""
CHANNELS = {MODES[mode][0]: mode for mode in CONVERSIONS}
"""The mode of so many channels."""


class Received(NamedTuple):
    """
    Attributes:
        images (`Tensor` of shape `(B, C, H, W)`): Integers in `[0, num_levels)`.
        remarks (`list[str]`): A sentence for each file that is not what it was.
    """

    images: Tensor
    remarks: list[str]


def receive(paths: Sequence[str | Path], shape: tuple[int, int, int], num_levels: int) -> Received:
    """
    Images of a model from files, each prepared as training data are where it has another size or other channels.

    Args:
        paths: Of the files, with the names that a visitor knows.
        shape (`tuple[int, int, int]`): `(C, H, W)` of the model.
        num_levels (`int`): Of the model. Other levels become the nearest.

    Raises:
        `ValueError`: for too many files or too large ones, and for what can't become an image of the model.
    """
    if len(paths) > MAX_FILES:
        raise ValueError(f"There are {len(paths)} files, but at most {MAX_FILES} are taken at once: give fewer.")
    images, remarks = [], []
    for path in map(Path, paths):
        try:
            image, done = _prepared(_content(path), shape, num_levels)
        except UnsuitableImage as error:
            raise ValueError(f"{path.name}: {reason_of(error)}") from error
        images.append(image)
        remarks += [f"{path.name} was {', '.join(done)}."] * bool(done)
    return Received(torch.stack(images), remarks)


def _content(path: Path) -> bytes:
    """The bytes of a file that is worth decoding."""
    if path.stat().st_size > MAX_BYTES:
        raise UnsuitableImage(f"It has {path.stat().st_size:,} bytes, but at most {MAX_BYTES:,} are read: make it smaller.")
    content = path.read_bytes()
    try:
        width, height = PIL.Image.open(io.BytesIO(content)).size
    except Exception as error:  # of a damaged file, whatever its plugin raises
        raise UnreadableImage("It is no image that Pillow knows.") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnsuitableImage(f"It has {width}×{height} pixels, but at most {MAX_PIXELS:,} are decoded: make it smaller.")
    return content


def _prepared(content: bytes, shape: tuple[int, int, int], num_levels: int) -> tuple[Tensor, list[str]]:
    """The image of a file, and what was done to it: as little as makes it one of the model."""
    refusal = UnsuitableImage(f"It can't be made one of {in_words(shape)}: give images of that size, with those channels.")
    for preparation in _preparations(shape):
        try:
            decoded = Decoder(preparation)(content)
        except UnreadableImage:
            raise
        except UnsuitableImage:
            continue
        if decoded.pixels.shape == shape:
            levels, is_rounded = _with_levels(decoded, num_levels)
            rounded = f"rounded from {decoded.levels:,} levels to {num_levels:,}"
            return levels, [str(preparation)] * bool(preparation) + [rounded] * is_rounded
    raise refusal


def _preparations(shape: tuple[int, int, int]) -> Iterator[Preparation]:
    """Whatever may help, the least first."""
    channels, height, width = shape
    resizes = [{}] if height != width else [{}, {"resize": height, "center_crop": True}]
    for resize in resizes:
        for convert in (None, CHANNELS.get(channels)):
            yield Preparation(convert=convert, **resize) if convert or resize else AS_STORED


def _with_levels(decoded: DecodedImage, num_levels: int) -> tuple[Tensor, bool]:
    """An image with the model's levels, the nearest, and whether others had been there."""
    stored, model = decoded.levels - 1, num_levels - 1
    levels = (decoded.pixels.double() * model / stored).round()
    is_rounded = bool(((levels * stored / model).round() != decoded.pixels).any())
    return levels.int(), is_rounded
