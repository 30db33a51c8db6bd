"""Folders `checkpoint-STEP`: written so that they are whole or not there, verified before use, rotated.

A checkpoint is written under another name, hashed into a manifest, forced to the disk, and renamed. Whatever a kill or a full
or failing disk leaves behind, its name or its manifest tells it from a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException


MANIFEST = "manifest.json"
FACTS = {"files": dict, "step": int, "data": dict, "num_processes": int, "options": dict}
"""What a manifest says at least, and its types."""
NAME = re.compile(r"checkpoint-(\d+)")
ALL_NAMES = "*checkpoint-*/**"
"""What matches the files of all checkpoints, whole, partial and set aside."""


class CheckpointError(Exception):
    """A checkpoint could not be written; the message is the reason, and nothing has changed."""


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, facts: dict, limit: int) -> None:
    """
    Write `checkpoint-{step}` with the state of all processes, then delete all but the newest `limit` checkpoints.

    Args:
        facts (`dict`): What the manifest shall say of the run besides its files.

    Raises:
        `CheckpointError`: on all processes if it fails on one of them.
    """
    partial = output_dir / f"partial-checkpoint-{step}"
    try:
        _on_all(accelerator, lambda: accelerator.save_state(str(partial)))
        _on_all(accelerator, lambda: accelerator.is_main_process and _publish(partial, facts | {"step": step}, limit))
    except CheckpointError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of an output folder, oldest first, verified or not."""
    return sorted((path for path in output_dir.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that it was written after."""
    return int(NAME.fullmatch(checkpoint.name)[1])


def read_manifest(checkpoint: Path) -> dict:
    """The files of a checkpoint, its step, and the facts of its run; `ValueError` if it is missing or damaged."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if all(isinstance(manifest[name], kind) for name, kind in FACTS.items()):
            return manifest
    except FileNotFoundError:
        raise ValueError(f"{checkpoint} has no {MANIFEST}") from None
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{checkpoint / MANIFEST} is damaged")


def verify_checkpoint(checkpoint: Path) -> None:
    """`ValueError`, naming the first file that is not as the manifest says, unless all of them are."""
    for name, written in read_manifest(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != written["size"]:
            raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {written['size']}")
        if _digest(path) != written["sha256"]:
            raise ValueError(f"{path} has changed since it was written")


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that is as it was written; those passed over are named in warnings."""
    for checkpoint in reversed(find_checkpoints(output_dir)):
        try:
            verify_checkpoint(checkpoint)
            return checkpoint
        except ValueError as damage:
            warnings.warn(f"{checkpoint} is damaged and passed over: {damage}.", stacklevel=2)
    return None


def find_checkpoint(name: str, output_dir: Path) -> Path:
    """The verified checkpoint that `--resume_from_checkpoint` means: a folder, or `"latest"`.

    Raises `ValueError` if there is none, or if the folder named is damaged.
    """
    checkpoint = latest_checkpoint(output_dir) if name == "latest" else Path(name)
    if checkpoint is None or not checkpoint.is_dir() or not NAME.fullmatch(checkpoint.name):
        raise ValueError(
            f"`--resume_from_checkpoint` is {name!r}, but there is no such checkpoint; `--output_dir` {str(output_dir)!r} holds"
            f" {[folder.name for folder in find_checkpoints(output_dir)]}. Leave it out to start anew, with"
            " `--overwrite_output_dir` where a run is to be replaced."
        )
    if name != "latest":
        try:
            verify_checkpoint(checkpoint)
        except ValueError as damage:
            raise ValueError(f"`--resume_from_checkpoint`: {damage}; `latest` takes the newest that is whole.") from None
    return checkpoint


def clear_the_way(output_dir: Path, checkpoint: Path) -> None:
    """Before a run goes on from `checkpoint`: delete what was never finished, and set later checkpoints aside, unused."""
    for partial in output_dir.glob("partial-checkpoint-*"):
        shutil.rmtree(partial)
    for later in find_checkpoints(output_dir):
        if step_of(later) > step_of(checkpoint):
            names = (f"unused-{later.name}" if i == 0 else f"unused-{later.name}-{i}" for i in count())
            later.rename(next(path for path in map(output_dir.joinpath, names) if not path.exists()))


def _on_all(accelerator: Accelerator, function: Callable[[], object]) -> None:
    """Call it on every process, and raise on all of them what one of them could not do."""
    reason = None
    try:
        function()
    except CheckpointException as error:  # of shards: what went wrong on each process
        error, _ = next(iter(error.failures.values()))
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    reasons = [reason for reason in gather_object([reason]) if reason is not None]
    if reasons:
        raise CheckpointError(reasons[0])


def _publish(partial: Path, facts: dict, limit: int) -> None:
    """Make a written folder a checkpoint: its manifest, everything on the disk, its name; then the old ones can go."""
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(partial).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
        _flush(path)
    (partial / MANIFEST).write_text(json.dumps(facts | {"files": files}, indent=2) + "\n")
    _flush(partial / MANIFEST)
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _flush(folder)
    checkpoint = partial.with_name(partial.name.removeprefix("partial-"))
    partial.rename(checkpoint)
    _flush(checkpoint.parent)
    for old in find_checkpoints(checkpoint.parent)[:-limit]:
        shutil.rmtree(old.rename(old.with_name(f"partial-{old.name}")))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
