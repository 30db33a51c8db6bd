"""What the manifest of a checkpoint says. It may be forged or damaged, so that everything in it is checked when it is read."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..resuming import Run, is_count
from .files import MANIFEST, needed_files


SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WrittenFile:
    """What a file was when it was written: its number of bytes, and the hash of its content."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "WrittenFile":
        return cls(path.stat().st_size, _digest(path))

    @classmethod
    def from_json(cls, name: str, entry: object) -> "WrittenFile":
        """What a manifest says of the file of that name; `ValueError` if it can't be one of a checkpoint."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name or name == ".":
            raise ValueError(f"of the file {name!r} it says that it lies elsewhere")
        if not isinstance(entry, dict) or not is_count(entry.get("size"), 0):
            raise ValueError(f"of the file {name!r} it says no size")
        if not isinstance(entry.get("sha256"), str) or not SHA256.fullmatch(entry["sha256"]):
            raise ValueError(f"of the file {name!r} it says no hash")
        return cls(entry["size"], entry["sha256"])

    def verify(self, path: Path) -> None:
        """`ValueError` unless a file is this one."""
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != self.size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {self.size}")
        if _digest(path) != self.sha256:
            raise ValueError(f"{path} has changed since it was written")


@dataclass(frozen=True)
class Manifest:
    """
    What a checkpoint is.

    Attributes:
        step (`int`): The step after which it was written.
        files (`Mapping[str, WrittenFile]`): By their paths below its folder.
    """

    run: Run
    step: int
    files: Mapping[str, WrittenFile]

    @classmethod
    def from_json(cls, manifest: Any) -> "Manifest":
        """Read it, from an earlier version too; `ValueError`, naming the first thing that is wrong with it."""
        if not isinstance(manifest, dict):
            raise ValueError("it holds no facts by name")
        if not isinstance(manifest.get("files"), dict):
            raise ValueError("it has no `files` by name")
        files = {name: WrittenFile.from_json(name, entry) for name, entry in manifest["files"].items()}
        if not is_count(manifest.get("step"), 0):
            raise ValueError("`step` is no number of steps")
        run = Run.from_manifest(manifest)
        if run.num_processes > len(files):
            raise ValueError(f"it lists {len(files)} files of {run.num_processes} processes")
        if missing := needed_files(files.keys(), run) - files.keys():
            raise ValueError(f"it doesn't list {', '.join(sorted(missing))}")
        return cls(run, manifest["step"], files)

    def write(self, checkpoint: Path) -> None:
        facts = asdict(self)
        (checkpoint / MANIFEST).write_text(json.dumps(facts.pop("run") | facts, indent=2) + "\n")


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint; `ValueError` if it is missing or damaged."""
    path = checkpoint / MANIFEST
    try:
        content = json.loads(path.read_text(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ValueError(f"{checkpoint} has no {MANIFEST}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged") from None
    try:
        return Manifest.from_json(content)
    except ValueError as fault:
        raise ValueError(f"{path} is damaged: {fault}") from None


def _refuse_constant(name: str) -> None:
    """NaN and infinity are no numbers of JSON."""
    raise ValueError(name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
