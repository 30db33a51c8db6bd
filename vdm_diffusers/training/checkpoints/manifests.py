"""What the manifest of a checkpoint says, and how it may be wrong: nobody has to have written it who means well."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from .files import needed_files


SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST = 2**63 - 1
"""Of steps, sizes and numbers of processes."""
COUNTED_OPTIONS = ("train_batch_size", "gradient_accumulation_steps")
"""Options that every run has always had, and that its steps are counted by."""


def fault_of(manifest: object) -> str | None:
    """The first thing that is wrong with a manifest, in words; `None` if it is one."""
    return next(_faults(manifest), None)


def _faults(manifest: object) -> Iterator[str]:
    if not isinstance(manifest, dict):
        yield "it holds no facts by name"
        return
    for name in ("files", "data", "options"):
        if not isinstance(manifest.get(name), dict):
            yield f"it has no `{name}` by name"
            return
    files, options, data = manifest["files"], manifest["options"], manifest["data"]
    for name, entry in files.items():
        if fault := _fault_of_file(name, entry):
            yield f"of the file {name!r} it says {fault}"
    if not _counts(manifest.get("step"), 0):
        yield "`step` is no number of steps"
    if not _counts(manifest.get("num_processes"), 1):
        yield "`num_processes` is no number of processes"
        return
    if not isinstance(manifest.get("placement", ""), str):
        yield "`placement` is no text"
        return
    if not all(isinstance(data.get(name), str) for name in ("name", "fingerprint")):
        yield "`data` has no `name` and `fingerprint`"
    names = data.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield "`class_names` of `data` are no names"
    for name in COUNTED_OPTIONS:
        if not _counts(options.get(name), 1):
            yield f"the option `{name}` is no positive number"
    if manifest["num_processes"] > len(files):
        yield f"it lists {len(files)} files of {manifest['num_processes']} processes"
        return
    missing = needed_files(files.keys(), manifest.get("placement", ""), manifest["num_processes"]) - files.keys()
    if missing:
        yield f"it doesn't list {', '.join(sorted(missing))}"


def _fault_of_file(name: str, entry: object) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name or name == ".":
        return "that it lies elsewhere"
    if not isinstance(entry, dict) or not _counts(entry.get("size"), 0):
        return "no size"
    if not isinstance(entry.get("sha256"), str) or not SHA256.fullmatch(entry["sha256"]):
        return "no hash"
    return None


def _counts(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST
