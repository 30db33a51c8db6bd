"""What a command is called with, from its module and its dataclass of options: Markdown for the page of all commands."""

import inspect
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

from vdm_diffusers.command_line import Option, options_of


COMMANDS = {
    "train": "vdm_diffusers.training.config.TrainingConfig",
    "evaluate": "vdm_diffusers.evaluate.EvaluationOptions",
    "few_steps": "vdm_diffusers.few_steps.options.FewStepsOptions",
    "compress": "vdm_diffusers.compress.CompressionOptions",
    "decompress": "vdm_diffusers.decompress.DecompressionOptions",
    "fid": "vdm_diffusers.fid.FidOptions",
    "demo": "vdm_diffusers.demo.__main__.DemoOptions",
    "convert": "vdm_diffusers.convert.__main__.ConversionOptions",
}
"""The dataclass of the options of each `python -m vdm_diffusers.…`."""

KINDS = {int: "integer", float: "number", str: "text", Path: "path"}
"""What stands for a value; nothing for a boolean, whose flag is enough, and where all values are choices."""


def as_markdown(command: str) -> str:
    """What the command does, how it is called, and every option."""
    does, calls, *_ = inspect.getdoc(_module(command)).split("\n\n")
    parts = [does, f"```shell\n{dedent(calls)}\n```", f"```{{program}} {command}\n```"]
    return "\n\n".join(parts + [_entry(option) for option in options_of(options_class(command))]) + "\n"


def options_class(command: str) -> type:
    module, _, name = COMMANDS[command].rpartition(".")
    return getattr(import_module(module), name)


def _module(command: str) -> Any:
    """That which runs as `python -m`."""
    module = import_module(f"vdm_diffusers.{command}")
    return import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module


def _entry(option: Option) -> str:
    names = ", ".join(f"--{name} {_values(option)}".rstrip() for name in (option.name, *option.aliases))
    return f"```{{option}} {names}\n\n{option.help}{_default(option)}\n```"


def _values(option: Option) -> str:
    values = "|".join(filter(None, (*option.choices, KINDS.get(option.kind))))
    return f"{values} ..." if option.is_list else values


def _default(option: Option) -> str:
    if option.default is MISSING:
        return " **Has to be given.**"
    if option.default is None or option.default == []:
        return ""
    shown = " ".join(map(str, option.default)) if isinstance(option.default, list) else option.default
    return f" Default: `{shown}`."
