"""Code beside what is saved, by which diffusers loads it in programs that have not imported this package.

It runs where a user allows it with `trust_remote_code=True`, of a [`VDMPipeline`] with `custom_pipeline="pipeline"` too, and
does nothing but import the package, which makes its classes known. Of a repository on the Hub, diffusers also wants a file of
code beside every component whose class it doesn't know yet, before it runs any.
"""

import os
from collections.abc import Mapping
from pathlib import Path


LIBRARY = __package__
CODE = '''"""Imports {name} for programs that have not: diffusers runs this with `trust_remote_code=True`."""

try:
    from {library} import {name}
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("This needs a package: `pip install vdm-diffusers` installs {name}.") from error
'''


def save_code(folder: str | os.PathLike, pipeline: str, components: Mapping[str, tuple]) -> None:
    """
    Write the files into the folder of a pipeline; one that is there is left alone, for it may be somebody's own.

    Args:
        folder (`str` or `os.PathLike`): The folder, made if need be.
        pipeline (`str`): The name of the pipeline's class.
        components (`Mapping[str, tuple]`): Library and class of every component, as `model_index.json` has them.
    """
    write_code(folder, "pipeline.py", pipeline)
    for name, (library, cls) in components.items():
        if library == LIBRARY:
            write_code(folder, f"{name}/{LIBRARY}.py", cls)


def write_code(folder: str | os.PathLike, path: str, name: str, library: str = LIBRARY) -> None:
    """
    Write one file, by which a class of the package is found, unless it is there.

    Args:
        folder (`str` or `os.PathLike`): The folder of what is saved, made if need be.
        path (`str`): Of the file, in that folder.
        name (`str`): The class.
        library (`str`, *optional*, defaults to `"vdm_diffusers"`): Where it is imported from.
    """
    file = Path(folder, path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE.format(library=library, name=name), encoding="utf-8")
