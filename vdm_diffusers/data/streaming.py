"""Streams of images: data sets that are read while training goes on, never downloaded or decoded as a whole."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import IterableDataset

from ..conditioning import collate
from ..guards.loading import DataError, reason_of, root_cause
from ..guards.messages import Message
from ..pictures import UnsuitableImage
from .captions import caption_problem, stored_caption
from .checking import (
    Format,
    check_captions,
    check_some_captions,
    check_values,
    common_format,
    count_classes,
    describe_format,
    inspect,
    label_problem,
    remedy_for,
)
from .decoding import AS_STORED, PLAIN_DECODER, Decoder, Preparation, UnreadableImage
from .image_data import ImageData, ImageDataset, told
from .images import (
    check_number,
    check_shape,
    check_type,
    decoder_of,
    find_image_column,
    held_out_split,
    load_splits,
    names_of_classes,
    undecoded,
)
from .pinning import can_be_pinned


FIRST_ROWS = 16
"""Of the training set, which are checked before training."""


class StreamError(DataError):
    """A stream doesn't go on: at a row that can't be trained on, which the message names, or because it can't be read."""


class ImageStream(IterableDataset):
    """
    The rows of a [`datasets.IterableDataset`] as [`ImageDataset`] has them, shuffled, epoch after epoch without end.

    Every epoch has its own order of the files. Rows are shuffled within blocks of `buffer_size`, which are held undecoded. A
    position is that of the files where the block begins and the number of its rows that were given, so that a stream which
    loads it goes on exactly, at the cost of reading one block.

    Args:
        rows ([`datasets.IterableDataset`]): Its images in any form that a [`Decoder`] takes.
        image_column (`str`): Its images.
        label_column (`str`, *optional*): Its integer labels.
        format (`tuple`): The shape and number of levels that every image must have.
        buffer_size (`int`): Rows of a block.
        seed (`int`): Of the order.
        decoder ([`Decoder`]): What reads the images.
        num_levels (`int`, *optional*): What all values must be below, if not the number of levels.
        num_classes (`int`, *optional*): What all labels must be below.
        skip_unreadable (`bool`): Whether images that can't be read are left out; the next item names them as `"unreadable"`.
        caption_column (`str`, *optional*): Its captions.

    Iterating raises [`StreamError`] at the first row that doesn't fit.
    """

    def __init__(
        self,
        rows,
        image_column: str,
        label_column: str | None,
        format: Format,
        buffer_size: int,
        seed: int,
        decoder: Decoder = PLAIN_DECODER,
        num_levels: int | None = None,
        num_classes: int | None = None,
        skip_unreadable: bool = False,
        caption_column: str | None = None,
    ):
        self.rows, self.image_column, self.label_column, self.caption_column = rows, image_column, label_column, caption_column
        self.format, self.buffer_size, self.seed, self.decoder = format, buffer_size, seed, decoder
        self.num_levels = num_levels or format[1]
        self.num_classes, self.skip_unreadable = num_classes, skip_unreadable
        self.position = {"epoch": 0, "block": 0, "given": 0, "files": None}
        self.left_out: list[str] = []

    def split(self, process_index: int, num_processes: int) -> "ImageStream":
        """The share of one process: files of its own if their number is a multiple of `num_processes`, else every n-th row."""
        from datasets.distributed import split_dataset_by_node

        share = copy.copy(self)
        share.rows = split_dataset_by_node(self.rows, process_index, num_processes)
        share.load_state_dict(self.position)
        return share

    def state_dict(self) -> dict:
        return self.position.copy()

    def load_state_dict(self, state: dict) -> None:
        self.position = state.copy()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.rows = copy.deepcopy(self.rows)  # whose epoch lies in memory that workers share, but they differ in epoch
        while True:
            yield from self.epoch()
            if not self.position["block"]:
                raise ValueError("There are fewer files in the stream than processes that read it: lower their number.")
            self.position = {"epoch": self.position["epoch"] + 1, "block": 0, "given": 0, "files": None}

    def epoch(self) -> Iterator[dict[str, Any]]:
        """What the present epoch still has, from the present position on."""
        readable = False
        for block in self._blocks():
            order = np.random.default_rng([self.seed, self.position["epoch"], self.position["block"]]).permutation(len(block))
            for row in order[self.position["given"] :]:
                self.position["given"] += 1
                try:
                    item = self._item(block[row])
                except UnreadableImage as error:
                    if not self.skip_unreadable:
                        raise StreamError(self._sentence(block[row], row, error)) from error
                    self.left_out.append(str(self._sentence(block[row], row, error)))
                    continue
                except UnsuitableImage as error:
                    raise StreamError(self._sentence(block[row], row, error)) from error
                readable = True
                yield self._with_left_out(item)
        if self.left_out and not readable:
            raise StreamError(f"None of the images of the stream can be read. {self.left_out[0]}")

    def suitable_items(self) -> Iterator[dict[str, Any]]:
        """What the present epoch still has, without what can't be trained on."""
        for block in self._blocks():
            for row in block:
                try:
                    yield self._item(row)
                except UnsuitableImage:
                    continue

    def _blocks(self) -> Iterator[list[dict]]:
        """The blocks of the present epoch, from the present position on, which follows."""
        self.rows.set_epoch((self.seed << 32) + self.position["epoch"] + 1)
        self.rows.load_state_dict(self.position["files"])
        rows = iter(self.rows)
        while block := self._next_block(rows):
            files = self.rows.state_dict()
            yield block
            self.position |= {"block": self.position["block"] + 1, "given": 0, "files": files}

    def _next_block(self, rows: Iterator[dict]) -> list[dict]:
        try:
            return list(islice(rows, self.buffer_size))
        except Exception as error:  # whatever the Hub, a disk or a file of rows leads to
            raise StreamError(f"The stream can't be read on: {reason_of(root_cause(error))}") from error

    def _item(self, row: dict) -> dict[str, Any]:
        pixels, levels = self.decoder(row[self.image_column])
        shape, number = self.format
        if tuple(pixels.shape) != shape or levels not in (None, number):
            found = (tuple(pixels.shape), levels)
            text = "All images must have one shape and type, but after {} the stream has {}: {}."
            formats = (self.format, found)
            raise UnsuitableImage(Message(text, *map(describe_format, formats), remedy_for(formats)))
        if levels != self.num_levels and (highest := int(pixels.max())) >= self.num_levels:
            raise UnsuitableImage(Message("{num_levels} is {}, but the image has values up to {}.", self.num_levels, highest))
        label, caption = self.label_column, self.caption_column
        if label is not None and (problem := label_problem(row[label], self.num_classes)):
            raise UnsuitableImage(Message("{label_column} {!r} {}", label, problem))
        if caption is not None and (problem := caption_problem(stored_caption(row, caption), caption)):
            raise UnsuitableImage(Message("{caption_column} {!r} {}", caption, problem))
        return {"images": pixels} | told(row, label, caption)

    def _with_left_out(self, item: dict) -> dict:
        left_out, self.left_out = self.left_out, []
        return item | {"unreadable": left_out} if self.skip_unreadable else item

    def _sentence(self, row: dict, number: int, error: UnsuitableImage) -> Message:
        """What is wrong with a row, and which it is: by the path of its file, or by its number as this process reads them."""
        image, position = row[self.image_column], self.position
        place = f"Row {position['block'] * self.buffer_size + int(number)} of epoch {position['epoch']} of the stream"
        path = image.get("path") if isinstance(image, dict) else None
        if self.skip_unreadable and path:
            place = path  # the same in every epoch
        elif path:
            place += f", {path}"
        remedy = isinstance(error, UnreadableImage) and not self.skip_unreadable
        return Message("{}: {}" + " Leave out such images by {skip_unreadable_images}." * remedy, place, error)


def _collate(items: list[dict]) -> dict:
    """A batch, with what was left out on the way as one list."""
    unreadable = [sentence for item in items for sentence in item.pop("unreadable", [])]
    return collate(items) | {"unreadable": unreadable}


class StreamLoader:
    """Batches of this process's share of a stream, without end. Its state is that of every process.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Which process this is, and its device.
        stream ([`ImageStream`]): The stream of all processes.
        batch_size, num_workers (`int`): As `DataLoader` takes them.

    Attributes:
        unreadable (`list[str]`): What was left out on the way, one sentence an image, for the reader to take away.

    Raises `ValueError` if there are more workers than files to read.
    """

    def __init__(self, accelerator: Accelerator, stream: ImageStream, batch_size: int, num_workers: int):
        from torchdata.stateful_dataloader import StatefulDataLoader

        self.accelerator = accelerator
        stream = stream.split(accelerator.process_index, accelerator.num_processes)
        if num_workers > stream.rows.num_shards:
            text = (
                "{dataloader_num_workers} is {}, but the stream has {} files for each process, which its workers share:"
                " lower it."
            )
            raise ValueError(Message(text, num_workers, stream.rows.num_shards))
        self.loader = StatefulDataLoader(
            stream,
            batch_size,
            num_workers=num_workers,
            generator=torch.Generator(),
            collate_fn=_collate,
            pin_memory=can_be_pinned(accelerator.device),
        )
        self.unreadable: list[str] = []
        self.iterator, self.before, self.is_back = None, None, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            self.unreadable += batch.pop("unreadable")
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def take(self, number: int) -> list[dict[str, Any]]:
        """The next batches; [`StreamError`] if one of their rows doesn't fit. [`go_back`] takes them back."""
        self.iterator = self.iterator or iter(self)
        self.before = self.loader.state_dict()
        return [next(self.iterator) for _ in range(number)]

    def go_back(self) -> None:
        """Let the state be that before the last batches were taken; nothing can be taken then."""
        self.is_back = True

    def state_dict(self) -> dict:
        """Called by all processes at once."""
        return {"processes": gather_object([self.before if self.is_back else self.loader.state_dict()])}

    def load_state_dict(self, state: dict) -> None:
        if len(state["processes"]) != self.accelerator.num_processes:
            raise ValueError(
                f"A stream that {len(state['processes'])} processes have read goes on with as many, not with"
                f" {self.accelerator.num_processes}."
            )
        self.loader.load_state_dict(state["processes"][self.accelerator.process_index])


def load_image_stream(
    max_validation_images: int,
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    validation_split: str | None = None,
    resolution: int | None = None,
    num_channels: int | None = None,
    num_levels: int | None = None,
    num_spatial_dims: int | None = None,
    buffer_size: int = 10_000,
    seed: int = 0,
    preparation: Preparation = AS_STORED,
    skip_unreadable_images: bool = False,
) -> ImageData:
    """
    As [`load_images`], with a training set that is read as it is needed and a part of the held-out images, kept undecoded.

    Args:
        max_validation_images (`int`): Held-out images to keep, the first ones.
        buffer_size, seed (`int`): As [`ImageStream`] takes them.

    Raises:
        `ValueError`: as [`load_images`]; but of the training set only the first images are checked before they come.
    """
    from datasets import ClassLabel

    splits = load_splits(dataset_name, train_data_dir, dataset_config_name, cache_dir, streaming=True)
    split = held_out_split(splits, validation_split)
    if split is None:
        raise ValueError(Message("A stream needs a held-out split: name one by {validation_split}, or leave out {streaming}."))
    features = splits["train"].features
    if features is None:
        raise ValueError(Message("The data set doesn't say what its columns are: leave out {streaming}."))
    image_column = find_image_column(features, image_column, label_column, caption_column)
    if label_column is not None and not isinstance(features[label_column], ClassLabel):
        text = "{label_column} {!r} of a stream must be a ClassLabel, which says how many there are."
        raise ValueError(Message(text, label_column))
    num_classes = None if label_column is None else features[label_column].num_classes
    decoder = decoder_of(features[image_column], preparation, num_spatial_dims)
    streams = {name: undecoded(rows, image_column) for name, rows in splits.items()}
    first, held_out = (
        inspect(_first(streams[name], number), name, image_column, decoder, skip_unreadable=skip_unreadable_images)
        for name, number in (("train", FIRST_ROWS), (split, max_validation_images))
    )
    shape, levels = common_format([first, held_out])
    check_shape(shape, resolution, num_channels)
    check_type(levels, num_levels)
    check_values([first, held_out], levels, num_levels)
    check_number(held_out.rows, split)
    if label_column is not None:
        count_classes([first, held_out], label_column)
    if caption_column is not None:
        check_captions([first, held_out], caption_column)
        check_some_captions([held_out], caption_column)
    return ImageData(
        train=ImageStream(
            streams["train"],
            image_column,
            label_column,
            (shape, levels),
            buffer_size,
            seed,
            decoder,
            num_levels,
            num_classes,
            skip_unreadable_images,
            caption_column,
        ),
        validation=ImageDataset(held_out.rows, image_column, label_column, decoder, (shape, levels), caption_column),
        shape=shape,
        num_levels=num_levels or levels,
        num_classes=num_classes,
        name=dataset_name or train_data_dir,
        class_names=names_of_classes(features, label_column),
        preparation=preparation,
        unreadable=tuple(held_out.unreadable),
        has_captions=caption_column is not None,
    )


def _first(rows, number: int):
    """The first rows of a stream, as a data set."""
    from datasets import Dataset

    try:
        return Dataset.from_list(list(rows.take(number)), features=rows.features)
    except Exception as error:  # whatever the Hub, a disk or a file of rows leads to
        raise ValueError(f"The stream can't be read: {reason_of(root_cause(error))}") from error
