"""Folders that keep what is computed of a data set once: whole or not there, and of these data alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..guards.messages import Argument, Message


@dataclass(frozen=True)
class KeptFolder:
    """
    A folder with a description of what it holds, which is written last: without it the folder is incomplete.

    Args:
        path (`Path`): The folder.
        option (`str`): The option that names it.
        description (`str`): The file with the facts.
        facts (`dict`): What these data are told from others by, as JSON has it.
        contents (`str`): What it holds, for messages.
        others (`str`): How what is held of other data differs, for messages.
    """

    path: Path
    option: str
    description: str
    facts: dict
    contents: str
    others: str

    def holds(self, *files: str) -> bool:
        """Whether it holds what the facts say, and these files; `ValueError` if it holds anything else."""
        path, option = self.path, Argument(self.option)
        if not (path / self.description).exists():
            if path.exists() and any(path.iterdir()):
                text = "{} {!r} holds something other than {}: name another folder."
                raise ValueError(Message(text, option, str(path), self.contents))
            return False
        same = json.loads((path / self.description).read_text()) == self.facts
        if not same or not all((path / file).exists() for file in files):
            text = "{} {!r} holds {} {}: name another folder, or delete this one."
            raise ValueError(Message(text, option, str(path), self.contents, self.others))
        return True

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder to write into, which becomes this one at the end."""
        partial = self.path.with_name(f".{self.path.name}-partial")
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        (partial / self.description).write_text(json.dumps(self.facts))
        self.path.exists() and self.path.rmdir()
        partial.rename(self.path)
