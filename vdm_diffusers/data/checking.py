"""One pass over every image before training, by the very decoder of training: what all have in common, and what doesn't fit.

The pass is kept by the cache of `datasets`, so that it is free as long as the files and the decoder stay what they were.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL

from ..guards.messages import Message, from_json, to_json
from ..pictures import UnsuitableImage, in_words
from .captions import caption_problem, captions_in, stored_captions
from .decoding import Decoder, UnreadableImage


BATCH_SIZE = 64
FORMAT_VERSION = 2
"""Of what [`describe_images`] returns; another one for every change of the decoder."""
FIELDS = ("shape", "levels", "lowest", "highest")
UNKNOWN = -1
Format = tuple[tuple[int, ...], int | None]
"""The `(C, *size)` of an image and the number of levels of its type, `None` if that doesn't say."""


@dataclass
class Inspection:
    """
    What a pass over a split has found.

    Attributes:
        name (`str`): Of the split.
        rows ([`datasets.Dataset`]): Those whose image can be read.
        kept (`np.ndarray`): Where they were in the split.
        paths (`list[str | None]`): Of the files of all rows of the split.
        facts (`dict[str, np.ndarray]`): The `FIELDS` of `rows`; their shapes as text.
        unreadable (`list[str]`): One sentence for every row that was left out.
    """

    name: str
    rows: Any
    kept: np.ndarray
    paths: list[str | None]
    facts: dict[str, np.ndarray]
    unreadable: list[str]

    def place(self, row: int) -> str:
        """Where one of `rows` was found, for messages."""
        return _place(self.name, self.kept[row], self.paths[self.kept[row]])

    def formats(self) -> dict[Format, str]:
        """Every format, with the place where it was found first."""
        first: dict[tuple[str, int], int] = {}
        for row, format in enumerate(zip(self.facts["shape"].tolist(), self.facts["levels"].tolist())):
            first.setdefault(format, row)
        return {(_numbers(shape), _known(levels)): self.place(row) for (shape, levels), row in first.items()}


def inspect(
    rows: Any, name: str, column: str, decoder: Decoder, num_workers: int = 0, skip_unreadable: bool = False
) -> Inspection:
    """
    Decode every image of a split.

    Args:
        rows ([`datasets.Dataset`]): The split, its images undecoded (`Image(decode=False)`) or arrays.
        name (`str`): Of the split.
        column (`str`): Its images.
        decoder ([`Decoder`]): That of training.
        num_workers (`int`): Processes to decode with; 0 is this one.
        skip_unreadable (`bool`): Whether images that can't be read are left out.

    Raises:
        `ValueError`: naming the first image that can't be trained on, with the reason.
    """
    if len(rows) == 0:
        raise ValueError(f"The split {name!r} has no images.")
    found = _describe_all(rows, column, decoder, num_workers)
    problems, unreadable = found["problem"], np.asarray(found["unreadable"])
    wrong = [row for row, problem in enumerate(problems) if problem and not (skip_unreadable and unreadable[row])]
    if wrong:
        others = f" {len(wrong) - 1:,} more images can't be used either." if len(wrong) > 1 else ""
        text = "The image {}: {}{}" + LEAVE_OUT * bool(unreadable[wrong[0]])
        place = _place(name, wrong[0], found["path"][wrong[0]])
        raise ValueError(Message(text, place, from_json(problems[wrong[0]]), others))
    kept = np.flatnonzero(~unreadable)
    if len(kept) == 0:
        raise ValueError(f"None of the {len(rows):,} images of the split {name!r} can be read.")
    return Inspection(
        name,
        rows if len(kept) == len(rows) else rows.select(kept),
        kept,
        found["path"],
        {field: np.asarray(found[field])[kept] for field in FIELDS},
        [f"{_place(name, row, found['path'][row])}: {from_json(problems[row])}" for row in np.flatnonzero(unreadable)],
    )


LEAVE_OUT = " Repair or remove it, or leave out all that can't be read by {skip_unreadable_images}."


def _describe_all(rows: Any, column: str, decoder: Decoder, num_workers: int) -> dict[str, list]:
    def found(**kwargs: Any) -> dict[str, list]:
        return rows.map(
            describe_images,
            input_columns=[column],
            batched=True,
            batch_size=BATCH_SIZE,
            remove_columns=rows.column_names,
            num_proc=min(num_workers, len(rows)) or None,
            fn_kwargs={"decoder": decoder, "versions": (FORMAT_VERSION, PIL.__version__)},
            desc="Checking images",
            **kwargs,
        ).to_dict()

    result = found()
    if any(stamp != _stamp(path) for path, stamp in zip(result["path"], result["stamp"]) if stamp != UNKNOWN):
        return found(load_from_cache_file=False)
    return result


def describe_images(images: Sequence, decoder: Decoder, versions: tuple) -> dict[str, list]:
    """What is to be known of stored images; `versions` are part of what `datasets` knows the result by."""
    descriptions = [_describe(image, decoder) for image in images]
    return {key: [description[key] for description in descriptions] for key in descriptions[0]}


def _describe(image: Any, decoder: Decoder) -> dict[str, Any]:
    path = image.get("path") if isinstance(image, dict) else None
    lies_in_file = path is not None and image.get("bytes") is None
    description = dict.fromkeys(FIELDS, UNKNOWN) | {"shape": ""}
    description |= {"path": path or "", "stamp": _stamp(path) if lies_in_file else UNKNOWN, "problem": "", "unreadable": False}
    try:
        pixels, levels = decoder(image)
    except UnsuitableImage as error:
        return description | {"problem": to_json(error), "unreadable": isinstance(error, UnreadableImage)}
    values = (in_words(pixels.shape), UNKNOWN if levels is None else levels, int(pixels.min()), int(pixels.max()))
    return description | dict(zip(FIELDS, values))


def _stamp(path: str) -> int:
    """What changes with a file on a disk."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_mtime_ns ^ status.st_size


def _numbers(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("×")))


def _known(levels: int) -> int | None:
    return None if levels == UNKNOWN else int(levels)


def _place(split: str, row: int, path: str | None) -> str:
    return f"({split}[{row}]) {path}" if path else f"({split}[{row}])"


def common_format(inspections: Sequence[Inspection]) -> Format:
    """The format that all images share; `ValueError` that lists those that there are, with the remedy."""
    formats: dict[Format, str] = {}
    for inspection in inspections:
        for format, place in inspection.formats().items():
            formats.setdefault(format, place)
    if len(formats) > 1:
        text = "All images must have one shape and type, but there are {}: {}."
        raise ValueError(Message(text, _listed(formats), remedy_for(formats)))
    return next(iter(formats))


def _listed(formats: dict[Format, str]) -> str:
    differ_in_levels = len({shape for shape, _ in formats}) < len(formats)
    found = [f"{describe_format(format, differ_in_levels)} {place}" for format, place in list(formats.items())[:3]]
    more = f" and {len(formats) - 3} more" if len(formats) > 3 else ""
    return ", ".join(found) + more


def describe_format(format: Format, with_levels: bool = True) -> str:
    """In words, such as `3×32×32 of 256 levels`."""
    shape, levels = format
    return in_words(shape) + (f" of {levels} levels" if with_levels and levels is not None else "")


def remedy_for(formats: Sequence[Format]) -> Message | str:
    """What makes images of these formats alike."""
    if any(len(shape) != 3 for shape, _ in formats):
        return "make them alike beforehand"
    sizes = {shape[1:] for shape, _ in formats}
    types = {(shape[0], levels) for shape, levels in formats}
    options = ["{resize} with {center_crop}"] * (len(sizes) > 1) + ["{convert:RGB}"] * (len(types) > 1)
    return Message("make them alike by " + " and ".join(options) + ", or beforehand")


def check_values(inspections: Sequence[Inspection], levels: int | None, num_levels: int | None) -> None:
    """Raise `ValueError` unless the values of all images are below `num_levels`, which images of an unlimited type need."""
    highest = max(int(inspection.facts["highest"].max()) for inspection in inspections)
    if num_levels is None and levels is None:
        text = (
            "The type of the images doesn't say how many levels they have; their highest value is {}: give {num_levels}, such"
            " as {}, or store them as 8- or 16-bit integers."
        )
        raise ValueError(Message(text, highest, highest + 1))
    if num_levels is None or highest < num_levels:
        return
    for inspection in inspections:
        for row in np.flatnonzero(inspection.facts["highest"] >= num_levels)[:1]:
            lowest, highest = (inspection.facts[field][row] for field in ("lowest", "highest"))
            text = (
                "{num_levels} is {}, but image {} has values from {} to {}: images must be integers in [0, num_levels). It is"
                " {}."
            )
            raise ValueError(Message(text, num_levels, inspection.kept[row], lowest, highest, inspection.place(row)))


def count_classes(inspections: Sequence[Inspection], column: str) -> int:
    """How many classes the labels have; `ValueError`, naming the row, for what is no label."""
    feature = inspections[0].rows.features[column]
    number = getattr(feature, "num_classes", None)
    largest = 0
    for inspection in inspections:
        labels = list(inspection.rows[column])
        for row, label in enumerate(labels):
            if problem := label_problem(label, number):
                text = "{label_column} {!r} {} It is that of {}."
                raise ValueError(Message(text, column, problem, inspection.place(row)))
        largest = max(largest, *labels)
    return largest + 1 if number is None else number


def check_held_out_classes(train: Inspection, held_out: Inspection, column: str) -> None:
    """Raise `ValueError` if images are held out of a class that the model never sees."""
    unseen = sorted(set(held_out.rows[column]) - set(train.rows[column]))
    if unseen:
        names = getattr(train.rows.features[column], "names", None)
        which = f"{unseen[0]}" if names is None else f"{unseen[0]}, {names[unseen[0]]!r},"
        text = (
            "The split {!r} has images of the class {} but {!r} has none: leave them out, or name another split by"
            " {validation_split}."
        )
        raise ValueError(Message(text, held_out.name, which, train.name))


MAX_CLASSES = 10**6
"""Of integers that don't say how many classes there are."""


def label_problem(label: Any, num_classes: int | None) -> Message | str | None:
    """What is wrong with a label, to be said of its column; `None` if it is one."""
    if label is None:
        return "must hold integers from 0, but holds none: leave such images out, or name another column."
    if type(label) is not int:
        return (
            f"must hold integers from 0, but holds {type(label).__name__}: make them a `ClassLabel`, as `class_encode_column`"
            " of datasets does, or name another column."
        )
    if label < 0:
        return Message(
            "must hold integers from 0, but holds {}, which often means no label: leave such images out, or name a labelled"
            " {validation_split}.",
            label,
        )
    if num_classes is None and label >= MAX_CLASSES:
        return (
            f"holds {label:,}, but at most {MAX_CLASSES:,} classes are possible: number them from 0, as `class_encode_column`"
            " of datasets does."
        )
    if num_classes is not None and label >= num_classes:
        return f"has {num_classes} classes, but holds {label}: labels are integers from 0 to {num_classes - 1}."
    return None


def check_captions(inspections: Sequence[Inspection], column: str) -> None:
    """Raise `ValueError`, naming the row, for what is no caption."""
    for inspection in inspections:
        for row, stored in enumerate(stored_captions(inspection.rows, column)):
            if problem := caption_problem(stored, column):
                text = "{caption_column} {!r} {} It is that of {}."
                raise ValueError(Message(text, column, problem, inspection.place(row)))


def check_some_captions(inspections: Sequence[Inspection], column: str) -> None:
    """Raise `ValueError` for a split in which no caption says anything, as where only the other split has captions."""
    for inspection in inspections:
        if not any(any(captions_in(stored)) for stored in stored_captions(inspection.rows, column)):
            text = "{caption_column} {!r} holds no text for any image of the split {!r}: name another column or split."
            raise ValueError(Message(text, column, inspection.name))


def describe_unreadable(sentences: Sequence[str], shown: int = 3) -> str:
    """What to say of images that are left out: how many there are, and why the first ones are."""
    number = "1 image can't be read and is" if len(sentences) == 1 else f"{len(sentences):,} images can't be read and are"
    more = f" And {len(sentences) - shown:,} more." if len(sentences) > shown else ""
    return f"{number} left out. {' '.join(sentences[:shown])}{more}"
