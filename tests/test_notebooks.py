"""The notebooks: they are whole, they show what an execution printed, and they run, with fewer steps of training."""

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


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def executed(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that run."""
    skipped = tagged(notebook, "skip-execution")
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell not in skipped]


def with_few_steps(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """With small numbers in the place of all its constants."""
    (constants,) = tagged(notebook, "parameters")
    names = re.findall(r"^(\w+) = [\d_]+  # .+$", constants.source, re.MULTILINE)
    assert len(names) == len(constants.source.splitlines())
    constants.source = "\n".join(f"{name} = {FEW[name]}" for name in names)
    return notebook


@pytest.fixture(scope="module")
def kernel():
    """One for all, so that torch is imported once."""
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


def test_every_notebook_is_listed():
    page = (ROOT / "docs" / "notebooks" / "index.md").read_text()
    assert sorted(re.findall(r"^\| \[[^]]+\]\((\w+\.ipynb)\)", page, re.MULTILINE)) == sorted(path.name for path in NOTEBOOKS)


@notebooks
def test_a_notebook_is_whole_and_begins_by_installing(path):
    notebook = read(path)
    nbformat.validate(notebook)
    title, install, constants = notebook.cells[:3]
    assert title.source.startswith("# ") and install.source.startswith("%pip install -q 'vdm-diffusers[train]'\n")
    assert tagged(notebook, "skip-execution") == [install] and tagged(notebook, "parameters") == [constants]


@notebooks
def test_a_notebook_shows_what_one_execution_printed(path):
    """From its first cell to its last, without a warning, and without anything of the machine."""
    notebook = read(path)
    cells = executed(notebook)
    assert path.stat().st_size < 100_000
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert any("image/" in mime for output in outputs for mime in output.get("data", {}))
    assert notebook.metadata == METADATA and all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    texts = [output.get("text") or output.data["text/plain"] for output in outputs]
    assert not re.search(r"0x[0-9a-f]{6}|site-packages|(^|[\s\"'(])/[a-z]+/|[A-Z]:\\", "\n".join(texts))


@notebooks
def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown"))
    assert links and all(link.startswith("https://") or (path.parent / link).is_file() for link in links)


@notebooks
def test_a_notebook_runs(path, empty_kernel):
    """And shows as many things as the one that is kept, no warnings among them."""
    notebook = with_few_steps(read(path))
    kept = [[output.output_type for output in cell.outputs] for cell in executed(notebook)]
    execute(notebook, empty_kernel)
    assert [[output.output_type for output in cell.outputs] for cell in executed(notebook)] == kept
