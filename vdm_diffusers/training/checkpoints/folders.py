"""Folders `checkpoint-STEP`: found, verified before use, deleted or put aside."""

import re
import shutil
import warnings
from itertools import count
from pathlib import Path

from ...guards.messages import Message
from ..output_files import CHECKPOINT
from .files import MANIFEST
from .manifests import read_manifest


NAME = re.compile(rf"{CHECKPOINT}(\d+)")
PARTIAL, UNUSED = "partial-", "unused-"
"""Before the name of a folder that is being written or deleted, and of one that no run goes on from."""


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
