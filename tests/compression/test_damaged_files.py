"""Files that are damaged, hostile, or another model's: one sentence or right pixels, and no memory for what is not there."""

import hashlib
import io
import itertools
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fuzz
import numpy as np
import PIL.Image
import pytest
import torch
from compressed_files import RawBlock, RawFile, put_together, take_apart
from diffusers import DiffusionPipeline, UNet2DModel
from torch import Tensor

from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel
from vdm_diffusers import decompress as decompress_command
from vdm_diffusers.compression import DamagedFile, Decompressor, compress, decompress, fingerprints
from vdm_diffusers.compression.ans import BitStack
from vdm_diffusers.compression.blocks import Item
from vdm_diffusers.compression.codec import Compressor
from vdm_diffusers.compression.coding_model import coding_model
from vdm_diffusers.data.image_files import find_image_files
from vdm_diffusers.error_profiles import ErrorProfile


NUM_LEVELS, NUM_STEPS, IMAGES_PER_BLOCK = 17, 3, 5
SHAPE = (1, 4, 4)
IMAGES = torch.randint(0, NUM_LEVELS, (13, *SHAPE), generator=torch.Generator().manual_seed(0))
BLOCKS = IMAGES.split(IMAGES_PER_BLOCK)
END_BYTES = 17
MAX_MESSAGE = 500
MAX_BYTES = 1 << 27
"""That reading any of these files may take."""


def tiny_pipeline(seed: int = 0, num_levels: int = NUM_LEVELS) -> DiffusionPipeline:
    torch.manual_seed(seed)
    unet = VDMUNet2DModel(4, 1, block_channels=8, layers_per_side=1, norm_num_groups=4)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # some are initialised to zero
    return VDM(unet, LinearSchedule(-6.0, 5.0), num_levels=num_levels).to_pipeline()


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def content(pipeline) -> bytes:
    file = io.BytesIO()
    with Compressor(file, coding_model(pipeline, NUM_STEPS), images_per_block=IMAGES_PER_BLOCK) as compressor:
        for i, image in enumerate(IMAGES):
            compressor.append(Item(image, f"{i}.png"))
    return file.getvalue()


def read(pipeline: DiffusionPipeline, content: bytes, force: bool = False) -> tuple[list[Tensor], str | None]:
    """The blocks of a file, and what is said at their end if it is not whole."""
    blocks = []
    try:
        with Decompressor(io.BytesIO(content), pipeline, force) as decompressor:
            for block in decompressor:
                blocks.append(block.images)
    except ValueError as error:
        return blocks, str(error)
    return blocks, None


def check_read(pipeline: DiffusionPipeline, content: bytes, name: object) -> None:
    """Fail unless every block is one of those that were written, and one sentence says what is wrong with the rest."""
    blocks, message = read(pipeline, content)
    assert all(any(torch.equal(block, right) for right in BLOCKS) for block in blocks), name
    if message is not None:
        assert message.isprintable() and message.endswith((".", "…")) and len(message) < MAX_MESSAGE, (name, message)


def changed(content: bytes, **header: object) -> bytes:
    """The file with other entries of its header, and right digests; those that are `...` are left out."""
    file = take_apart(content)
    entries = json.loads(file.header) | header
    file.header = json.dumps({name: value for name, value in entries.items() if value is not ...}).encode()
    return put_together(file)


def with_block(content: bytes, change: Callable[[RawBlock], object], place: int = 0) -> bytes:
    """The file with another block, and right digests."""
    file = take_apart(content)
    change(file.blocks[place])
    return put_together(file)


def with_file(content: bytes, change: Callable[[RawFile], object]) -> bytes:
    file = take_apart(content)
    change(file)
    return put_together(file)


def test_the_format_is_what_the_documentation_says(content):
    assert put_together(take_apart(content)) == content


def test_a_file_that_was_cut_off_is_read_up_to_there(pipeline, content):
    for size in range(0, len(content), 11):
        blocks, message = read(pipeline, content[:size])
        assert "ends too early" in message or size < 8
        assert all(map(torch.equal, blocks, BLOCKS)), size


def check_damaged_files(pipeline: DiffusionPipeline, content: bytes, seeds: Iterator[int]) -> None:
    """Bits flipped, parts lost, doubled and replaced, in the bytes, or in what the file says with right digests."""
    for seed in seeds:
        source = random.Random(seed)
        check_read(pipeline, fuzz.mutate(content, ".vdm", source), seed)
        flipped = bytearray(content)
        flipped[source.randrange(len(content))] ^= 1 << source.randrange(8)
        blocks, message = read(pipeline, bytes(flipped))
        assert message is not None and all(map(torch.equal, blocks, BLOCKS)), seed


def test_damaged_files_give_right_pixels_or_one_sentence(pipeline, content):
    check_damaged_files(pipeline, content, range(100))


@pytest.mark.slow
def test_many_damaged_files_give_right_pixels_or_one_sentence(pipeline, content):
    check_damaged_files(pipeline, content, range(1000, 3500))


HEADERS = {
    "shape of terabytes": ({"shape": [1, 2**23, 2**23]}, "at most"),
    "many dimensions": ({"shape": [1] * 1000}, r"must be \(C, \*size\)"),
    "another shape": ({"shape": [1, 8, 8]}, r"a model of \(C, \*size\) = \(1, 4, 4\)"),
    "a boolean": ({"bin_precision": True}, "`bin_precision` is True"),
    "a negative number": ({"bin_precision": -1}, "from 0 to 16"),
    "another precision": ({"bin_precision": 3}, "not the one that was compressed"),
    "fewer levels": ({"num_levels": 2}, r"another number of levels than this pipeline has \(2, here 17\)"),
    "more levels": ({"num_levels": 300}, r"another number of levels than this pipeline has \(300, here 17\)"),
    "infinite gamma": ({"gammas": [-float("inf"), 5.0]}, "from -100 to 100"),
    "gamma that is no number": ({"gammas": [float("nan"), 5.0]}, "from -100 to 100"),
    "gammas that fall": ({"gammas": [5.0, -6.0]}, "must increase"),
    "one gamma": ({"gammas": [5.0]}, "must increase"),
    "very many gammas": ({"gammas": [i / 100 for i in range(5000)]}, "1 to 4,096 steps"),
    "gammas of other ends": ({"gammas": [-5.0, -3.0, 0.0, 5.0]}, "not the one that was compressed"),
    "gammas of other steps": ({"gammas": [-6.0, -3.25, -0.5, 2.25, 5.0]}, "not the one that was compressed"),
    "gammas without noise": ({"gammas": [-90.0, 5.0]}, "too many to count"),
    "gammas in noise alone": ({"gammas": [90.0, 95.0]}, "not the one that was compressed"),
    "gammas of unlike steps": ({"gammas": [-6.0, 5.0, 5.0001], "bin_precision": 16}, "less than 262,144 can be coded"),
    "long word": ({"weights": "x" * 10_000}, "at most 100 characters"),
    "control characters": ({"arithmetic": {"torch": "2\n\x1b[31m"}}, "at most 100 characters"),
    "large number": ({"num_levels": 10**3000}, "`num_levels` is"),
    "much arithmetic": ({"arithmetic": {str(i): "x" for i in range(10_000)}}, "The file was written with 0 x"),
    "nothing about levels": ({"num_levels": ...}, "lacks num_levels"),
}


@pytest.mark.parametrize(("entries", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_no_writer_writes_is_refused(entries, message, pipeline, content):
    damaged = changed(content, **entries)
    with pytest.raises(ValueError, match=message):
        decompress(pipeline, damaged)
    check_read(pipeline, damaged, entries)


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 40_000, b"9" * 5000, b"null", b"{", b"\xff", b" " * (1 << 26)])
def test_a_header_that_is_no_object_is_refused(text, pipeline, content):
    with pytest.raises(DamagedFile, match="JSON"):
        decompress(pipeline, with_file(content, lambda file: setattr(file, "header", text)))


def facts(**entries: object) -> Callable[[RawBlock], None]:
    return lambda block: setattr(block, "facts", json.dumps(entries).encode())


CHANGES = {
    "no image": (lambda block: block.claims.update({0: 0}), "claims what no block has: 0 images"),
    "four billion images": (lambda block: block.claims.update({0: 2**32 - 1}), "claims what no block has"),
    "gigabytes of names": (lambda block: block.claims.update({2: 2**32 - 1}), "claims what no block has"),
    "gigabytes of words": (lambda block: block.claims.update({3: 2**32 - 1}), "ends too early"),
    "more plain than images": (lambda block: setattr(block, "num_plain", 6), "claims what no block has: 5 images, 6 of them"),
    "all plain": (lambda block: setattr(block, "num_plain", 5), "not the one that was compressed"),
    "none plain": (lambda block: setattr(block, "num_plain", 0), "not the one that was compressed"),
    "no words": (lambda block: setattr(block, "words", b""), "not the one that was compressed"),
    "other words": (lambda block: setattr(block, "words", b"\1\2\3\4" * 30), "not the one that was compressed"),
    "words that are zero": (lambda block: setattr(block, "words", bytes(40)), "bits that no coder leaves"),
    "other checksums": (lambda block: setattr(block, "checksums", bytes(10)), "not the one that was compressed"),
    "another digest": (lambda block: setattr(block, "digest", bytes(8)), "not the one that was compressed"),
    "names of fewer images": (facts(names=["a"]), "another number of images"),
    "names that are numbers": (facts(names=[1] * 5), "no text"),
    "labels of no class": (facts(labels=[1] * 5), "no class of this model"),
    "labels that are booleans": (facts(labels=[True] * 5), "no class of this model"),
    "a text where names should be": (facts(names="abcde"), "another number of images"),
    "nested names": (lambda block: setattr(block, "facts", b"[" * 5000), "JSON"),
    "long names": (facts(names=["x" * 2000] * 5), "JSON"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_block_that_no_writer_writes_is_refused_after_those_before(change, message, pipeline, content):
    for place in range(2):
        damaged = with_block(content, change, place)
        blocks, said = read(pipeline, damaged)
        assert len(blocks) == place
        with pytest.raises(DamagedFile, match=message):
            raise DamagedFile(said)
        check_read(pipeline, damaged, message)


PLACES = {
    "swapped": (lambda blocks: blocks.reverse(), 0),
    "lost": (lambda blocks: blocks.pop(1), 1),
    "doubled": (lambda blocks: blocks.insert(1, blocks[0]), 1),
}


@pytest.mark.parametrize(("change", "num_whole"), PLACES.values(), ids=PLACES)
def test_a_block_in_another_place_is_refused(change, num_whole, pipeline, content):
    """With the digest that it has where it was written."""
    file = take_apart(content)
    starts = [len(put_together(replace(file, blocks=file.blocks[:number]))) - END_BYTES for number in range(4)]
    blocks = [content[start:stop] for start, stop in itertools.pairwise(starts)]
    change(blocks)
    found, message = read(pipeline, content[: starts[0]] + b"".join(blocks) + content[starts[-1] :])
    assert len(found) == num_whole and f"Block {num_whole + 1} is damaged" in message


ENDS = {
    "no images": (lambda file: file.__dict__.update(blocks=[], num_images=0), 0, "has 0 images"),
    "another number": (lambda file: setattr(file, "num_images", 14), 3, "its end counts 14: blocks are missing"),
    "a second file": (lambda file: setattr(file, "rest", b"\x89VDM"), 3, "something was appended"),
    "another version": (lambda file: setattr(file, "version", 2), 0, "of version 2 of the format"),
}


@pytest.mark.parametrize(("change", "num_whole", "message"), ENDS.values(), ids=ENDS)
def test_a_file_that_does_not_add_up_is_refused(change, num_whole, message, pipeline, content):
    found, said = read(pipeline, with_file(content, change))
    assert len(found) == num_whole and message in said


def test_levels_that_the_model_has_not_are_refused_though_their_checksums_are_right():
    pipeline = tiny_pipeline(num_levels=2**16 + 2)
    for level, is_right in ((2**16 + 1, True), (2**16 + 2, False)):
        image, stack = torch.full(SHAPE, level), BitStack()
        stack.push_uniform(image.flatten().numpy(), 2**17)
        file = take_apart(compress(pipeline, torch.full((1, *SHAPE), 5), NUM_STEPS))
        levels = image.int().numpy().tobytes()
        checks = zlib.crc32(levels).to_bytes(4, "little")[:2], hashlib.blake2b(levels, digest_size=8).digest()
        file.blocks[0] = RawBlock(1, b"", *checks, stack.words().tobytes())
        blocks, message = read(pipeline, put_together(file))
        assert (blocks[0] == image).all() if is_right else "not the one that was compressed" in message


def many_lists(num_bytes: int) -> Callable[[RawBlock], None]:
    """As many images as a block may have, with so much JSON each, of what takes the most memory."""

    def change(block: RawBlock) -> None:
        block.checksums *= 4096 // 5
        block.facts = b'{"names": [' + b"[]," * (len(block.checksums) // 2 * num_bytes // 3) + b"[]]}"

    return change


BOMBS = {
    "the most JSON": many_lists(1000),
    "more JSON": many_lists(10_000),
    "zeros": lambda block: setattr(block, "facts", bytes(1 << 28)),
    "words": lambda block: block.claims.update({3: 2**32 - 1}),
    "images": lambda block: block.claims.update({0: 2**32 - 1}),
    "words that are there": lambda block: setattr(block, "words", b"\1\2\3\4" * (1 << 22)),
}


@pytest.mark.parametrize("change", BOMBS.values(), ids=BOMBS)
def test_what_a_block_claims_takes_no_memory(change, pipeline, content):
    check_refused_in_little_memory(pipeline, with_block(content, change))


def check_refused_in_little_memory(pipeline: DiffusionPipeline, damaged: bytes) -> None:
    tracemalloc.start()
    blocks, message = read(pipeline, damaged)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not blocks and message is not None
    assert most < MAX_BYTES + 4 * len(damaged)


def test_a_shape_that_the_model_leaves_open_takes_no_memory():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(None, 1, 1, layers_per_block=1, norm_num_groups=4, add_attention=False, **blocks)
    pipeline = VDM(unet, LinearSchedule(-6.0, 5.0), num_levels=NUM_LEVELS).to_pipeline()
    written = compress(pipeline, IMAGES, NUM_STEPS)
    assert torch.equal(decompress(pipeline, written), IMAGES)
    check_refused_in_little_memory(pipeline, changed(written, shape=[1, 4096, 4096]))


def test_a_file_of_other_weights_is_refused(content):
    with pytest.raises(ValueError, match="another model, or other weights of it, than this pipeline has"):
        decompress(tiny_pipeline(1), content, force=True)


def test_a_file_of_other_variances_is_refused(pipeline, content):
    of_few_steps = tiny_pipeline()
    gammas, moments = torch.tensor([-6.0, 5.0]), torch.ones(2, 1)
    of_few_steps.scheduler.set_error_profile(ErrorProfile(gammas, moments, 0 * moments))
    with pytest.raises(ValueError, match="other variances of the steps than this pipeline has .*, here [0-9a-f]{32}"):
        decompress(of_few_steps, content, force=True)
    with pytest.raises(ValueError, match="other variances of the steps than this pipeline has .*, here None"):
        decompress(pipeline, compress(of_few_steps, IMAGES, NUM_STEPS), force=True)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_file_brings_its_number_of_steps(num_steps, pipeline):
    assert torch.equal(decompress(pipeline, compress(pipeline, IMAGES, num_steps)), IMAGES)


OTHER_ARITHMETIC = {
    "torch 9.9": (fingerprints, "version", lambda name: "9.9" if name == "torch" else "1.0"),
    "device cpu, AVX9": (torch.backends.cpu, "get_cpu_capability", lambda: "AVX9"),
    "dtype bfloat16": (fingerprints, "compute_dtype", lambda unet: torch.bfloat16),
}


@pytest.mark.parametrize("what", OTHER_ARITHMETIC)
def test_a_file_of_other_arithmetic_is_read_by_force_alone(what, pipeline, monkeypatch):
    """Here the arithmetic is in truth the same."""
    with monkeypatch.context() as patch:
        patch.setattr(*OTHER_ARITHMETIC[what])
        written = compress(pipeline, IMAGES, NUM_STEPS)
    with pytest.raises(ValueError, match=rf"written with .*{what} \(here .*, or try it here by `force`"):
        decompress(pipeline, written)
    assert torch.equal(decompress(pipeline, written, force=True), IMAGES)


@pytest.mark.parametrize("shift", [1e-3, 1e-6])
def test_where_the_denoiser_says_something_else_every_image_is_refused(shift, content, monkeypatch):
    other = tiny_pipeline()
    forward = other.unet.forward
    monkeypatch.setattr(other.unet, "forward", lambda *args, **kwargs: (forward(*args, **kwargs)[0] + shift,))
    monkeypatch.setattr(fingerprints, "version", lambda name: "9.9")
    file = take_apart(content)
    for block in file.blocks[:2]:  # the third is plain
        alone = replace(file, blocks=[block], num_images=len(block.checksums) // 2)
        found, message = read(other, put_together(alone), force=True)
        assert not found and "not the one that was compressed" in message


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


def run_decompress(folder: Path, content: bytes, model: Path) -> str:
    """What the command says as it ends."""
    (folder / "images.vdm").write_bytes(content)
    flags = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(folder / "out")]
    with pytest.raises(SystemExit) as exit:
        decompress_command.main([str(folder / "images.vdm"), *flags])
    return str(exit.value.code)


def written(folder: Path) -> dict[str, list]:
    """The levels of all files that the command wrote, by name; a failure if there is anything else."""
    assert {path.name for path in folder.iterdir()} <= {"images.vdm", "out"}
    found = {path.relative_to(folder / "out").as_posix(): path for path in (folder / "out").rglob("*") if path.is_file()}
    return {name: np.asarray(PIL.Image.open(path)).tolist() for name, path in found.items()}


def test_the_command_keeps_what_comes_before_damage(tmp_path, model, content):
    message = run_decompress(tmp_path, content[:-40], model)
    folder = str(tmp_path / "out")
    assert message == (
        "decompress.py: The file ends too early, in what follows its first 10 images: it was cut off."
        f" The 10 images before that are in {folder!r}."
    )
    assert written(tmp_path) == {f"{i}.png": IMAGES[i, 0].tolist() for i in range(10)}


NAMES = ("../x.png", "/tmp/x.png", "a/../../x", "..", "a\0b", "x\n", "x\ud800", "C:x", "a\\b", "x" * 260, "0.png", "0.png/x")


@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_nothing_by_a_hostile_name(name, tmp_path, model, content):
    """`..` alone becomes the name of a picture, `...png`."""
    damaged = with_block(content, facts(names=["0.png", name, "2.png", None, None]))
    message = run_decompress(tmp_path, with_block(damaged, lambda block: setattr(block, "words", b""), 1), model)
    assert message.isprintable() and message.startswith("decompress.py: ") and len(message) < MAX_MESSAGE
    first = {"0.png": IMAGES[0, 0].tolist()}
    rest = {"...png": IMAGES[1, 0].tolist(), "2.png": IMAGES[2, 0].tolist()}
    rest |= {"000003.png": IMAGES[3, 0].tolist(), "000004.png": IMAGES[4, 0].tolist()}
    assert written(tmp_path) == (first | rest if name == ".." else first)


@pytest.mark.parametrize("names", [["12:30.png"], ["x" * 246 + ".jpg"], ["a.jpg", "a.jpg.png"], ["a\nb.png"]])
def test_names_that_could_not_be_written_back_are_not_compressed(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="can have on every system|written back as 'a.jpg.png'"):
        find_image_files([tmp_path])


def test_a_name_without_end_is_not_compressed(pipeline):
    with pytest.raises(ValueError, match="Names of images are too long"):
        with Compressor(io.BytesIO(), coding_model(pipeline, NUM_STEPS)) as compressor:
            compressor.append(Item(IMAGES[0], "x" * 2000))
