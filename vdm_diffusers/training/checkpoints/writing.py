"""Writing checkpoints: training waits while its state is copied, and goes on while the copy is written.

A checkpoint is written under another name, hashed into a manifest, forced to the disk, and renamed. Whatever a kill or a full
or failing disk leaves behind, its name or its manifest tells it from a checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from ..output_files import CHECKPOINT
from ..resuming import Run
from .files import MANIFEST
from .folders import PARTIAL, find_checkpoints, remove
from .manifests import Manifest, WrittenFile


class CheckpointError(Exception):
    """A checkpoint could not be written; the message is the reason, and nothing has changed."""


class CheckpointWriter:
    """
    Writes checkpoints one after the other, in a thread of the main process.

    Args:
        snapshot (`Callable`): Called on all processes with a folder; takes their state as it is. What it returns is called in
            the thread and writes that state into the folder.
        output_dir (`Path`): Receives the checkpoints.
        limit (`int`): All but the newest `limit` of them are deleted.

    Attributes:
        step (`int`, *optional*): That of the last checkpoint begun.
    """

    def __init__(
        self, accelerator: Accelerator, snapshot: Callable[[Path], Callable[[], None]], output_dir: Path, run: Run, limit: int
    ):
        self.accelerator, self.snapshot, self.output_dir, self.run, self.limit = accelerator, snapshot, output_dir, run, limit
        self.step: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def begin(self, step: int) -> None:
        """
        Take the state of all processes and begin to write it as the checkpoint of a step. Call it on all processes, once the
        checkpoint before has been waited for.

        Raises:
            `CheckpointError`: on all processes, if the state of one of them can't be taken.
        """
        self.step, partial, writes = step, self.output_dir / f"{PARTIAL}{CHECKPOINT}{step}", []
        try:
            _on_all(self.accelerator, lambda: writes.append(self.snapshot(partial)))
        except CheckpointError:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if self.accelerator.is_main_process:
            self._writing = self._thread.submit(_write, partial, writes.pop(), self.run, step, self.limit)

    @property
    def is_done(self) -> bool:
        """Whether there is a checkpoint to wait for, and no time to wait."""
        return self._writing is not None and self._writing.done()

    def wait(self) -> None:
        """Wait until nothing is being written. `CheckpointError`, on the main process, if the last checkpoint could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with _as_checkpoint_error():
                writing.result()

    def write(self, step: int) -> None:
        """[`begin`], and wait until it is written. `CheckpointError`, on all processes, if it can't be."""
        self.begin(step)
        _on_all(self.accelerator, self.wait)


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _on_all(accelerator: Accelerator, function: Callable[[], object]) -> None:
    """Call a function on every process; if it fails on one, `CheckpointError` on all of them."""
    reason = None
    try:
        with _as_checkpoint_error():
            function()
    except CheckpointError as error:
        reason = str(error)
    reasons = [reason for reason in gather_object([reason]) if reason is not None]
    if reasons:
        raise CheckpointError(reasons[0])


def _write(partial: Path, write: Callable[[], None], run: Run, step: int, limit: int) -> None:
    try:
        write()
        _publish(partial, run, step, limit)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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
