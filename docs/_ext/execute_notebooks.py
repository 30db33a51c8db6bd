"""Execute notebooks, and write what they print into them: `python docs/_ext/execute_notebooks.py docs/notebooks/*.ipynb`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient


METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
"""Of a notebook: what runs it, and nothing of the machine that did."""


@contextmanager
def started_kernel() -> Iterator[KernelManager]:
    """This Python, in a working directory that is gone afterwards."""
    kernel = KernelManager(kernel_name="python3")
    silent = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm's, where there are no widgets
    with TemporaryDirectory() as folder:
        kernel.start_kernel(cwd=folder, env=os.environ | silent, extra_arguments=["--HistoryManager.enabled=False"])
        try:
            yield kernel
        finally:
            kernel.shutdown_kernel(now=True)


def execute(notebook: nbformat.NotebookNode, kernel: KernelManager) -> None:
    """Fill in the outputs, leaving out cells tagged `skip-execution`; `CellExecutionError` if a cell fails."""
    NotebookClient(notebook, km=kernel, timeout=None, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata = nbformat.from_dict(METADATA)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = nbformat.read(path, as_version=4)
        with started_kernel() as kernel:
            execute(notebook, kernel)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
