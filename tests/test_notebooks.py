"""The notebooks: they are whole, they show what an execution printed, and they run, with fewer steps of training."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from execute_notebooks import METADATA, execute, started_kernel
from paths import ROOT


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FEW = {"NUM_STEPS": 4, "NUM_REPEATS": 2, "NUM_DRAWS": 4800}
"""What the constants of a notebook become here."""

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode, tag: str | None = None) -> list[nbformat.NotebookNode]:
    """Those that run, or those with a tag."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in code if (tag in cell.metadata.get("tags", []) if tag else "skip-execution" not in str(cell))]


@pytest.fixture(scope="module")
def kernel():
    """One for all: to import torch takes longer than to run a notebook."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))
        with started_kernel() as kernel:
            yield kernel


@pytest.fixture
def empty_kernel(kernel):
    """The same, without the names of another notebook."""
    client = kernel.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    client.execute("%reset -f", reply=True, timeout=60)
    client.stop_channels()
    return kernel


@notebooks
def test_a_notebook_is_whole_and_begins_by_installing(path):
    notebook = read(path)
    nbformat.validate(notebook)
    title, install, constants = notebook.cells[:3]
    assert title.source.startswith("# ") and install.source.startswith("%pip install -q 'vdm-diffusers[train]'\n")
    assert code_cells(notebook, "skip-execution") == [install] and code_cells(notebook, "parameters") == [constants]


@notebooks
def test_a_notebook_shows_what_one_execution_printed(path):
    """From its first cell to its last, without a warning, and without anything of the machine."""
    notebook = read(path)
    assert path.stat().st_size < 100_000
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.metadata == METADATA and all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    texts = [json.dumps({**output, "data": {**output.get("data", {}), "image/png": ""}}) for output in outputs]
    assert not re.search(r"0x[0-9a-f]{6}|site-packages|(^|[\s\"'(])/[a-z]+/|[A-Z]:\\", "\n".join(texts))


@notebooks
def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown"))
    assert links and all(link.startswith("https://") or (path.parent / link).is_file() for link in links)


@notebooks
def test_a_notebook_runs(path, empty_kernel):
    notebook = read(path)
    (constants,) = code_cells(notebook, "parameters")
    constants.source, number = re.subn(r"^(\w+) = [\d_]+", lambda line: f"{line[1]} = {FEW[line[1]]}", constants.source, flags=re.M)
    assert number == len(constants.source.splitlines())
    shown = [len(cell.outputs) for cell in code_cells(notebook)]
    execute(notebook, empty_kernel)
    assert [len(cell.outputs) for cell in code_cells(notebook)] == shown
