"""Images to bytes and back: blocks of images, coded in several threads, written to a file and read from it."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..class_names import Labels, names_of
from ..conditioning import labels_of
from ..denoisers import sample_shape
from ..vdm import VDM
from .blocks import Item, Rates, pack, unpack
from .coding_model import coding_model
from .container import Block, DamagedFile, Header, read_blocks, read_header, write_block, write_end, write_header
from .fingerprints import arithmetic_of, check_same, digest_of_variances, digest_of_weights
from .latents import CodedLatents
from .reproducible import ReproducibleWorkers


BIN_PRECISION = 1
IMAGES_PER_BLOCK = 512


class Decompressed(NamedTuple):
    """
    The images of a block.

    Attributes:
        images (`Tensor` of shape `(N, C, *size)`): Integers, uint8 for up to 256 levels, else int32.
        names (`list[str | None]`): Theirs, where they were given one.
        labels (`list[int | None]`): Those of their classes, where they were given.
    """

    images: Tensor
    names: list[str | None]
    labels: list[int | None]


def compress(
    pipeline: DiffusionPipeline,
    images: Tensor | Iterable[Tensor],
    num_inference_steps: int | None = None,
    class_labels: Labels | None = None,
    bin_precision: int = BIN_PRECISION,
    images_per_block: int = IMAGES_PER_BLOCK,
) -> bytes:
    """
    Compress images without loss, at the bound of a model.

    Args:
        pipeline (`DiffusionPipeline`): In pixel space; see [`coding_model`], also for `num_inference_steps`.
        images (`Tensor` of shape `(N, C, *size)`, or batches of such): Integers in `[0, num_levels)`.
        num_inference_steps (`int`, *optional*): T, and so the number of times that the denoiser is called for an image.
        class_labels (`list[int | str]`, *optional*): Of a class-conditional model, one an image; they are kept in the file. By
            default the denoiser is told no class.
        bin_precision (`int`, defaults to 1): Latents are rounded to `2^-bin_precision` of a standard deviation. More precision
            takes more initial bits.
        images_per_block (`int`, defaults to 512): Images that share initial bits, and can be read only together.

    Returns:
        The content of a file, as [`Compressor`] writes it; batches make no difference.

    Raises:
        `TypeError` and `ValueError`: for images that are none of this model's, and for a model that can't code.
        `FloatingPointError`: if the denoiser's output is not finite.
    """
    file = io.BytesIO()
    batches = [images] if isinstance(images, Tensor) else images
    every = (image for batch in batches for image in batch)
    items = map(Item, every) if class_labels is None else _with_labels(list(every), class_labels, pipeline)
    with Compressor(file, coding_model(pipeline, num_inference_steps), bin_precision, images_per_block) as compressor:
        for item in items:
            compressor.append(item)
    return file.getvalue()


def _with_labels(images: Sequence[Tensor], class_labels: Labels, pipeline: DiffusionPipeline) -> list[Item]:
    labels = labels_of(class_labels, len(images), names_of(pipeline), pipeline.unet).tolist()
    if len(labels) != len(images):
        raise ValueError(f"There are {len(labels)} `class_labels`, but {len(images)} images: give one an image.")
    return [Item(image, label=label) for image, label in zip(images, labels)]


def decompress(pipeline: DiffusionPipeline, data: bytes, force: bool = False) -> Tensor:
    """
    The images that [`compress`] made bytes of, `(N, C, *size)`: uint8 for up to 256 levels, else int32.

    Args:
        pipeline (`DiffusionPipeline`): The one that they were compressed with.
        data (`bytes`): The content of a file.
        force (`bool`): Try also where the arithmetic is another; each image is checked.

    Raises:
        [`DamagedFile`]: a `ValueError`, for anything but a whole file. The whole blocks of one that was cut off a
            [`Decompressor`] reads.
        `ValueError`: where weights, variances or arithmetic are not those that the file was written with, naming them.
    """
    with Decompressor(io.BytesIO(data), pipeline, force) as decompressor:
        return torch.cat([block.images for block in decompressor])


class Compressor:
    """
    Writes images into a file, which can be read up to its last whole block at any time: a context.

    Blocks are coded in as many threads as torch has, and written in order. Neither their number nor how images are appended
    changes the file. One block for each thread is in memory, and one that waits.

    Args:
        file (`BinaryIO`): Opened for writing.
        vdm ([`VDM`]): In T steps, as [`coding_model`] gives it.
        bin_precision, images_per_block (`int`): See [`compress`].
        on_image (`Callable[[], None]`, *optional*): Called for every image that is coded, in any thread.

    Attributes:
        rates ([`Rates`], *optional*): Of what is written; `None` before the first image.

    Raises:
        `ValueError`: for a model of continuous time, of real-valued data or of latents, and for no images at all.
    """

    def __init__(
        self,
        file: BinaryIO,
        vdm: VDM,
        bin_precision: int = BIN_PRECISION,
        images_per_block: int = IMAGES_PER_BLOCK,
        on_image: Callable[[], None] = lambda: None,
    ):
        if vdm.num_timesteps is None or vdm.num_levels is None or vdm.vae is not None:
            raise ValueError("Images are coded by a model of pixels in steps: give one with `num_timesteps` and `num_levels`.")
        if type(images_per_block) is not int or images_per_block < 1:
            raise ValueError(f"`images_per_block` is {images_per_block!r}, but must be a whole number of at least 1.")
        self.file, self.vdm = file, vdm
        self.bin_precision, self.images_per_block = bin_precision, images_per_block
        self.rates: Rates | None = None
        self._workers = ReproducibleWorkers(vdm, on_image)
        self._waiting: list[Item] = []

    def __enter__(self) -> "Compressor":
        self._workers.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._workers.__exit__()

    def append(self, item: Item) -> None:
        """Add an image; `TypeError` or `ValueError` if it is none of this model's, or of another shape than the first."""
        self.vdm.scale(item.image[None])
        if self.rates is None:
            self._begin(tuple(item.image.shape))
        if tuple(item.image.shape) != self.latents.shape:
            raise ValueError(f"An image is {tuple(item.image.shape)}, but the first one is {self.latents.shape}.")
        self._waiting.append(item._replace(image=item.image.cpu()))
        if len(self._waiting) == min(self.images_per_block, self.header.max_images):
            self._submit()

    def _begin(self, shape: tuple[int, ...]) -> None:
        _check_shape(self.vdm, shape)
        gammas = self.vdm.noise_schedule.chain(self.vdm.num_timesteps).double().tolist()
        self.header = _header(self.vdm, shape, gammas, self.bin_precision)
        self.latents = CodedLatents(self.vdm, gammas, self.bin_precision, shape)
        self.rates = Rates(self.latents.num_dims)
        self._write(write_header, self.header)

    def _submit(self) -> None:
        items, self._waiting = self._waiting, []
        for packed in self._workers.run(lambda: pack(items, self.latents, self._workers.count)):
            self._add(*packed)

    def _add(self, block: Block, rates: Rates) -> None:
        self._write(partial(write_block, num_before=self.rates.num_images), block)
        self.rates.add(rates)

    def _finish(self) -> None:
        if self.rates is None:
            raise ValueError("There are no images to compress: give at least one.")
        if self._waiting:
            self._submit()
        for packed in self._workers.rest():
            self._add(*packed)
        self._write(write_end, self.rates.num_images)

    def _write(self, function: Callable[[BinaryIO, Any], None], content: Any) -> None:
        part = io.BytesIO()
        function(part, content)
        self.file.write(part.getvalue())
        self.file.flush()
        self.rates.gross_bits += 8 * part.tell()


class Decompressor:
    """
    Reads the images of a file: a context, and in it an iterator of [`Decompressed`], block by block.

    It ends in [`DamagedFile`] where the file is damaged or cut off, after all blocks before that.

    Args:
        file (`BinaryIO`): Opened for reading.
        pipeline (`DiffusionPipeline`): The one that the images were compressed with.
        force (`bool`): Try also where the arithmetic is another; each image is checked.
        on_image (`Callable[[], None]`, *optional*): Called for every image that is read, in any thread.

    Attributes:
        header ([`Header`]): What the file says of itself.

    Raises:
        [`DamagedFile`] and `ValueError`: see [`decompress`].
    """

    def __init__(
        self,
        file: BinaryIO,
        pipeline: DiffusionPipeline,
        force: bool = False,
        on_image: Callable[[], None] = lambda: None,
    ):
        self.file = file
        self.header = header = read_header(file)
        vdm = coding_model(pipeline, len(header.gammas) - 1)
        shape = tuple(header.shape)
        check_same(header, _header(vdm, shape, header.gammas, header.bin_precision), force)
        _check_shape(vdm, shape)
        self.latents = CodedLatents(vdm, header.gammas, header.bin_precision, shape)
        self._workers = ReproducibleWorkers(vdm, on_image)

    def __enter__(self) -> "Decompressor":
        self._workers.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._workers.__exit__()

    def __iter__(self) -> Iterator[Decompressed]:
        for block in self._whole_blocks():
            yield from map(_decompressed, self._workers.run(partial(unpack, block, self.latents, self._workers.count)))
        yield from map(_decompressed, self._workers.rest())
        if self._damage is not None:
            raise self._damage

    def _whole_blocks(self) -> Iterator[Block]:
        """Those before any damage, which is kept until their images are given out."""
        self._damage: DamagedFile | None = None
        try:
            yield from read_blocks(self.file, self.header)
        except DamagedFile as error:
            self._damage = error


def _decompressed(items: list[Item]) -> Decompressed:
    images, names, labels = zip(*items)
    return Decompressed(torch.stack(images), list(names), list(labels))


def _header(vdm: VDM, shape: tuple[int, ...], gammas: Sequence[float], bin_precision: int) -> Header:
    """What a file that is written with this model begins with."""
    return Header(
        shape=list(shape),
        num_levels=vdm.num_levels,
        gammas=list(gammas),
        bin_precision=bin_precision,
        weights=digest_of_weights(vdm),
        variances=digest_of_variances(vdm.error_profile),
        arithmetic=arithmetic_of(vdm),
    )


def _check_shape(vdm: VDM, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless images of a shape are what the denoiser takes."""
    expected = sample_shape(vdm.unet)
    if expected is not None and shape != expected:
        raise ValueError(f"The images are {shape}, but this is a model of (C, *size) = {expected}.")
