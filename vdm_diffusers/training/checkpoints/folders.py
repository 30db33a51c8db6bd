"""Folders `checkpoint-STEP`: written so that they are whole or not there, verified before use, rotated.

A checkpoint is written under another name, hashed into a manifest, forced to the disk, and renamed. Whatever a kill or a full
or failing disk leaves behind, its name or its manifest tells it from a checkpoint.
"""

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

from ...guards.messages import Message
from ..output_files import CHECKPOINT
from ..resuming import Run
from .files import MANIFEST
from .manifests import Manifest, WrittenFile, read_manifest


NAME = re.compile(rf"{CHECKPOINT}(\d+)")
PARTIAL, UNUSED = "partial-", "unused-"
"""Before the name of a folder that is being written or deleted, and of one that no run goes on from."""


class CheckpointError(Exception):
    """A checkpoint could not be written; the message is the reason, and nothing has changed."""


def save_checkpoint(
    accelerator: Accelerator, save: Callable[[Path], None], output_dir: Path, step: int, run: Run, limit: int
) -> None:
    """
    Write the checkpoint of a step with the state of all processes, then delete all but the newest `limit` checkpoints.

    Args:
        save (`Callable`): Writes the state into a folder; called on all processes.

    Raises:
        `CheckpointError`: on all processes if one of them fails.
    """
    partial = output_dir / f"{PARTIAL}{CHECKPOINT}{step}"
    try:
        _on_all(accelerator, lambda: save(partial))
        _on_all(accelerator, lambda: accelerator.is_main_process and _publish(partial, run, step, limit))
    except CheckpointError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of an output folder, oldest first, unverified."""
    return sorted((path for path in output_dir.glob(f"{CHECKPOINT}*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, by its name."""
    return int(NAME.fullmatch(checkpoint.name)[1])


def verify_checkpoint(checkpoint: Path) -> None:
    """`ValueError`, naming the first file that is missing, has changed, or is not listed in the manifest."""
    manifest = read_manifest(checkpoint)
    if NAME.fullmatch(checkpoint.name) and step_of(checkpoint) != manifest.step:
        raise ValueError(f"{checkpoint} is of step {manifest.step}, as its {MANIFEST} says")
    try:
        for name, written in manifest.files.items():
            written.verify(checkpoint / name)
        for path in sorted(checkpoint.rglob("*")):
            name = path.relative_to(checkpoint).as_posix()
            if path.is_file() and name not in manifest.files and not name.startswith((MANIFEST, ".")):
                raise ValueError(f"{path} is not one of its files")
    except OSError as error:
        raise ValueError(f"{error.filename} can't be read: {error.strerror}") from None


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that is whole; a warning names each damaged one that is passed over."""
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
    """A path, or where it leads to if it is a symbolic link with another name than a checkpoint's."""
    return path if NAME.fullmatch(path.name) or not path.is_dir() else path.resolve()


def clear_the_way(output_dir: Path, checkpoint: Path) -> None:
    """Before a run goes on from `checkpoint`: delete unfinished checkpoints, and rename later ones, which are kept unused."""
    for partial in output_dir.glob(f"{PARTIAL}{CHECKPOINT}*"):
        remove(partial)
    for later in find_checkpoints(output_dir):
        if step_of(later) > step_of(checkpoint):
            names = (f"{UNUSED}{later.name}{f'-{i}' if i else ''}" for i in count())
            later.rename(next(path for path in map(output_dir.joinpath, names) if not path.exists()))


def remove(path: Path) -> None:
    """Delete a file, a folder and all that it holds, or a symbolic link, but not what the link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _on_all(accelerator: Accelerator, function: Callable[[], object]) -> None:
    """Call a function on every process; if it fails on one, `CheckpointError` on all of them."""
    reason = None
    try:
        function()
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    reasons = [reason for reason in gather_object([reason]) if reason is not None]
    if reasons:
        raise CheckpointError(reasons[0])


def _publish(partial: Path, run: Run, step: int, limit: int) -> None:
    """Turn a written folder into a checkpoint: write its manifest, force it to the disk, rename it; then delete old ones."""
    written = sorted(path for path in partial.rglob("*") if path.is_file() and path.name != MANIFEST)
    Manifest(run, step, {path.relative_to(partial).as_posix(): WrittenFile.of(path) for path in written}).write(partial)
    for path in (*written, partial / MANIFEST, partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _flush(path)
    checkpoint = partial.with_name(partial.name.removeprefix(PARTIAL))
    partial.rename(checkpoint)
    _flush(checkpoint.parent)
    for old in find_checkpoints(checkpoint.parent)[:-limit]:
        remove(old.rename(old.with_name(f"{PARTIAL}{old.name}")))


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
