"""Image data sets: a name on the Hub, a folder, or one of our own -> integer images, checked before anything else runs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..guards.loading import reason_of, root_cause
from ..guards.messages import Argument, Message
from ..pictures import AXES, in_words
from .captions import check_caption_column, column_of
from .checking import (
    check_captions,
    check_held_out_classes,
    check_some_captions,
    check_values,
    common_format,
    count_classes,
    inspect,
)
from .decoding import AS_STORED, CONVERSIONS, Decoder, Preparation
from .digits import load_digits
from .emoji import load_emoji
from .image_data import ImageData, ImageDataset


EMBEDDED = "digits"
VALIDATION_SPLITS = ("validation", "valid", "val", "test")
MIN_HELD_OUT = 2
"""A standard error needs two images."""


SOURCES: dict[str, Callable[..., ImageData]] = {EMBEDDED: load_digits, "emoji": load_emoji}
"""Data sets that are neither on the Hub nor in a folder, by name: functions of `label_column` and `caption_column`. A new one
is one entry."""


def load_images(
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
    preparation: Preparation = AS_STORED,
    skip_unreadable_images: bool = False,
    num_workers: int = 0,
    check_train: bool = True,
) -> ImageData:
    """
    Load images from the Hub, from a folder or from one of the `SOURCES`, and check every file; by default, the digits.

    Images are resized and converted only where a `preparation` asks for it: a bound in bits per dimension is one of the data as
    they are.

    Args:
        dataset_name (`str`, *optional*): One of the `SOURCES`, or a data set on the Hub.
        train_data_dir (`str`, *optional*): A folder of images or of parquet files, as [`datasets.load_dataset`] takes it.
        dataset_config_name (`str`, *optional*): Its configuration.
        cache_dir (`str`, *optional*): Where [`datasets`] keeps it.
        image_column (`str`, *optional*): Name of the column of images. Defaults to the only one, or to `"image"`.
        label_column (`str`, *optional*): Name of a column of class labels.
        caption_column (`str`, *optional*): Name of a column of captions, texts or lists of texts, or of a field of one, such as
            `"json.caption"`.
        validation_split (`str`, *optional*):
            Defaults to `validation` or `test`; where there is neither, a twentieth of the training images, two at least, are
            held out.
        resolution, num_channels, num_levels (`int`, *optional*): What the images must have; taken from them by default.
        num_spatial_dims (`int`, *optional*): Dimensions of a sample beside its channels, 1 to 3. By default those of arrays
            are 1 of `(L)`, 2 of `(H, W)` and `(H, W, C)`, and 3 of `(D, H, W, C)`.
        preparation ([`Preparation`]): What is done to image files beyond reading them.
        skip_unreadable_images (`bool`): Whether images that can't be read are left out, and listed as `unreadable`.
        num_workers (`int`): Processes that check the images; 0 is this one.
        check_train (`bool`): Whether the training images are checked where there is a held-out split of its own.

    Raises:
        `ValueError`: that names the option and the remedy, for anything missing, contradictory or unsuitable.
    """
    if dataset_name is not None and train_data_dir is not None:
        raise ValueError(Message("{dataset_name} and {train_data_dir} are both given: choose one."))
    if train_data_dir is None and dataset_name in (None, *SOURCES):
        data = SOURCES[dataset_name or EMBEDDED](label_column=label_column, caption_column=caption_column)
        choices = {
            "dataset_config_name": dataset_config_name,
            "image_column": image_column,
            "validation_split": validation_split,
            "num_spatial_dims": num_spatial_dims,
            "resize": preparation.resize,
            "convert": preparation.convert,
        }
        for option, value in choices.items():
            if value is not None:
                text = "{} is {!r}, but {!r} has no choice of it: leave it out."
                raise ValueError(Message(text, Argument(option), value, data.name))
        check_shape(data.shape, resolution, num_channels)
        if num_levels not in (None, data.num_levels):
            raise ValueError(Message("{num_levels} is {}, but that of {!r} is {}.", num_levels, data.name, data.num_levels))
        return data

    splits = load_splits(dataset_name, train_data_dir, dataset_config_name, cache_dir)
    held_out = held_out_split(splits, validation_split)
    features = splits["train"].features
    image_column = find_image_column(features, image_column, label_column, caption_column)
    decoder = decoder_of(features[image_column], preparation, num_spatial_dims)
    columns = {image_column, label_column, caption_column and column_of(features, caption_column)} - {None}
    rows = {name: undecoded(splits[name].select_columns(sorted(columns)), image_column) for name in ("train", held_out) if name}
    inspections = [
        inspect(rows[name], name, image_column, decoder, num_workers, skip_unreadable_images)
        for name in rows
        if check_train or name == held_out or held_out is None
    ]
    shape, levels = common_format(inspections)
    check_shape(shape, resolution, num_channels)
    check_type(levels, num_levels)
    check_values(inspections, levels, num_levels)
    rows |= {inspection.name: inspection.rows for inspection in inspections}
    train, validation = (rows["train"], rows[held_out]) if held_out else _divided(rows["train"])
    check_number(validation, held_out)
    num_classes = None if label_column is None else count_classes(inspections, label_column)
    if label_column is not None and len(inspections) == 2:
        check_held_out_classes(*inspections, label_column)
    if caption_column is not None:
        check_captions(inspections, caption_column)
        check_some_captions(inspections, caption_column)
    return ImageData(
        train=ImageDataset(
            train, image_column, label_column, decoder, (shape, levels) if check_train else None, caption_column
        ),
        validation=ImageDataset(validation, image_column, label_column, decoder, (shape, levels), caption_column),
        shape=shape,
        num_levels=num_levels or levels,
        num_classes=num_classes,
        name=dataset_name or train_data_dir,
        class_names=names_of_classes(features, label_column),
        preparation=preparation,
        unreadable=tuple(sentence for inspection in inspections for sentence in inspection.unreadable),
        has_captions=caption_column is not None,
    )


def load_splits(name: str | None, folder: str | None, config_name: str | None, cache_dir: str | None, streaming: bool = False):
    """The splits of a data set on the Hub or in a folder, by name; `ValueError` if it can't be loaded."""
    from datasets import load_dataset

    if name == "":
        raise ValueError(Message("{dataset_name} is empty: give the name of a data set on the Hub."))
    if folder is not None and not (folder and Path(folder).is_dir()):
        raise ValueError(Message("{train_data_dir} {!r} is no folder: give one of images or parquet files.", folder))
    option, source = ("dataset_name", name) if folder is None else ("train_data_dir", folder)
    try:
        return load_dataset(source, config_name, cache_dir=cache_dir, streaming=streaming)
    except Exception as error:
        text = (
            "{} {!r} could not be loaded: {} Give the name of a data set on the Hub as {dataset_name}, or a folder of images or"
            " parquet files as {train_data_dir}."
        )
        raise ValueError(Message(text, Argument(option), source, reason_of(root_cause(error)))) from error


def _divided(rows):
    """Rows to train on, and a twentieth that is held out."""
    if len(rows) <= MIN_HELD_OUT:
        raise ValueError(
            f"The data set has {len(rows)} images, but at least {MIN_HELD_OUT + 1} are needed, of which {MIN_HELD_OUT} are held"
            " out, for a standard error needs two."
        )
    halves = rows.train_test_split(test_size=max(MIN_HELD_OUT, math.ceil(0.05 * len(rows))), seed=0)
    return halves["train"], halves["test"]


def check_number(validation, split: str | None) -> None:
    """Raise `ValueError` if there are too few held-out images."""
    if len(validation) < MIN_HELD_OUT:
        text = (
            "The held-out split {!r} has {} images, but a standard error needs {}: name another one by {validation_split}, or"
            " add to it."
        )
        raise ValueError(Message(text, split, len(validation), MIN_HELD_OUT))


def held_out_split(splits, validation_split: str | None) -> str | None:
    """The name of the held-out split, `None` if there is none; `ValueError` without a split `train` or the one asked for."""
    if "train" not in splits:
        raise ValueError(f"The data set has no split 'train', only {', '.join(map(repr, splits))}.")
    if validation_split not in (None, *splits):
        text = "{validation_split} is {!r}, but the splits are {}."
        raise ValueError(Message(text, validation_split, ", ".join(map(repr, splits))))
    return validation_split or next((name for name in VALIDATION_SPLITS if name in splits), None)


def find_image_column(
    features, image_column: str | None, label_column: str | None = None, caption_column: str | None = None
) -> str:
    """`image_column`, or the only column of images; `ValueError` if there is none of that name, or of another that is given."""
    from datasets import Image

    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    image_column = image_column or (columns[0] if len(columns) == 1 else "image")
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in (None, *features):
            text = "{} is {!r}, but the columns are {}."
            raise ValueError(Message(text, Argument(option), column, ", ".join(map(repr, features))))
    if label_column == image_column:
        text = "{label_column} is {!r}, which is the column of images: name that of the labels."
        raise ValueError(Message(text, label_column))
    if caption_column is not None:
        check_caption_column(features, caption_column, image_column)
    return image_column


def undecoded(rows, image_column: str):
    """The rows with the files of their images as they are stored; what is no file stays what it is."""
    from datasets import Image

    is_file = isinstance(rows.features[image_column], Image)
    return rows.cast_column(image_column, Image(decode=False)) if is_file else rows


def decoder_of(feature, preparation: Preparation, num_spatial_dims: int | None = None) -> Decoder:
    """What reads the images of a column, in the mode or of the type that it declares."""
    from datasets import Image

    if isinstance(feature, Image) and feature.mode is not None and preparation.convert is None:
        if feature.mode not in CONVERSIONS:
            raise ValueError(Message("The column of images declares PIL mode {!r}: choose another by {convert}.", feature.mode))
        preparation = replace(preparation, convert=feature.mode)
    dtype = getattr(_innermost(feature), "dtype", None)
    return Decoder(preparation, dtype if dtype in INTEGERS else None, num_spatial_dims)


def _innermost(feature):
    """What nested lists hold."""
    while inner := feature[0] if isinstance(feature, list) else getattr(feature, "feature", None):
        feature = inner
    return feature


INTEGERS = {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


def check_shape(shape: tuple[int, ...], resolution: int | None, num_channels: int | None) -> None:
    """Raise `ValueError` if a shape `(C, *size)` isn't the one asked for, or that of an array with its channels first."""
    channels, *size = shape
    if size[0] <= MAX_COLOURS and channels >= MIN_SIDE and num_channels != channels:
        axes = AXES[len(size)]
        text = (
            "The images are arrays {}, which looks like (C, {}): store them as ({}, C), or confirm by {num_channels:{}} that"
            " they are."
        )
        raise ValueError(Message(text, (*size, channels), axes, axes, channels))
    if resolution is not None and {*size} != {resolution}:
        text = "{resolution} is {}, but the images are {}: leave it out"
        text += ", or make them another data set by {resize:{}} with {center_crop}." if len(size) == 2 else "."
        raise ValueError(Message(text, resolution, in_words(size), resolution))
    if num_channels not in (None, channels):
        raise ValueError(Message("{num_channels} is {}, but the images have {}: leave it out.", num_channels, channels))


MAX_COLOURS, MIN_SIDE = 4, 8
"""Arrays with no more rows than colours, and at least so many channels as a picture has columns, have their channels first."""


def check_type(levels: int | None, num_levels: int | None) -> None:
    """Raise `ValueError` unless a type of images that holds so many levels holds `num_levels`."""
    if num_levels is not None and levels is not None and num_levels > levels:
        text = (
            "{num_levels} is {}, but the images are of a type that holds {}: images of fewer levels are other data, with"
            " another likelihood."
        )
        raise ValueError(Message(text, num_levels, levels))


def names_of_classes(features, label_column: str | None) -> list[str] | None:
    """Those that a column of `ClassLabel`s has, as the column `label` of a folder does; `None` for plain integers."""
    return None if label_column is None else getattr(features[label_column], "names", None)
