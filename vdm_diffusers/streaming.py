"""Streams of images: data sets that are read while training goes on, never downloaded or decoded as a whole."""

import copy
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import IterableDataset

from .data import (
    ImageData,
    ImageDataset,
    check_levels,
    check_shape,
    check_type,
    common_format,
    find_image_column,
    held_out_split,
    image_format,
    image_to_tensor,
    load_splits,
    names_of_classes,
)


class ImageStream(IterableDataset):
    """
    The rows of a [`datasets.IterableDataset`] as [`ImageDataset`] has them, shuffled, epoch after epoch without end.

    Every epoch has its own order of the files. Rows are shuffled within blocks of `buffer_size`, which are held undecoded. A
    position is that of the files where the block begins and the number of its rows that were given, so that a stream which
    loads it goes on exactly, at the cost of reading one block.

    Args:
        rows ([`datasets.IterableDataset`]): Its images undecoded (`Image(decode=False)`), or integer arrays.
        image_column (`str`): Its images.
        label_column (`str`, *optional*): Its integer labels.
        format (`tuple`): The shape and number of levels that every image must have, as [`image_format`] gives them.
        buffer_size (`int`): Rows of a block.
        seed (`int`): Of the order.
    """

    def __init__(self, rows, image_column: str, label_column: str | None, format: tuple, buffer_size: int, seed: int):
        self.rows, self.image_column, self.label_column = rows, image_column, label_column
        self.format, self.buffer_size, self.seed = format, buffer_size, seed
        self.position = {"epoch": 0, "block": 0, "given": 0, "files": None}

    def split(self, process_index: int, num_processes: int) -> "ImageStream":
        """The share of one process: files of its own if their number is a multiple of `num_processes`, else every n-th row."""
        from datasets.distributed import split_dataset_by_node

        rows = split_dataset_by_node(self.rows, process_index, num_processes)
        return ImageStream(rows, self.image_column, self.label_column, self.format, self.buffer_size, self.seed)

    def state_dict(self) -> dict:
        return self.position.copy()

    def load_state_dict(self, state: dict) -> None:
        self.position = state.copy()

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        self.rows = copy.deepcopy(self.rows)  # whose epoch lies in memory that workers share, but they differ in epoch
        while True:
            yield from self.epoch()
            if not self.position["block"]:
                raise ValueError("There are fewer files in the stream than processes that read it: lower their number.")
            self.position = {"epoch": self.position["epoch"] + 1, "block": 0, "given": 0, "files": None}

    def epoch(self) -> Iterator[dict[str, Tensor | int]]:
        """What the present epoch still has, from the present position on."""
        for block in self._blocks():
            order = np.random.default_rng([self.seed, self.position["epoch"], self.position["block"]]).permutation(len(block))
            for row in order[self.position["given"] :]:
                self.position["given"] += 1
                yield self._item(block[row])

    def _blocks(self) -> Iterator[list[dict]]:
        """The blocks of the present epoch, from the present position on, which follows."""
        self.rows.set_epoch((self.seed << 32) + self.position["epoch"] + 1)
        self.rows.load_state_dict(self.position["files"])
        rows = iter(self.rows)
        while block := list(islice(rows, self.buffer_size)):
            files = self.rows.state_dict()
            yield block
            self.position |= {"block": self.position["block"] + 1, "given": 0, "files": files}

    def _item(self, row: dict) -> dict[str, Tensor | int]:
        image = row[self.image_column]
        if isinstance(image, dict):
            from datasets import Image

            image = Image().decode_example(image)
        if image_format(image) != self.format:
            raise ValueError(
                f"All images must have one shape and type, but after {self.format} the stream has {image_format(image)}"
                " (shape, levels): make them alike first."
            )
        item = {"images": image_to_tensor(image)}
        return item if self.label_column is None else item | {"class_labels": row[self.label_column]}


class StreamLoader:
    """Batches of this process's share of a stream, without end. Its state is that of every process.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Which process this is, and its device.
        stream ([`ImageStream`]): The stream of all processes.
        batch_size, num_workers (`int`): As `DataLoader` takes them.

    Raises `ValueError` if there are more workers than files to read.
    """

    def __init__(self, accelerator: Accelerator, stream: ImageStream, batch_size: int, num_workers: int):
        from torchdata.stateful_dataloader import StatefulDataLoader

        self.accelerator = accelerator
        stream = stream.split(accelerator.process_index, accelerator.num_processes)
        if num_workers > stream.rows.num_shards:
            raise ValueError(
                f"`--dataloader_num_workers` is {num_workers}, but the stream has {stream.rows.num_shards} files for each"
                " process, which its workers share: lower it."
            )
        self.loader = StatefulDataLoader(stream, batch_size, num_workers=num_workers, generator=torch.Generator())

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            yield send_to_device(batch, self.accelerator.device)

    def state_dict(self) -> dict:
        """Called by all processes at once."""
        return {"processes": gather_object([self.loader.state_dict()])}

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
    validation_split: str | None = None,
    resolution: int | None = None,
    num_channels: int | None = None,
    num_levels: int | None = None,
    buffer_size: int = 10_000,
    seed: int = 0,
) -> ImageData:
    """
    As [`load_images`], with a training set that is read as it is needed and a part of the held-out images, kept undecoded.

    Args:
        max_validation_images (`int`): Held-out images to keep, the first ones.
        buffer_size, seed (`int`): As [`ImageStream`] takes them.

    Raises:
        `ValueError`: as [`load_images`]; but the images of the training set are checked when they come.
    """
    from datasets import ClassLabel, Dataset, Image

    splits = load_splits(dataset_name, train_data_dir, dataset_config_name, cache_dir, streaming=True)
    split = held_out_split(splits, validation_split)
    if split is None:
        raise ValueError("A stream needs a held-out split: name one by `--validation_split`, or leave out `--streaming`.")
    features = splits["train"].features
    if features is None:
        raise ValueError("The data set doesn't say what its columns are: leave out `--streaming`.")
    image_column = find_image_column(features, image_column, label_column)
    if label_column is not None and not isinstance(features[label_column], ClassLabel):
        raise ValueError(f"`--label_column` {label_column!r} of a stream must be a ClassLabel, which says how many there are.")
    if isinstance(features[image_column], Image):
        splits = {name: rows.cast_column(image_column, Image(decode=False)) for name, rows in splits.items()}
    held_out, first = (
        Dataset.from_list(list(splits[name].take(number)), features=splits[name].features).cast(features)
        for name, number in ((split, max_validation_images), ("train", 1))
    )
    shape, levels = common_format({"train": first, split: held_out}, image_column)
    check_shape(shape, resolution, num_channels)
    validation = ImageDataset(held_out, image_column, label_column)
    check_type(levels, num_levels)
    if num_levels is not None and num_levels < levels:
        check_levels(validation, num_levels)
    return ImageData(
        train=ImageStream(splits["train"], image_column, label_column, (shape, levels), buffer_size, seed),
        validation=validation,
        shape=shape,
        num_levels=num_levels or levels,
        num_classes=None if label_column is None else features[label_column].num_classes,
        name=dataset_name or train_data_dir,
        class_names=names_of_classes(features, label_column),
    )
