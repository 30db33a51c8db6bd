"""Docstrings in the manner of diffusers as reStructuredText, which Sphinx reads.

Sections such as `Args:` are left to `sphinx.ext.napoleon`. What is spelled differently is what stands within a line: diffusers
has code, references to classes and links as Markdown has them.
"""

import re


REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
RAISED = re.compile(r"( +)((?:\[?`[\w.]+`\]?(?:, | and )?)+):")
RAISES = re.compile(r"^( *)Raises:\n(?:\1 +.*\n|\n)*", re.MULTILINE)
LINK = re.compile(r"\[`?([^]`]+)`?\]\((https?://[^)]+)\)")
TOKEN = re.compile(rf"{LINK.pattern}|{REFERENCE.pattern}|{CODE.pattern}|[|*\\]")
NAMES = re.compile(r"^ +\w+(?:, \w+)+(?= \((?:`|\[`|\*))", re.MULTILINE)
EMPHASIS = "*optional*"


def as_rst(docstring: str) -> str:
    """
    Args:
        docstring (`str`): With code as `x`, references as [`VDM`] or [`~VDM.forward`], and the sections of diffusers.

    Returns:
        `str`: With code as ``x``, and references that Sphinx makes links where it documents what they name, code where not.
    """
    docstring = RAISES.sub(_with_bare_types, docstring + "\n")
    docstring = NAMES.sub(lambda names: names[0].replace(", ", "/"), docstring)  # a space would end a name
    parts = docstring.split(EMPHASIS)
    return EMPHASIS.join(TOKEN.sub(_spelled, part) for part in parts).removesuffix("\n")


def _with_bare_types(section: re.Match) -> str:
    """A section `Raises:` as napoleon has it: types by their names alone, with commas between, and all else indented."""
    head, *lines = section[0].splitlines()
    for number, line in enumerate(lines):
        raised = RAISED.match(line)
        types = raised and ", ".join(re.findall(r"[\w.]+(?=`)", raised[2]))
        lines[number] = f"{raised[1]}{types}:{line[raised.end() :]}" if raised else f"    {line}".rstrip()
    return "\n".join([head, *lines, ""])


def _spelled(token: re.Match) -> str:
    text, address, short, name, code = token.groups()
    if address:
        markup = f"`{text} <{address}>`__"
    elif name:
        markup = f":py:obj:`{short}.{name}`"
    elif code:
        markup = f"``{code}``"
    else:
        return "\\" + token[0]
    before, after = token.string[: token.start()][-1:], token.string[token.end() :][:1]
    glue_before = "" if not before or before in " \n'\"([{<-/:" else "\\ "
    glue_after = "" if not after or after in " \n'\")]}>-/\\:.,;!?" else "\\ "
    return f"{glue_before}{markup}{glue_after}"
