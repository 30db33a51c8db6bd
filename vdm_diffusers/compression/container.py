"""The file: a header, blocks of images that can be read each by itself, and an end that says how many images there are.

`docs/compression.md` has the format byte by byte. Everything is checked against its digest before it is made use of, and no
more is read into memory at once than the file has.
"""

import hashlib
import json
import struct
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np

from ..guards.arguments import Within, check_fields
from ..guards.messages import Message


MAGIC = b"\x89VDM\r\n\x1a\n"
VERSION = 1
MAX_HEADER_BYTES = 1 << 18
MAX_FACTS_BYTES = 1 << 10
"""An image, of its name and its label as JSON."""
MAX_STEPS = 1 << 12
MAX_DIMS = 1 << 24
"""Numbers of an image."""
MAX_IMAGES, MAX_BLOCK_DIMS = 1 << 12, 1 << 28
"""Images of a block, and their numbers together."""
MAX_WORD = 100
"""Characters of a hash, a version or a device."""
MAX_REASON = 300
"""Characters of what is wrong with a header, which may repeat what it says."""
READ_AT_ONCE = 1 << 20
DIGEST_BYTES = 8
HEADER, BLOCK, END = struct.Struct("<BI"), struct.Struct("<IIII"), struct.Struct("<Q")
PLACE = struct.Struct("<Q")
"""How many images are before a block: not in the file, but in the block's digest, so that no block takes another's place."""
BLOCK_TAG, END_TAG = b"B", b"E"


class DamagedFile(ValueError):
    """A file that is not one of compressed images, or not all of one; what was read before it was noticed is right."""


@dataclass(frozen=True)
class Header:
    """
    What all images of a file have in common.

    Attributes:
        shape (`list[int]`): `(C, *size)`.
        num_levels (`int`): Images are integers in `[0, num_levels)`.
        gammas (`list[float]`): The chain, gamma_0 to gamma_T, increasing.
        bin_precision (`int`): A bin is `2^-bin_precision` of the smallest standard deviation of its latent.
        weights (`str`): A digest of the model's.
        variances (`str`, *optional*): A digest of the optimal ones.
        arithmetic (`dict[str, str]`): By what the denoiser's outputs are computed: device, dtype, versions.
    """

    shape: list[Annotated[int, Within(1, MAX_DIMS)]]
    num_levels: Annotated[int, Within(2, 2**24)]
    gammas: list[Annotated[float, Within(-100, 100)]]
    bin_precision: Annotated[int, Within(0, 16)]
    weights: str
    variances: str | None
    arithmetic: dict

    def __post_init__(self):
        check_fields(self)
        if not 2 <= len(self.shape) <= 4 or self.num_dims > MAX_DIMS:
            raise ValueError(f"`shape` must be (C, *size) with at most {MAX_DIMS:,} numbers, but is {self.shape}.")
        if not 2 <= len(self.gammas) <= MAX_STEPS + 1 or not all(low < high for low, high in pairwise(self.gammas)):
            raise ValueError(f"`gammas` must increase, and be those of 1 to {MAX_STEPS:,} steps.")
        words = [self.weights, self.variances or "", *self.arithmetic, *self.arithmetic.values()]
        if not all(isinstance(word, str) and word.isprintable() and len(word) <= MAX_WORD for word in words):
            raise ValueError(f"`weights`, `variances` and `arithmetic` must be words of at most {MAX_WORD} characters.")

    @property
    def num_dims(self) -> int:
        """Numbers of an image."""
        return int(np.prod([int(length) for length in self.shape], dtype=object))

    @property
    def max_images(self) -> int:
        """How many a block may have."""
        return max(1, min(MAX_IMAGES, MAX_BLOCK_DIMS // self.num_dims))


class Block(NamedTuple):
    """
    Some images, coded together.

    Attributes:
        num_plain (`int`): The last of them, which are coded without the model.
        checksums (`Sequence[int]`): [`checksum`] of each image, at which reading wrong ones ends early.
        digest (`bytes`): [`digest_of_images`], which says that all are right.
        facts (`dict`): `names` and `labels`, lists with an element an image, if there are any.
        words (`np.ndarray`): The bits, uint32.
    """

    num_plain: int
    checksums: Sequence[int]
    digest: bytes
    facts: dict[str, list]
    words: np.ndarray


def checksum(levels: np.ndarray) -> int:
    """16 bits of an image: the lower ones of the CRC-32 of its levels as little-endian 32-bit integers."""
    return zlib.crc32(levels.astype("<i4").tobytes()) & 0xFFFF


def digest_of_images(images: Iterable[np.ndarray]) -> bytes:
    """8 bytes of all images of a block: BLAKE2b of their levels, as in [`checksum`]."""
    return _digest(*(levels.astype("<i4").tobytes() for levels in images))


def write_header(file: BinaryIO, header: Header) -> None:
    """Write what a file begins with."""
    content = zlib.compress(json.dumps(asdict(header), separators=(",", ":")).encode(), 9)
    start = MAGIC + HEADER.pack(VERSION, len(content)) + content
    file.write(start + _digest(start))


def write_block(file: BinaryIO, block: Block, num_before: int) -> None:
    """Append a block, which follows so many images; `ValueError` for names that are too long."""
    text = json.dumps(block.facts, separators=(",", ":")).encode() if block.facts else b""
    if len(text) > MAX_FACTS_BYTES * len(block.checksums):
        raise ValueError(f"Names of images are too long: a file has at most {MAX_FACTS_BYTES:,} bytes an image for them.")
    facts = zlib.compress(text, 9) if text else b""
    numbers = BLOCK.pack(len(block.checksums), block.num_plain, len(facts), len(block.words))
    checks = np.array(block.checksums, "<u2").tobytes() + block.digest
    content = BLOCK_TAG + numbers + facts + checks + block.words.astype("<u4").tobytes()
    file.write(content + _digest(PLACE.pack(num_before), content))


def write_end(file: BinaryIO, num_images: int) -> None:
    """Append what a file ends with."""
    content = END_TAG + END.pack(num_images)
    file.write(content + _digest(content))


def read_header(file: BinaryIO) -> Header:
    """What a file begins with; [`DamagedFile`] if that is not a header."""
    magic = _read(file, len(MAGIC))
    if magic != MAGIC:
        raise DamagedFile(Message("This is no file of compressed images: it begins with {!r}.", magic[:8]))
    numbers = _read_all(file, HEADER.size, "the header")
    version, size = HEADER.unpack(numbers)
    if version != VERSION:
        raise DamagedFile(f"The file is of version {version} of the format, but this library reads version {VERSION}.")
    if size > MAX_HEADER_BYTES:
        raise DamagedFile(f"The header claims {size:,} bytes, but has at most {MAX_HEADER_BYTES:,}.")
    content = _read_all(file, size, "the header")
    _check_digest(_read_all(file, DIGEST_BYTES, "the header"), "The header", magic, numbers, content)
    known = _json(content, MAX_HEADER_BYTES, "The header")
    if missing := [field.name for field in fields(Header) if field.name not in known]:
        raise DamagedFile(f"The header lacks {', '.join(missing)}.")
    try:
        return Header(**{field.name: known[field.name] for field in fields(Header)})
    except (TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), MAX_REASON, placeholder=" …")
        raise DamagedFile(f"The header says what no header does: {reason}") from error


def read_blocks(file: BinaryIO, header: Header) -> Iterator[Block]:
    """The blocks that follow; [`DamagedFile`] where one is damaged or the file ends before its end."""
    num_blocks = num_images = 0
    while (tag := _read_all(file, 1, _after(num_images))) == BLOCK_TAG:
        num_blocks += 1
        block = _read_block(file, header, f"Block {num_blocks}", num_images)
        num_images += len(block.checksums)
        yield block
    content = _read_all(file, END.size, _after(num_images))
    if tag != END_TAG:
        raise DamagedFile(f"There is neither a block nor the end of the file, {_after(num_images)}.")
    _check_digest(_read_all(file, DIGEST_BYTES, _after(num_images)), "The end of the file", tag, content)
    (counted,) = END.unpack(content)
    if counted != num_images or not num_images:
        raise DamagedFile(f"The file has {num_images:,} images, but its end counts {counted:,}: blocks are missing.")
    if file.read(1):
        raise DamagedFile(f"The file goes on after its end, with its {num_images:,} images: something was appended to it.")


def _after(num_images: int) -> str:
    return f"what follows its first {num_images:,} images" if num_images else "its first images"


def _read_block(file: BinaryIO, header: Header, name: str, num_before: int) -> Block:
    where = _after(num_before)
    numbers = _read_all(file, BLOCK.size, where)
    count, num_plain, num_facts_bytes, num_words = BLOCK.unpack(numbers)
    max_facts_bytes = MAX_FACTS_BYTES * count
    if not (0 < count <= header.max_images and num_plain <= count and num_facts_bytes <= max_facts_bytes):
        raise DamagedFile(
            f"{name} claims what no block has: {count:,} images, {num_plain:,} of them plain, and {num_facts_bytes:,} bytes of"
            " names and labels."
        )
    facts = _read_all(file, num_facts_bytes, where)
    checksums, of_images = _read_all(file, 2 * count, where), _read_all(file, DIGEST_BYTES, where)
    words = _read_all(file, 4 * num_words, where)
    digest = _read_all(file, DIGEST_BYTES, where)
    _check_digest(digest, name, PLACE.pack(num_before), BLOCK_TAG, numbers, facts, checksums, of_images, words)
    known = _json(facts, max_facts_bytes, name) if facts else {}
    if not all(isinstance(values, list) and len(values) == count for values in known.values()):
        raise DamagedFile(f"{name} has names or labels for another number of images than it has.")
    return Block(
        num_plain,
        np.frombuffer(checksums, "<u2").tolist(),
        of_images,
        known,
        np.frombuffer(words, "<u4").astype(np.uint32),
    )


def _json(content: bytes, max_bytes: int, name: str) -> dict[str, Any]:
    unpacked = zlib.decompressobj()
    try:
        known = json.loads(unpacked.decompress(content, max_bytes))
    except (zlib.error, ValueError, RecursionError) as error:
        raise DamagedFile(f"{name} has something else where JSON should be.") from error
    if unpacked.unconsumed_tail or not isinstance(known, dict):
        raise DamagedFile(f"{name} has JSON that is too large, or no object.")
    return known


def _read(file: BinaryIO, size: int) -> bytes:
    """So many bytes, or as many as there are, in pieces: what a damaged file claims takes no memory."""
    pieces = []
    while size and (piece := file.read(min(size, READ_AT_ONCE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _read_all(file: BinaryIO, size: int, where: str) -> bytes:
    content = _read(file, size)
    if len(content) < size:
        raise DamagedFile(f"The file ends too early, in {where}: it was cut off.")
    return content


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _check_digest(digest: bytes, name: str, *parts: bytes) -> None:
    if digest != _digest(*parts):
        raise DamagedFile(f"{name} is damaged: its bytes are not those of its digest.")
