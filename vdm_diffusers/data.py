"""Image data sets: a name on the Hub, a folder, or the embedded digits -> integer images, checked before anything else runs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset


DIGITS_TRAIN_SIZE = 1500
MODES = {"1": (1, 2), "L": (1, 256), "LA": (2, 256), "RGB": (3, 256), "RGBA": (4, 256), "I;16": (1, 65536)}
"""Channels and levels of the PIL modes whose values are what they show; a palette's are not."""
VALIDATION_SPLITS = ("validation", "valid", "val", "test")


class ImageDataset(Dataset):
    """Rows of images and labels as `{"images": (C, H, W) integers, "class_labels": int}`, the label only if there are any.

    Args:
        rows: A sequence of mappings, such as a [`datasets.Dataset`].
        image_column (`str`): Its images: PIL images, or integer arrays `(H, W)` or `(H, W, C)`.
        label_column (`str`, *optional*): Its integer labels.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], image_column: str = "image", label_column: str | None = None):
        self.rows, self.image_column, self.label_column = rows, image_column, label_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        row = self.rows[index]
        item = {"images": image_to_tensor(row[self.image_column])}
        return item if self.label_column is None else item | {"class_labels": row[self.label_column]}


@dataclass
class ImageData:
    """A training and a validation set of images of one shape.

    Attributes:
        train, validation (`Dataset`): Their items are `{"images": (C, H, W) integers in [0, num_levels)}`, with
            `"class_labels"` in `[0, num_classes)` if there are classes. `train` may be an [`ImageStream`].
        shape (`tuple[int, int, int]`): Channels, height and width.
        num_levels (`int`): Number of grey levels.
        num_classes (`int`, *optional*): Number of classes.
        name (`str`): For messages and the model card.
        origin (`str`, *optional*): Of latents, which images they were encoded from and by what.
        class_names (`list[str]`, *optional*): Names of the classes in the order of their labels, where the data have them.
    """

    train: Dataset | IterableDataset
    validation: Dataset
    shape: tuple[int, int, int]
    num_levels: int
    num_classes: int | None
    name: str
    origin: str | None = None
    class_names: list[str] | None = None


def image_to_tensor(image: PIL.Image.Image | np.ndarray | list) -> Tensor:
    """A PIL image, or an integer array `(H, W)` or `(H, W, C)`, as integers `(C, H, W)`: uint8 if they fit, else int32."""
    array = np.asarray(image)
    if array.dtype.kind not in "biu" or array.ndim not in (2, 3):
        raise ValueError(
            f"An image has the shape {array.shape} and the type {array.dtype}, but images must be integers, (H, W) or"
            " (H, W, C)."
        )
    array = array[:, :, None] if array.ndim == 2 else array
    dtype = np.uint8 if array.dtype.itemsize == 1 else np.int32
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)).astype(dtype))


def load_digits(label_column: str | None = None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, in a fixed random split of 1,500 and 297.

    Their labels come along if `label_column` is `"label"`.
    """
    if label_column not in (None, "label"):
        raise ValueError(f"`--label_column` is {label_column!r}, but that of the digits is 'label'.")
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    rows = [{"image": digits.images[i].astype(np.uint8), "label": int(digits.target[i])} for i in order]
    return ImageData(
        train=ImageDataset(rows[:DIGITS_TRAIN_SIZE], "image", label_column),
        validation=ImageDataset(rows[DIGITS_TRAIN_SIZE:], "image", label_column),
        shape=(1, 8, 8),
        num_levels=17,
        num_classes=None if label_column is None else 10,
        name="digits",
        class_names=None if label_column is None else [str(digit) for digit in digits.target_names],
    )


def load_images(
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
) -> ImageData:
    """
    Load images from the Hub or from a folder and check every one of them; without either, the embedded digits.

    Images are never resized or converted: a bound in bits per dimension is one of the data as they are.

    Args:
        dataset_name (`str`, *optional*): A data set on the Hub.
        train_data_dir (`str`, *optional*): A folder of images or of parquet files, as [`datasets.load_dataset`] takes it.
        dataset_config_name (`str`, *optional*): Its configuration.
        cache_dir (`str`, *optional*): Where [`datasets`] keeps it.
        image_column (`str`, *optional*): Name of the column of images. Defaults to the only one, or to `"image"`.
        label_column (`str`, *optional*): Name of a column of class labels.
        validation_split (`str`, *optional*):
            Defaults to `validation` or `test`; where there is neither, a twentieth of the training images are held out.
        resolution, num_channels, num_levels (`int`, *optional*): What the images must have; taken from them by default.

    Raises:
        `ValueError`: that names the option and the remedy, for anything missing, contradictory or unsuitable.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError("`--dataset_name` and `--train_data_dir` are both given: choose one.")
    if dataset_name is None and train_data_dir is None:
        choices = {
            "dataset_config_name": dataset_config_name,
            "image_column": image_column,
            "validation_split": validation_split,
        }
        for option, value in choices.items():
            if value is not None:
                raise ValueError(f"`--{option}` is {value!r}, but the embedded digits have no choice of it: leave it out.")
        data = load_digits(label_column)
        check_shape(data.shape, resolution, num_channels)
        if num_levels not in (None, data.num_levels):
            raise ValueError(f"`--num_levels` is {num_levels}, but that of the digits is {data.num_levels}.")
        return data

    splits = load_splits(dataset_name, train_data_dir, dataset_config_name, cache_dir)
    train, validation = _train_and_validation(splits, validation_split)
    image_column = find_image_column(train.features, image_column, label_column)
    shape, levels = common_format({"train": train, "validation": validation}, image_column)
    check_shape(shape, resolution, num_channels)
    check_type(levels, num_levels)
    data = ImageData(
        train=ImageDataset(train, image_column, label_column),
        validation=ImageDataset(validation, image_column, label_column),
        shape=shape,
        num_levels=num_levels or levels,
        num_classes=None if label_column is None else _count_classes((train, validation), label_column),
        name=dataset_name or train_data_dir,
        class_names=names_of_classes(train.features, label_column),
    )
    if data.num_levels < levels:
        check_levels(data.train, num_levels)
        check_levels(data.validation, num_levels)
    return data


def load_splits(name: str | None, folder: str | None, config_name: str | None, cache_dir: str | None, streaming: bool = False):
    """The splits of a data set on the Hub or in a folder, by name; `ValueError` if it can't be loaded."""
    from datasets import load_dataset

    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"`--train_data_dir` {folder!r} is no folder: give one of images or parquet files.")
    option, source = ("--dataset_name", name) if folder is None else ("--train_data_dir", folder)
    try:
        return load_dataset(source, config_name, cache_dir=cache_dir, streaming=streaming)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`{option}` {source!r} could not be loaded: {reason} Give the name of a data set on the Hub as"
            " `--dataset_name`, or a folder of images or parquet files as `--train_data_dir`."
        ) from error


def _train_and_validation(splits, validation_split: str | None):
    validation_split = held_out_split(splits, validation_split)
    if validation_split is None:
        held_out = splits["train"].train_test_split(test_size=0.05, seed=0)
        return held_out["train"], held_out["test"]
    return splits["train"], splits[validation_split]


def held_out_split(splits, validation_split: str | None) -> str | None:
    """The name of the held-out split, `None` if there is none; `ValueError` without a split `train` or the one asked for."""
    if "train" not in splits:
        raise ValueError(f"The data set has no split 'train', only {', '.join(map(repr, splits))}.")
    if validation_split not in (None, *splits):
        raise ValueError(f"`--validation_split` is {validation_split!r}, but the splits are {', '.join(map(repr, splits))}.")
    return validation_split or next((name for name in VALIDATION_SPLITS if name in splits), None)


def find_image_column(features, image_column: str | None, label_column: str | None) -> str:
    """`image_column`, or the only column of images; `ValueError` if there is none of that name or of the `label_column`'s."""
    from datasets import Image

    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    image_column = image_column or (columns[0] if len(columns) == 1 else "image")
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in (None, *features):
            raise ValueError(f"`--{option}` is {column!r}, but the columns are {', '.join(map(repr, features))}.")
    return image_column


def common_format(datasets: dict[str, Any], image_column: str) -> tuple[tuple[int, int, int], int]:
    """The `(C, H, W)` and the number of levels that all images share, read from their headers alone where they have one."""
    formats: dict[tuple, str] = {}
    for split, dataset in datasets.items():
        for index, image in enumerate(_headers(dataset, image_column)):
            formats.setdefault(image_format(image), f"{split}[{index}]")
    if len(formats) > 1:
        found = ", ".join(
            f"{channels}×{height}×{width} ({place})" for ((channels, height, width), _), place in list(formats.items())[:3]
        )
        raise ValueError(f"All images must have one shape and type, but there are {found}: make them alike first.")
    return next(iter(formats))


def _headers(dataset, image_column: str):
    """The images of a data set, undecoded where they are stored as files."""
    from datasets import Image

    if not isinstance(dataset.features[image_column], Image):
        return (row[image_column] for row in dataset.select_columns([image_column]))
    files = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    files = (row[image_column] for row in files)
    return (PIL.Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) for file in files)


def image_format(image: PIL.Image.Image | list) -> tuple[tuple[int, int, int], int]:
    """The `(C, H, W)` of an image and the number of levels that its type holds; `ValueError` for PIL modes without levels."""
    if not isinstance(image, PIL.Image.Image):
        tensor = image_to_tensor(image)
        return tuple(tensor.shape), 256 if tensor.dtype == torch.uint8 else int(2**31)
    if image.mode not in MODES:
        raise ValueError(f"There are images of PIL mode {image.mode!r}: convert them to one of {', '.join(MODES)} first.")
    channels, levels = MODES[image.mode]
    return (channels, image.height, image.width), levels


def check_shape(shape: tuple[int, int, int], resolution: int | None, num_channels: int | None) -> None:
    channels, height, width = shape
    if resolution is not None and (height, width) != (resolution, resolution):
        raise ValueError(
            f"`--resolution` is {resolution}, but the images are {height}×{width}: leave it out, or resize the images"
            " beforehand, which makes them another data set."
        )
    if num_channels not in (None, channels):
        raise ValueError(f"`--num_channels` is {num_channels}, but the images have {channels}: leave it out.")


def check_type(levels: int, num_levels: int | None) -> None:
    """Raise `ValueError` unless a type of images that holds so many levels holds `num_levels`."""
    if num_levels is not None and num_levels > levels:
        raise ValueError(
            f"`--num_levels` is {num_levels}, but the images are of a type that holds {levels}: images of fewer levels are"
            " other data, with another likelihood."
        )


def check_levels(images: Dataset, num_levels: int) -> None:
    for index in range(len(images)):
        values = images[index]["images"]
        if values.min() < 0 or values.max() >= num_levels:
            raise ValueError(
                f"`--num_levels` is {num_levels}, but image {index} has values from {values.min()} to {values.max()}:"
                " images must be integers in [0, num_levels)."
            )


def names_of_classes(features, label_column: str | None) -> list[str] | None:
    """Those that a column of `ClassLabel`s has, as the column `label` of a folder does; `None` for plain integers."""
    return None if label_column is None else getattr(features[label_column], "names", None)


def _count_classes(datasets: tuple, label_column: str) -> int:
    feature = datasets[0].features[label_column]
    labels = np.concatenate([dataset[label_column] for dataset in datasets])
    if labels.dtype.kind not in "iu":
        raise ValueError(f"`--label_column` {label_column!r} must hold integers from 0, but holds {labels.dtype}.")
    if labels.min() < 0:
        raise ValueError(
            f"`--label_column` {label_column!r} must hold integers from 0, but holds {labels.min()}, which often means no"
            " label: leave such images out, or name a labelled `--validation_split`."
        )
    return getattr(feature, "num_classes", int(labels.max()) + 1)
