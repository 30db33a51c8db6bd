"""Whatever a file or a flag holds, a command runs or says in one sentence why not: thousands of mutated files over all entries.

    python tests/support/fuzz.py                # 3,000 of them, some minutes on two cores
    python tests/support/fuzz.py --num_files 300 --entry "evaluate a VDM"

Every case is a folder in which one file is mutated, and a command that reads it in a process of its own. It fails with a
traceback, after `SECONDS`, with a message of several lines, or if it takes more than `BYTES` beyond what was imported.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import compressed_files
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from paths import ROOT

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel, decompress, evaluate
from vdm_diffusers import train as train_command
from vdm_diffusers.compression import Compressor
from vdm_diffusers.compression.blocks import Item
from vdm_diffusers.compression.coding_model import coding_model
from vdm_diffusers.convert.__main__ import main as convert


SECONDS = 60
UNTOUCHED = 0
"""The case of every entry whose files are right, and must be accepted."""
BYTES = 1 << 30
TINY = {
    "block_channels": 8,
    "layers_per_side": 1,
    "norm_num_groups": 4,
    "gamma_min": -8.0,
    "train_batch_size": 8,
    "max_train_steps": 1,
    "validation_steps": 1,
    "validation_repeats": 1,
    "max_validation_images": 2,
    "final_validation_repeats": 1,
    "num_samples": 1,
    "num_inference_steps": 1,
    "report_to": "none",
}
HOSTILE = (
    None, True, False, 0, -1, 1, 2, 10**5, 10**9, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e30, 1e308, -1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "nan", "1e999", "0", "None", "../..", "/dev/zero", "\0", "\ud800", "os",
    "UNet2DModel", "DDPMScheduler", "PosixPath", [], [None], [0], [-1, "x"], [10**9] * 3, [[]], ["os", "system"], [0.5] * 5000,
    {}, {"x": {"x": []}}, {"_class_name": "VDM"},
)  # fmt: skip
"""What takes the place of a value in a configuration."""


@dataclass(frozen=True)
class Entry:
    """
    A command and what it reads.

    Attributes:
        share (`int`): Of all cases.
        prepare (`Callable`): Fills a folder with files that are right.
        files (`tuple[str, ...]`): Patterns of those to be mutated.
        run (`Callable`): The command, called in a copy of the folder.
    """

    share: int
    prepare: Callable[[Path], None]
    files: tuple[str, ...]
    run: Callable[[], None]


def mutate(content: bytes, suffix: str, source: random.Random) -> bytes:
    """A file that differs in one to three places, in its structure where it has one, or in its bytes."""
    for _ in range(source.randint(1, 3)):
        structured = source.random() < 0.7
        if structured and suffix == ".json":
            content = _mutate_json(content, source)
        elif structured and suffix == ".safetensors":
            content = _mutate_header(content, source)
        elif structured and suffix == ".vdm":
            content = compressed_files.mutate(content, source, _mutate_json, _mutate_bytes)
        else:
            content = _mutate_bytes(content, source)
    return content


def _mutate_json(content: bytes, source: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _mutate_bytes(content, source)
    places = list(_places(tree))
    if not places:
        return source.choice([b"", b"[]", b"null", b"[" * 10_000, b'{"a":' * 10_000])
    parent, key = source.choice(places)
    kind = source.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[source.choice(["", "x", "_class_name", "num_levels", key + "s", "\0"])] = parent.pop(key)
    elif kind == 2:
        parent[key] = source.choice([str(parent[key]), [parent[key]], {"x": parent[key]}])
    else:
        parent[key] = source.choice(HOSTILE)
    text = json.dumps(tree, indent=1)
    if kind == 5 and isinstance(parent, dict) and "\n" in text:  # a name twice
        lines = text.splitlines(keepends=True)
        index = source.randrange(1, len(lines))
        text = "".join(lines[:index] + lines[index : index + 1] + lines[index:])
    return text.encode()


def _places(tree: object, depth: int = 0):
    """Every value by its container and its key there; of a long list some."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 3)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key], depth + 1)


def _mutate_header(content: bytes, source: random.Random) -> bytes:
    """A safetensors file whose header says something else, its length true or not."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header, rest = content[8 : 8 + length], content[8 + length :]
    except struct.error:
        return content
    header = _mutate_json(header, source)
    length = source.choice([len(header)] * 5 + [0, length, 2**40, 2**64 - 1])
    return struct.pack("<Q", length) + header + rest


def _mutate_bytes(content: bytes, source: random.Random) -> bytes:
    start = source.randrange(len(content) + 1)
    stop = min(len(content), start + source.choice([1, 1, 2, 8, 64, 1 << 20]))
    inserted = {
        0: b"",
        1: source.randbytes(stop - start if stop - start < 100 else 1),
        2: content[start:stop] * 2,
        3: source.choice(
            [b"9" * 30, b"-", b"nan", b"1e999", b"\0", b"\xff\xfe", b"&a [*a]", b"*a", b"!!python/name:os", b"--"]
        ),
    }[source.randrange(4)]
    return content[:start] + inserted + content[stop:]


def tiny_vdm() -> VDM:
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17)


def tiny_ddpm() -> DDPMPipeline:
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return DDPMPipeline(UNet2DModel(8, 3, 3, **blocks), DDPMScheduler(num_train_timesteps=10, beta_end=0.4))


def tiny_autoencoder() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return AutoencoderKL(1, 1, **blocks, block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)


def images(folder: Path, mode: str = "RGB") -> None:
    for split, number in (("train", 8), ("test", 2)):
        (folder / "images" / split).mkdir(parents=True)
        for i in range(number):
            picture = PIL.Image.effect_noise((8, 8), 60 + i).convert(mode)
            picture.save(folder / "images" / split / f"{i}.{'png' if i % 2 else 'jpg'}")


def flags(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def train(*arguments: str) -> None:
    sys.argv = ["train_vdm.py", *arguments]
    train_command.main()


def plan(*arguments: str, **options: object) -> None:
    """Plan a run, which reads and builds everything."""
    train(*flags(TINY | {"output_dir": "out"} | options), "--dry_run", *arguments)


def options_of_a_run(name: str) -> Callable[[Path], None]:
    content = TINY | {
        "fourier_powers": [2, 3],
        "noise_schedule": "CosineSchedule",
        "dry_run": True,
        "seed": 3,
        "num_levels": 17,
    }
    return lambda folder: (folder / name).write_text(json.dumps(content | {"output_dir": "out"}, indent=1)) and None


def finished_run(folder: Path) -> None:
    train(*flags(TINY | {"output_dir": folder / "run", "checkpointing_steps": 1}))


def stock_model(folder: Path) -> None:
    tiny_ddpm().save_pretrained(folder / "model")
    images(folder)


def compressed_images(folder: Path) -> None:
    pipeline = tiny_vdm().to_pipeline()
    pipeline.save_pretrained(folder / "model")
    levels = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with (folder / "images.vdm").open("wb") as file:
        with Compressor(file, coding_model(pipeline, 3), images_per_block=5) as compressor:
            for i, image in enumerate(levels):
                compressor.append(Item(image, f"{i % 2}/{i}.png"))


def official_checkpoint(folder: Path) -> None:
    source = ROOT / "tests" / "convert" / "official_vdm" / "fixed_continuous"
    shutil.copy(source.with_suffix(".msgpack"), folder / "checkpoint.msgpack")
    config = json.loads(np.load(source.with_suffix(".npz"))["config"].item()) | {"resolution": 16}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


MODEL_FILES = ("model/**/*.json", "model/**/*.safetensors")
EVALUATION = ["--pretrained_model_name_or_path", "model", "--max_images", "2", "--num_repeats", "1"]
ENTRIES = {
    "options, JSON": Entry(6, options_of_a_run("options.json"), ("options.json",), lambda: train("options.json")),
    "options, YAML": Entry(4, options_of_a_run("options.yaml"), ("options.yaml",), lambda: train("options.yaml")),
    "flags": Entry(
        3,
        lambda folder: (folder / "flags").write_text("\n".join(flags(TINY | {"seed": 3, "output_dir": "out"}))) and None,
        ("flags",),
        lambda: train(*Path("flags").read_text(errors="surrogateescape").split("\n"), "--dry_run"),
    ),
    "evaluate a VDM": Entry(
        5, lambda folder: tiny_vdm().save_pretrained(folder / "model"), MODEL_FILES, lambda: evaluate.main(EVALUATION)
    ),
    "evaluate a stock pipeline": Entry(
        4,
        stock_model,
        MODEL_FILES,
        lambda: evaluate.main([*EVALUATION, "--data_dir", "images", "--estimators", "vlb", "ddpm"]),
    ),
    "train on": Entry(
        3,
        lambda folder: tiny_vdm().save_pretrained(folder / "model"),
        MODEL_FILES,
        lambda: plan(pretrained_model_name_or_path="model"),
    ),
    "autoencoder": Entry(
        2,
        lambda folder: tiny_autoencoder().save_pretrained(folder / "model"),
        MODEL_FILES,
        lambda: plan(vae_model_name_or_path="model"),
    ),
    "convert": Entry(
        3,
        official_checkpoint,
        ("checkpoint.msgpack", "config.json"),
        lambda: convert(flags({"checkpoint_path": "checkpoint.msgpack", "config": "config.json", "output_dir": "out"})),
    ),
    "resume": Entry(
        2,
        finished_run,
        ("run/training_config.json", "run/checkpoint-1/manifest.json"),
        lambda: plan(output_dir="run", resume_from_checkpoint="latest", checkpointing_steps=1),
    ),
    "decompress": Entry(
        4,
        compressed_images,
        ("images.vdm",),
        lambda: decompress.main(["images.vdm", *flags({"pretrained_model_name_or_path": "model", "output_dir": "out"})]),
    ),
    "images": Entry(
        1, images, ("images/**/*.png", "images/**/*.jpg"), lambda: plan(train_data_dir="images", cache_dir="cache")
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a command made of a file: `kind` is accepted, refused, traceback, hang, memory or crash."""

    entry: str
    case: int
    kind: str
    message: str
    num_bytes: int
    seconds: float


def run_case(entry: str, case: int, template: Path) -> Outcome:
    """Mutate one file of a copy of the folder, and run the command in a process of its own."""
    source = random.Random(f"{entry} {case}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(template, folder, dirs_exist_ok=True)
        files = sorted(path for pattern in ENTRIES[entry].files for path in Path(folder).glob(pattern))
        path = source.choice(files)
        if case != UNTOUCHED:
            path.write_bytes(mutate(path.read_bytes(), path.suffix, source))
        before, start = _resident_bytes(), time.perf_counter()
        child = os.fork()
        if child == 0:
            _run_in_child(Path(folder), ENTRIES[entry].run)
        _, status, usage = os.wait4(child, 0)
        result = Path(folder, "outcome.json")
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            kind, message = "hang" if name == "SIGALRM" else "crash", f"{name}, {path.relative_to(folder)}"
        else:
            kind, message = json.loads(result.read_text()) if result.exists() else ("crash", "no outcome")
            message = f"{path.relative_to(folder)}: {message}"
        num_bytes = max(0, usage.ru_maxrss * 1024 - before)
        if num_bytes > BYTES or "allocate memory" in message or "MemoryError" in message:
            kind = "memory"
        if case == UNTOUCHED and kind == "refused":
            kind = "traceback"
    return Outcome(entry, case, kind, message, num_bytes, time.perf_counter() - start)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _run_in_child(folder: Path, run: Callable[[], None]) -> None:
    """Run the command, write what came of it, and end this process."""
    try:
        os.chdir(folder)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        kind, message = "accepted", ""
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            run()
        except SystemExit as error:
            if error.code not in (None, 0):
                kind, message = "refused", str(error.code)
            if "\n" in message or not message.isprintable():
                kind = "traceback"
        except BaseException:
            kind, message = "traceback", traceback.format_exc(limit=-6)
        (folder / "outcome.json").write_text(json.dumps([kind, message]))
    finally:
        os._exit(0)


def fuzz(num_files: int, entries: list[str], num_processes: int) -> list[Outcome]:
    """The outcomes of that many mutated files, spread over the entries by their shares."""
    shares = sum(ENTRIES[name].share for name in entries)
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for index, name in enumerate(entries):
            template = Path(folder, str(index))
            template.mkdir()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                ENTRIES[name].prepare(template)
            cases += [(name, case, template) for case in range(-(-num_files * ENTRIES[name].share // shares))]
        random.Random(0).shuffle(cases)
        with get_context("fork").Pool(num_processes, initializer=_start_worker) as pool:
            outcomes = []
            for outcome in pool.imap_unordered(_run_case, cases, chunksize=4):
                outcomes.append(outcome)
                if outcome in failures([outcome]):
                    print(messages([outcome]), flush=True)
            return outcomes


def _run_case(case: tuple[str, int, Path]) -> Outcome:
    return run_case(*case)


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"


def table(outcomes: list[Outcome]) -> str:
    """One row for each entry, in Markdown."""
    kinds = ("refused", "accepted", "traceback", "hang", "memory", "crash")
    lines = [
        f"| entry | files | {' | '.join(kinds)} | most memory | longest |",
        "| --- |" + " --- |" * (len(kinds) + 3),
    ]
    for name in dict.fromkeys(
        outcome.entry for outcome in sorted(outcomes, key=lambda outcome: list(ENTRIES).index(outcome.entry))
    ):
        rows = [outcome for outcome in outcomes if outcome.entry == name]
        counts = Counter(outcome.kind for outcome in rows)
        most, longest = max(row.num_bytes for row in rows) / 2**20, max(row.seconds for row in rows)
        cells = " | ".join(str(counts[kind]) for kind in kinds)
        lines.append(f"| {name} | {len(rows)} | {cells} | {most:.0f} MiB | {longest:.1f} s |")
    return "\n".join(lines)


def messages(outcomes: list[Outcome]) -> str:
    """What every case led to, one line each."""
    return "\n".join(f"{outcome.entry}, case {outcome.case}: {outcome.kind}: {outcome.message}" for outcome in outcomes)


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind not in ("accepted", "refused")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_files", type=int, default=3000, help="Over all entries.")
    parser.add_argument("--entry", choices=ENTRIES, action="append", help="Only this one.")
    parser.add_argument("--verbose", action="store_true", help="Print what every file leads to.")
    parser.add_argument("--num_processes", type=int, default=os.cpu_count(), help="That share the files.")
    options = parser.parse_args()
    outcomes = fuzz(options.num_files, options.entry or list(ENTRIES), options.num_processes)
    if options.verbose:
        print(messages(outcomes))
    print(table(outcomes))
    raise SystemExit(bool(failures(outcomes)))


if __name__ == "__main__":
    main()
