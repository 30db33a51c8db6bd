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

from ...guards.messages import Message
from .manifests import fault_of


MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-(\d+)")
ALL_NAMES = "*checkpoint-*/**"
"""What matches the files of all checkpoints, whole, partial and set aside."""


class CheckpointError(Exception):
    """A checkpoint could not be written; the message is the reason, and nothing has changed."""


def save_checkpoint(
    accelerator: Accelerator, save: Callable[[Path], None], output_dir: Path, step: int, facts: dict, limit: int
) -> None:
    """
    Write `checkpoint-{step}` with the state of all processes, then delete all but the newest `limit` checkpoints.

    Args:
        save (`Callable`): Writes the state into a folder; called on all processes.
        facts (`dict`): What the manifest shall say of the run besides its files.

    Raises:
        `CheckpointError`: on all processes if it fails on one of them.
    """
    partial = output_dir / f"partial-checkpoint-{step}"
    try:
        _on_all(accelerator, lambda: save(partial))
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
    """The files of a checkpoint, its step, and the facts of its run; `ValueError` if it is missing, or none of a checkpoint."""
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ValueError(f"{checkpoint} has no {MANIFEST}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged") from None
    if fault := fault_of(manifest):
        raise ValueError(f"{path} is damaged: {fault}")
    return manifest


def verify_checkpoint(checkpoint: Path) -> None:
    """`ValueError`, naming the first file that is not as the manifest says, or not of it, unless there is none."""
    manifest = read_manifest(checkpoint)
    if NAME.fullmatch(checkpoint.name) and step_of(checkpoint) != manifest["step"]:
        raise ValueError(f"{checkpoint} is of step {manifest['step']}, as its {MANIFEST} says")
    try:
        for name, written in manifest["files"].items():
            _verify(checkpoint / name, written)
        for path in sorted(checkpoint.rglob("*")):
            name = path.relative_to(checkpoint).as_posix()
            if path.is_file() and name not in manifest["files"] and not name.startswith((MANIFEST, ".")):
                raise ValueError(f"{path} is not one of its files")
    except OSError as error:
        raise ValueError(f"{error.filename} can't be read: {error.strerror}") from None


def _verify(path: Path, written: dict) -> None:
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
    """The verified checkpoint that `resume_from_checkpoint` means: a folder, or `"latest"`.

    Raises `ValueError` if there is none, or if the folder named is damaged.
    """
    checkpoint = latest_checkpoint(output_dir) if name == "latest" else _checkpoint_at(Path(name))
    if checkpoint is None or not checkpoint.is_dir() or not NAME.fullmatch(checkpoint.name):
        raise ValueError(
            Message(
                "{resume_from_checkpoint} is {!r}, but there is no such checkpoint; {output_dir} {!r} holds {}. Leave it out to"
                " start anew, with {overwrite_output_dir} where a run is to be replaced.",
                *(name, str(output_dir), [folder.name for folder in find_checkpoints(output_dir)]),
            )
        )
    if name != "latest":
        try:
            verify_checkpoint(checkpoint)
        except ValueError as damage:
            message = "{resume_from_checkpoint}: {}; `latest` takes the newest that is whole."
            raise ValueError(Message(message, str(damage))) from None
    return checkpoint


def _checkpoint_at(path: Path) -> Path:
    """That path, or where it leads to if it is a symbolic link with a name of its own."""
    return path if NAME.fullmatch(path.name) or not path.is_dir() else path.resolve()


def clear_the_way(output_dir: Path, checkpoint: Path) -> None:
    """Before a run goes on from `checkpoint`: delete what was never finished, and set later checkpoints aside, unused."""
    for partial in output_dir.glob("partial-checkpoint-*"):
        remove(partial)
    for later in find_checkpoints(output_dir):
        if step_of(later) > step_of(checkpoint):
            names = (f"unused-{later.name}" if i == 0 else f"unused-{later.name}-{i}" for i in count())
            later.rename(next(path for path in map(output_dir.joinpath, names) if not path.exists()))


def remove(path: Path) -> None:
    """Delete a file, a folder with all that it holds, or a symbolic link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
        remove(old.rename(old.with_name(f"partial-{old.name}")))


def _refuse_constant(name: str) -> None:
    """NaN and infinity, which are no numbers of JSON."""
    raise ValueError(name)


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
