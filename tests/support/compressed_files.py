"""Files of compressed images taken apart and put together with right digests, by the format that `docs/compression.md` has."""

import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field


MAGIC = b"\x89VDM\r\n\x1a\n"
HOSTILE_NUMBERS = (0, 1, 2, 3, 5, 255, 2**16, 2**20, 2**31, 2**32 - 1)


@dataclass
class RawBlock:
    """A block as its bytes are, `facts` unpacked. Its numbers of images, of bytes of facts and of words are those that it has,
    but for `claims`, by the place of the number."""

    num_plain: int
    facts: bytes
    checksums: bytes
    digest: bytes
    words: bytes
    claims: dict[int, int] = field(default_factory=dict)


@dataclass
class RawFile:
    """A file as its bytes are, `header` unpacked; what is in it may be anything."""

    version: int
    header: bytes
    blocks: list[RawBlock] = field(default_factory=list)
    num_images: int = 0
    rest: bytes = b""


def take_apart(content: bytes) -> RawFile:
    """The parts of a whole file; `ValueError`, `struct.error` or `zlib.error` for most others."""
    version, size = struct.unpack_from("<BI", content, 8)
    file = RawFile(version, zlib.decompress(content[13 : 13 + size]))
    start = 21 + size
    while content[start : start + 1] == b"B":
        count, num_plain, num_facts_bytes, num_words = struct.unpack_from("<IIII", content, start + 1)
        facts = start + 17
        checksums = facts + num_facts_bytes
        digest = checksums + 2 * count
        words = digest + 8
        end = words + 4 * num_words
        unpacked = zlib.decompress(content[facts:checksums]) if num_facts_bytes else b""
        parts = content[checksums:digest], content[digest:words], content[words:end]
        file.blocks.append(RawBlock(num_plain, unpacked, *parts))
        start = end + 8
    (file.num_images,) = struct.unpack_from("<Q", content, start + 1)
    file.rest = content[start + 17 :]
    return file


def put_together(file: RawFile) -> bytes:
    """The file with the digests that its parts have in their places."""
    header = zlib.compress(file.header, 9)
    content = _digested(MAGIC + struct.pack("<BI", file.version, len(header)) + header)
    num_before = 0
    for block in file.blocks:
        facts, count = zlib.compress(block.facts, 9) if block.facts else b"", len(block.checksums) // 2
        numbers = [count, block.num_plain, len(facts), len(block.words) // 4]
        numbers = [block.claims.get(place, number) for place, number in enumerate(numbers)]
        part = b"B" + struct.pack("<IIII", *numbers) + facts + block.checksums + block.digest + block.words
        content += _digested(part, struct.pack("<Q", num_before))
        num_before += count
    return content + _digested(b"E" + struct.pack("<Q", file.num_images)) + file.rest


def _digested(content: bytes, before: bytes = b"") -> bytes:
    return content + hashlib.blake2b(before + content, digest_size=8).digest()


Mutate = Callable[[bytes, random.Random], bytes]


def mutate(content: bytes, source: random.Random, mutate_json: Mutate, mutate_bytes: Mutate) -> bytes:
    """A file that says something else in one place, with right digests, so that nothing but its reader's checks can notice."""
    try:
        file = take_apart(content)
    except (ValueError, struct.error, zlib.error):
        return mutate_bytes(content, source)
    kind = source.choice(["header", "header", "header", "block", "block", "block", "order", "end"])
    if kind == "header" and source.random() < 0.95:
        file.header = mutate_json(file.header, source)
    elif kind == "header":
        file.version = source.randrange(256)
    elif kind == "block" and file.blocks:
        _mutate_block(source.choice(file.blocks), source, mutate_json, mutate_bytes)
    elif kind == "order" and file.blocks:
        moved = file.blocks.pop(source.randrange(len(file.blocks)))
        file.blocks[source.randint(0, len(file.blocks)) : 0] = [moved] * source.randrange(3)
    else:
        file.num_images = source.choice([*HOSTILE_NUMBERS, file.num_images - 1, 2**64 - 1]) % 2**64
        file.rest = source.choice([b"", b"E", content])
    return put_together(file)


def _mutate_block(block: RawBlock, source: random.Random, mutate_json: Mutate, mutate_bytes: Mutate) -> None:
    kind = source.choice(["claims", "plain", "facts", "checksums", "words", "words", "fewer"])
    if kind == "claims":
        block.claims[source.randrange(4)] = source.choice(HOSTILE_NUMBERS)
    elif kind == "plain":
        block.num_plain = source.randint(0, len(block.checksums) // 2)
    elif kind == "facts":
        block.facts = mutate_json(block.facts or b"{}", source)
    elif kind == "checksums":
        block.checksums = source.randbytes(len(block.checksums))
    elif kind == "words":
        words = mutate_bytes(block.words, source)
        block.words = words[: len(words) // 4 * 4]
    else:
        block.checksums = block.checksums[:-2]
