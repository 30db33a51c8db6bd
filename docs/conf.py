"""How `make docs` builds the site: Markdown by MyST, docstrings by autodoc, the theme Furo; no other package is needed."""

import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_type_hints


DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import command_options  # noqa: E402
import docstrings  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import SphinxDirective  # noqa: E402

import vdm_diffusers  # noqa: E402


project = "vdm_diffusers"
version = release = vdm_diffusers.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_ext"]

myst_heading_anchors = 4  # as GitHub has them, so that links lead to the same places there and here

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True  # what the docstrings of the reference name is in the reference, unless it is one of these
nitpick_ignore_regex = [
    ("py:.*", r"(abc|accelerate|collections|datasets|diffusers|gradio|numpy|os|pathlib|PIL|torch|transformers)(\..+)?"),
    ("py:class", r"Tensor|(PreTrained|CLIPText)\w+"),
    ("py:class", r"vdm_diffusers\.(guards|precision)\..+"),  # no user meets them
]

html_theme = "furo"
html_title = "vdm_diffusers"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


class CommandOptions(SphinxDirective):
    """`{command-options} evaluate`: what the command does, and all of its options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(command_options.as_markdown(self.arguments[0]))


def rewrite_docstring(app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]) -> None:
    lines[:] = docstrings.as_rst("\n".join(lines)).split("\n")


def leave_out_limits(app: Sphinx, documented: Callable, is_method: bool) -> None:
    """Signatures say `int`, without the limits that `Annotated` adds, which the text says in words."""
    function = inspect.unwrap(getattr(documented, "__func__", documented))
    with suppress(NameError):  # of types that only type checkers import
        function.__annotations__.update(get_type_hints(function))  # which its wrappers share


def leave_out_functions(
    app: Sphinx, what: str, name: str, documented: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that is a function, which has no spelling, as `...`."""
    return signature and re.sub(r"<function [\w.<>]+>", "...", signature), returns


def is_left_out(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Fields of a `NamedTuple`, which the class itself describes; all else as Sphinx decides."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def source_module(app: Sphinx, module: str, attribute: str) -> str | None:
    """Where a name of the package's root is defined: classes that a `model_index.json` names say that it is the root."""
    if module == vdm_diffusers.__name__:
        defined = attribute.partition(".")[0]
        return next(f"{module}.{file}" for file, names in vdm_diffusers._import_structure.items() if defined in names)
    return None


def lead_back(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Links from a module's source to its names here, which viewcode takes all to be imported from one place."""
    module = page.removeprefix("_modules/").replace("/", ".")
    if source := getattr(app.env, "_viewcode_modules", {}).get(module):
        objects, imported_from = app.env.domains.python_domain.objects, re.escape(source[3])
        context["body"] = re.sub(
            rf'#{imported_from}\.([\w.]+)"',
            lambda link: f'#{objects[name].node_id}"' if (name := f"{module}.{link[1]}") in objects else link[0],
            context["body"],
        )


def setup(app: Sphinx) -> None:
    app.add_directive("command-options", CommandOptions)
    app.connect("autodoc-process-docstring", rewrite_docstring, priority=400)  # before napoleon
    app.connect("autodoc-before-process-signature", leave_out_limits)
    app.connect("autodoc-process-signature", leave_out_functions)
    app.connect("autodoc-skip-member", is_left_out)
    app.connect("viewcode-follow-imported", source_module)
    app.connect("html-page-context", lead_back)
