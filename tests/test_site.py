"""The site: docstrings become what Sphinx reads, the reference is complete, figures are listed, and it builds."""

import re
import subprocess
import sys
from importlib import import_module

import check_links
import pytest
from command_options import COMMANDS, as_markdown, options_class
from docstrings import as_rst
from paths import ROOT

import vdm_diffusers
from vdm_diffusers.command_line import options_of


DOCS = ROOT / "docs"
ROOMS = ("compression", "convert", "data", "demo", "few_steps", "likelihood", "probability_flow", "text_encoders", "training")
PUBLIC = [f"vdm_diffusers.{room}.{name}" for room in ROOMS for name in import_module(f"vdm_diffusers.{room}").__all__]
PUBLIC += [f"vdm_diffusers.{name}" for names in vdm_diffusers._import_structure.values() for name in names]
PAGES = {page: page.read_text() for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
FIGURES = PAGES.pop(DOCS / "figures.md")


@pytest.mark.parametrize(
    ("docstring", "rst"),
    [
        ("code `x` and `f(a, *b)`", "code ``x`` and ``f(a, *b)``"),
        ("a [`VDM`], its [`~VDM.forward`].", "a :py:obj:`.VDM`, its :py:obj:`~.VDM.forward`."),
        ("[Ho 2020](https://a.b/c_d) and [`G`](https://a.b)", "`Ho 2020 <https://a.b/c_d>`__ and `G <https://a.b>`__"),
        ("½`x`s, q(z|x) * 2", r"½\ ``x``\ s, q(z\|x) \* 2"),
        ("code that `spans\n    lines`", "code that ``spans\n    lines``"),
        (
            "Args:\n    x (`int`, *optional*, defaults to `2`): It.",
            "Args:\n    x (``int``, *optional*, defaults to ``2``): It.",
        ),
        ("Attributes:\n    a, b (`int`): Two.", "Attributes:\n    a/b (``int``): Two."),
        (
            "Raises:\n    `TypeError` and [`DataError`]: for `x`, and\n    more.\n\nReturns:\n    `int`: It.",
            "Raises:\n    TypeError, DataError: for ``x``, and\n        more.\n\nReturns:\n    ``int``: It.",
        ),
    ],
)
def test_docstrings_become_rst(docstring, rst):
    assert as_rst(docstring) == rst


def test_every_command_is_listed():
    runs = {path.relative_to(ROOT / "vdm_diffusers") for path in (ROOT / "vdm_diffusers").rglob("*.py")}
    runs = {path for path in runs if '__name__ == "__main__"' in (ROOT / "vdm_diffusers" / path).read_text()}
    assert {path.parent.name or path.stem for path in runs} == set(COMMANDS)
    assert re.findall(r"{command-options} (\w+)", PAGES[DOCS / "reference" / "commands.md"]) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_listed(command):
    entries = re.findall(r"^```{option} --(\w+).*\n\n(.*)$", as_markdown(command), re.MULTILINE)
    assert [name for name, _ in entries] == [option.name for option in options_of(options_class(command))]
    assert all(option.help in text for option, (_, text) in zip(options_of(options_class(command)), entries))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name):
    """By itself, or by its room."""
    listed = set()
    for page in (DOCS / "reference").glob("*.rst"):
        module = ""
        for directive, value in re.findall(r"^\.\. (currentmodule|auto\w+):: (\S+)", page.read_text(), re.MULTILINE):
            module = value if directive == "currentmodule" else module
            listed.add(value if value.startswith("vdm_diffusers") else f"{module}.{value}")
    assert {name, name.rpartition(".")[0]} & listed


def test_pictures_and_benchmarks_of_the_pages_are_in_the_list_of_figures():
    text = "\n".join(PAGES.values())
    for found in (r"images/\w+\.png", r"benchmarks/\w+\.py"):
        # made for the other figures, and a part of one
        assert set(re.findall(found, text)) - {"benchmarks/stock_ddpm.py"} == set(re.findall(found, FIGURES))


def test_commands_in_the_list_of_figures_are_those_of_the_pages():
    rows = re.findall(r"^\| \[[^]]+\]\(([^)#]+)[^)]*\) \| [^|]+ \| `([^`]+)`", FIGURES, re.MULTILINE)
    assert len(rows) == 38
    for page, command in rows:
        assert command in re.sub(r"[\\\s]+", " ", PAGES[DOCS / page]), (page, command)


def test_broken_links_are_found(tmp_path):
    with pytest.raises(ValueError, match="no site"):
        check_links.broken_links(tmp_path)
    (tmp_path / "index.html").write_text(
        '<a href="b.html#there"></a><a href="#here" id="here"></a><a href="https://x.y/z"></a>'
    )
    (tmp_path / "b.html").write_text(
        '<p id="there"></p><a href="index.html#gone"></a><img src="gone.png"><a href="gone.html"></a>'
    )
    assert check_links.broken_links(tmp_path) == ["b.html: gone.html", "b.html: gone.png", "b.html: index.html#gone"]


def test_the_site_builds(tmp_path):
    """Without a warning or a broken link, with every public name and what these name, and without markup left as it was."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert check_links.broken_links(tmp_path) == []
    known = InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="")
    assert set(PUBLIC) <= {name for names in known.data.values() for name in names}
    for page in (tmp_path / "reference").glob("*.html"):
        article = re.search(r"<article.*</article>", page.read_text(), re.DOTALL)[0]
        assert "`" not in re.sub(r"<[^>]+>", "", article), page.name
