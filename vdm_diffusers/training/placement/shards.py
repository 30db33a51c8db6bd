"""Folders of shards in the format of `torch.distributed.checkpoint`, read without running anything in them.

In that format `.metadata` and every value that is no tensor are pickles, which torch itself unpickles without restriction.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import gather_object
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem


ADMITTED = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}  # fmt: skip
"""The names, by module, that `.metadata` may refer to, besides the dtypes of torch."""


def save_shards(state: dict, folder: Path) -> None:
    """Write a state of tensors and plain values. Call it on all processes; what fails on one of them is raised on all."""
    with _own_error():
        dcp.save(state, checkpoint_id=folder)


def load_shards(state: dict, folder: Path) -> None:
    """Read it in place. Call it on all processes; what fails on one of them is raised on all."""
    reader = _Reader(folder)
    _on_all_or_none(reader.read_metadata)  # dcp would hide why it fails
    with _own_error():
        dcp.load(state, storage_reader=reader, planner=_Planner())


def _on_all_or_none(function: Callable[[], object]) -> None:
    """Call a function on all processes; what fails on one of them is raised on all, so that none waits for it."""
    failures = []
    try:
        function()
    except Exception as error:
        failures = [error]
    if failures := gather_object(failures):
        raise failures[0]


@contextmanager
def _own_error() -> Iterator[None]:
    """Raise the error of a process itself, not the exception in which torch wraps it, which isn't even an `Exception`."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args, **kwargs) -> Metadata:
        content = Path(self._get_metadata_path(kwargs.get("rank"))).read_bytes()
        metadata = _Unpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{self.path} has no metadata of shards")
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"{self.path} has shards in another folder, {info.relative_path!r}")
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(dcp.DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name in ADMITTED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a folder of shards")
