"""The msgpack of a Flax state, read without Flax and without trust, and written byte for byte as Flax does.

Flax packs an array as an extension that is itself the msgpack of `[shape, type, bytes]`. Nothing is executed, every length is
checked against the bytes that are left, and arrays stay in the file until they are asked for.
"""

import math
import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from torch import Tensor


HEADS: dict[str, tuple[tuple[int, int, str], ...]] = {
    "map": ((1 << 4, 0x80, ""), (1 << 16, 0xDE, "H"), (1 << 32, 0xDF, "I")),
    "list": ((1 << 4, 0x90, ""), (1 << 16, 0xDC, "H"), (1 << 32, 0xDD, "I")),
    "text": ((1 << 5, 0xA0, ""), (1 << 8, 0xD9, "B"), (1 << 16, 0xDA, "H"), (1 << 32, 0xDB, "I")),
    "bytes": ((1 << 8, 0xC4, "B"), (1 << 16, 0xC5, "H"), (1 << 32, 0xC6, "I")),
    "extension": ((1 << 8, 0xC7, "B"), (1 << 16, 0xC8, "H"), (1 << 32, 0xC9, "I")),
    "number": ((1 << 7, 0x00, ""), (1 << 8, 0xCC, "B"), (1 << 16, 0xCD, "H"), (1 << 32, 0xCE, "I"), (1 << 64, 0xCF, "Q")),
}
"""How a value begins: `(limit, tag, code)` for lengths, or numbers, below the limit, which follow the tag in that `struct` code
or, without one, are added to it."""

TAGS: dict[int, tuple[str, object]] = {
    **{tag: (kind, code) for kind, heads in HEADS.items() for _, tag, code in heads if code},
    **{tag + i: (kind, i) for kind, heads in HEADS.items() for limit, tag, code in heads if not code for i in range(limit)},
    **{tag: ("number", code) for tag, code in zip((0xCA, 0xCB, 0xD0, 0xD1, 0xD2, 0xD3), "fdbhiq")},
    **{0xE0 + i: ("number", i - 32) for i in range(32)},
    **{0xD4 + i: ("extension", 1 << i) for i in range(5)},
    **{0xC0: ("constant", None), 0xC2: ("constant", False), 0xC3: ("constant", True)},
}
"""What a first byte means: the kind of value, and its length or value, or the `struct` code of it."""

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
MAX_VALUES = 1 << 18  # an imagenet64 state with the two moments of its optimiser has 5e4
MAX_DEPTH = 32
MAX_TEXT = 1024


@dataclass(frozen=True)
class Place:
    """Bytes of the file that were passed over."""

    offset: int
    length: int


@dataclass(frozen=True)
class StoredArray:
    """An array that is still in the file, in one or several places."""

    shape: tuple[int, ...]
    dtype: np.dtype
    places: tuple[Place, ...]

    def read(self, file: BinaryIO) -> np.ndarray:
        """The array itself."""
        content = np.empty(sum(place.length for place in self.places), np.uint8)
        start = 0
        for place in self.places:
            file.seek(place.offset)
            file.readinto(content[start : start + place.length])
            start += place.length
        return content.view(self.dtype).reshape(self.shape)


class StateReader:
    """
    Reads the msgpack of a Flax state from a file, leaving the arrays where they are.

    It raises `ValueError`, naming the key, for anything that is not such a state, and holds at most `MAX_VALUES` values.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.offset, self.num_values = file, 0, 0
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def state(self) -> dict:
        """The whole file: nested dictionaries whose leaves are [`StoredArray`]s and numbers."""
        state = self._value("", 0)
        if not isinstance(state, dict):
            raise ValueError(f"The file begins with {type(state).__name__}, not with a map: it is no Flax state.")
        if self.offset != self.size:
            raise ValueError(f"The file goes on for {self.size - self.offset:,} bytes after the state: it is damaged.")
        return state

    def _value(self, key: str, depth: int) -> object:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"{_name(key)} is beyond {MAX_VALUES:,} values or {MAX_DEPTH} levels: this is no state of a VDM.")
        tag = self._take(1, key)[0]
        if tag not in TAGS:
            raise ValueError(f"{_name(key)} begins with the byte {tag:#x}, which msgpack does not use: the file is damaged.")
        kind, value = TAGS[tag]
        if isinstance(value, str):
            value = self._number(value, key)
        match kind:
            case "map":
                return self._map(value, key, depth)
            case "list":
                return [self._value(f"{key}[{i}]", depth + 1) for i in range(self._claim(value, key))]
            case "text":
                return self._text(value, key)
            case "bytes":
                return self._skip(value, key)
            case "extension":
                return self._extension(value, key, depth)
        return value

    def _claim(self, count: int, key: str) -> int:
        """`count`, if as many bytes are left."""
        remaining = self.size - self.offset
        if count > remaining:
            raise ValueError(
                f"{_name(key)} claims {count:,} bytes or more, but the file has {remaining:,} left: it is truncated or damaged."
            )
        return count

    def _take(self, count: int, key: str) -> bytes:
        self.offset += self._claim(count, key)
        return self.file.read(count)

    def _skip(self, count: int, key: str) -> Place:
        place = Place(self.offset, self._claim(count, key))
        self.offset = self.file.seek(self.offset + count)
        return place

    def _number(self, code: str, key: str) -> int | float:
        return struct.unpack(f">{code}", self._take(struct.calcsize(f">{code}"), key))[0]

    def _text(self, length: int, key: str) -> str:
        text = self._take(min(length, MAX_TEXT), key).decode(errors="replace")
        if length > MAX_TEXT or not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
            raise ValueError(f"{_name(key)} has a text of {length:,} bytes that can be no name: the file is damaged.")
        return text

    def _map(self, length: int, key: str, depth: int) -> dict | StoredArray:
        content = {}
        for _ in range(self._claim(length, key)):
            name = self._value(key, depth + 1)
            if not isinstance(name, str) or name in content:
                raise ValueError(f"{_name(key)} has an entry whose name is {name!r}, no text or one used twice: it is damaged.")
            content[name] = self._value(f"{key}/{name}" if key else name, depth + 1)
        return _joined(content, key) if CHUNKED in content else content

    def _extension(self, length: int, key: str, depth: int) -> StoredArray | complex:
        code = self._number("b", key)
        if code not in (ARRAY, COMPLEX, SCALAR):
            raise ValueError(f"{_name(key)} is of the extension type {code}, but a Flax state has only arrays (1, 2 and 3).")
        end = self.offset + self._claim(length, key)
        content = self._value(key, depth + 1)
        if self.offset != end:
            raise ValueError(f"{_name(key)} does not fill the {length:,} bytes that it claims: the file is damaged.")
        return _complex(content, key) if code == COMPLEX else _stored_array(content, key)


def _name(key: str) -> str:
    return f"`{key}`" if key else "The file"


def _stored_array(content: object, key: str) -> StoredArray:
    match content:
        case [[*shape], str(dtype), Place() as place] if dtype in DTYPES and _is_shape(shape):
            array = StoredArray(tuple(shape), np.dtype(dtype), (place,))
            _check_size(array, key)
            return array
    raise ValueError(f"{_name(key)} is no array of a shape, one of the types {', '.join(DTYPES)}, and bytes.")


def _complex(content: object, key: str) -> complex:
    match content:
        case [float(real), float(imaginary)]:
            return complex(real, imaginary)
    raise ValueError(f"{_name(key)} is no complex number of two floats.")


def _joined(content: dict, key: str) -> StoredArray:
    """The array that Flax has split into flat chunks: `{CHUNKED: True, "shape": {"0": ...}, "chunks": {"0": ...}}`."""
    shape, chunks = (_in_order(content.get(part)) for part in ("shape", "chunks"))
    if not chunks or not _is_shape(shape) or not all(isinstance(chunk, StoredArray) for chunk in chunks):
        raise ValueError(f"{_name(key)} is no chunked array of a shape and chunks.")
    if len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError(f"{_name(key)} has chunks of different types.")
    array = StoredArray(tuple(shape), chunks[0].dtype, tuple(place for chunk in chunks for place in chunk.places))
    _check_size(array, key)
    return array


def _in_order(content: object) -> list | None:
    """`[a, b, ...]` of `{"0": a, "1": b, ...}`, else `None`."""
    if not isinstance(content, dict) or set(content) != {str(i) for i in range(len(content))}:
        return None
    return [content[str(i)] for i in range(len(content))]


def _is_shape(shape: list | None) -> bool:
    return shape is not None and len(shape) <= MAX_DEPTH and all(type(length) is int and length >= 0 for length in shape)


def _check_size(array: StoredArray, key: str) -> None:
    size, expected = sum(place.length for place in array.places), math.prod(array.shape) * array.dtype.itemsize
    if size != expected:
        raise ValueError(f"{_name(key)} has the shape {array.shape}, but {size:,} bytes: the file is damaged.")


def write_state(file: BinaryIO, value: dict | str | int | Tensor) -> None:
    """Write a state of dictionaries, non-negative integers and tensors, in float32, byte for byte as Flax does."""
    match value:
        case dict():
            file.write(_head("map", len(value)))
            for name in value:
                write_state(file, name)
                write_state(file, value[name])
        case str():
            file.write(_head("text", len(value.encode())) + value.encode())
        case int():
            file.write(_head("number", value))
        case Tensor():
            array = value.float().cpu().contiguous().numpy()
            content = _head("list", 3) + _head("list", array.ndim) + b"".join(_head("number", n) for n in array.shape)
            content += _head("text", len(array.dtype.name)) + array.dtype.name.encode() + _head("bytes", array.nbytes)
            file.write(_head("extension", len(content) + array.nbytes) + bytes([ARRAY]) + content)
            file.write(array.data)


def _head(kind: str, size: int) -> bytes:
    """The shortest beginning of a value of that length, or of that number."""
    tag, code = next((tag, code) for limit, tag, code in HEADS[kind] if size < limit)
    return struct.pack(f">B{code}", tag, size) if code else bytes([tag + size])
