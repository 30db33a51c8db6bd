"""One run at a time in a folder: locks that last as long as the processes of the run, however they end.

Every process of a run holds a lock of its own, so that the folder is not free before all of them have ended, even if the first
one is killed. The locks are advisory ones of the file system (`flock`), seen by all machines that share it.
"""

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from ..guards.messages import Message
from .output_files import LOCKS


PATIENCE = 2.0
"""Seconds to wait for a lock that another process holds for a moment, to test it or because it is just ending."""


class RunLock:
    """
    Keeps other runs out of a folder while it is entered.

    Enter it on the first process, then on the others. `ValueError` if another run holds the folder or if it can't be locked.

    Args:
        folder (`Path`): Made if need be.
        process_index (`int`): Of this process in its run.
    """

    def __init__(self, folder: Path, process_index: int):
        self.folder, self.process_index = folder, process_index
        self.locks = folder / LOCKS
        self._held = ExitStack()

    def __enter__(self) -> "RunLock":
        try:
            self.locks.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(FileLock(self.locks / str(self.process_index), timeout=PATIENCE))
            if self.process_index == 0:
                _try_all(self.locks, but=0, patience=PATIENCE)
                (self.locks / "holder.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        except Timeout:
            self._held.close()
            raise ValueError(in_use(self.folder)) from None
        except (OSError, NotImplementedError) as error:
            self._held.close()
            message = "{output_dir} {!r} can't be locked: {}. Name a folder that can be."
            raise ValueError(Message(message, str(self.folder), str(error))) from error
        return self

    def __exit__(self, *error) -> None:
        self._held.close()


def is_in_use(folder: Path) -> bool:
    """Whether a run holds a folder now. Nothing is written."""
    try:
        _try_all(folder / LOCKS, patience=0)
    except Timeout:
        return True
    except OSError:
        pass
    return False


def in_use(folder: Path) -> Message:
    """The message for a folder that another run holds."""
    try:
        holder = json.loads((folder / LOCKS / "holder.json").read_text())
        whose = f", that of process {int(holder['pid'])} on {str(holder['host'])!r} or of what it has started"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        whose = ""
    return Message(
        "{output_dir} {!r} is in use by another run{}: wait for its end, or name another folder.", str(folder), whose
    )


def is_lock(path: Path) -> bool:
    """Whether a path is the folder of locks, which is neither counted among the contents of an output folder nor deleted."""
    return path.name == LOCKS


def _try_all(locks: Path, but: int | None = None, patience: float = 0.0) -> None:
    """`Timeout` if a process holds one of them."""
    for path in sorted(locks.glob("[0-9]*")):
        if path.name != str(but):
            FileLock(path, timeout=patience).acquire().lock.release()
