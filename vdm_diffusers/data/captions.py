"""Captions: which columns hold them, and the texts that a row has there, one or several."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..guards.messages import Message


BATCH_SIZE = 1000
"""Rows that are looked at together."""


def text_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns, and fields of columns such as `json.caption`, that hold text or lists of text by their declared type."""
    found = []
    for name, feature in features.items():
        if isinstance(feature, dict):
            found += [f"{name}.{field}" for field in text_columns(feature)]
        elif getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string"):
            found.append(name)
    return found


def check_caption_column(features: Mapping[str, Any], caption_column: str, image_column: str) -> None:
    """Raise `ValueError` unless there is a column or a field of this name, other than that of the images."""
    if caption_column == image_column:
        text = "{caption_column} is {!r}, which is the column of images: name that of the captions."
        raise ValueError(Message(text, caption_column))
    feature = features
    for name in _path(features, caption_column):
        if not (isinstance(feature, dict) and name in feature):
            held = ", ".join(map(repr, text_columns(features)))
            what = f"the columns that hold text are {held}" if held else "no column holds text"
            raise ValueError(Message("{caption_column} is {!r}, but {}.", caption_column, what))
        feature = feature[name]


def stored_caption(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column or, where `column` is such as `json.caption`, in a field of it; `None` if nothing."""
    value = row
    for name in _path(row, column):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def stored_captions(rows: Any, column: str) -> Iterator[Any]:
    """The same of all rows of a [`datasets.Dataset`], their images unread."""
    name = column_of(rows.features, column)
    for batch in rows.select_columns([name]).iter(BATCH_SIZE):
        yield from (stored_caption({name: value}, column) for value in batch[name])


def column_of(features: Mapping[str, Any], column: str) -> str:
    """The column that a name is, or is a field of."""
    return _path(features, column)[0]


def _path(columns: Mapping[str, Any], name: str) -> list[str]:
    """A column and the fields in it that a name leads through."""
    return [name] if name in columns else name.split(".")


def captions_in(stored: Any) -> list[str]:
    """The captions that are stored for an image, at least one: what is missing is left out, and none at all is `""`."""
    return [text.decode() if isinstance(text, bytes) else text for text in _several(stored) if text is not None] or [""]


def caption_problem(stored: Any, column: str) -> Message | str | None:
    """What is wrong with what is stored, to be said of its column; `None` if it is a text, a list of texts, or nothing."""
    for text in _several(stored):
        if isinstance(text, Mapping):
            remedy = f"name one of its fields, such as '{column}.{next(iter(text), 'caption')}'"
            return f"must hold text or lists of text, but holds a mapping: {remedy}."
        if isinstance(text, bytes) and not _is_utf_8(text):
            return Message("holds bytes that are no UTF-8, {!r}: store them as text.", text[:12])
        if not isinstance(text, str | bytes | None):
            return f"must hold text or lists of text, but holds {type(text).__name__}: name another column."
    return None


def _several(stored: Any) -> list:
    return stored if isinstance(stored, list) else [stored]


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
