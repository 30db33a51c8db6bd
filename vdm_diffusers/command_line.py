"""Commands: options as a dataclass declares them, from a file and from flags, and one sentence for whatever is wrong.

An option is a field: its name, type and default. Its metadata has `help`; `aliases`, other names of it; and `secret`, whose
value no message repeats. Files and flags are read by the same functions. A name that is no option may have a secret for its
value: messages name it alone.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from .guards.arguments import members
from .guards.messages import as_flag, spelled
from .guards.secrecy import redacted


MAX_FILE_BYTES = 1 << 18
INTERRUPTED = 130
"""The exit code of a process that SIGINT ended, as shells have it."""


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass of options: its default, `MISSING` if it has to be given, its help text, and further metadata."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, repr=not metadata.get("secret"), metadata=metadata)


def _boolean(word: str) -> bool:
    words = {"true": True, "yes": True, "t": True, "y": True, "1": True}
    words |= {"false": False, "no": False, "f": False, "n": False, "0": False}
    return words[word.lower()]


def _integer(word: str) -> int:
    value = int(word)
    if abs(value) >= 2**63:
        raise ValueError
    return value


KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (_integer, "a whole number of at most 64 bits"),
    float: (float, "a number"),
    str: (str, "text without control characters"),
    Path: (Path, "a path without control characters"),
}
"""What a word can mean: how it is read, and what it must be."""


@dataclass(frozen=True)
class Option:
    """
    An option of a command.

    Attributes:
        name (`str`): Of the field and, after `--`, of the flag.
        kind (`type`, *optional*): What a value is, one of `KINDS`.
        choices (`tuple[str, ...]`): Words that are values too, or the only ones.
        is_list (`bool`): Whether it has several values.
        may_be_none (`bool`): Whether a file may leave its value empty.
        default: For `--help`; `MISSING` if the option has to be given.
        help (`str`): For `--help`.
        aliases (`tuple[str, ...]`): Other names of it.
        secret (`bool`): Whether no message may have its value.
    """

    name: str
    kind: type | None
    choices: tuple[str, ...]
    is_list: bool
    may_be_none: bool
    default: Any
    help: str
    aliases: tuple[str, ...]
    secret: bool

    def read(self, words: Sequence[str]) -> Any:
        """The value that those words mean; `ValueError`, naming the flag, if they mean none."""
        if self.kind is bool and not words:
            return True
        if not words:
            raise ValueError(f"`--{self.name}` has no value: it must be {self.requirement}.")
        if self.is_list:
            return [self._value(word) for word in words]
        if len(words) > 1:
            raise ValueError(f"`--{self.name}` has {len(words)} values{self._shown(' '.join(words))}, but takes one.")
        return self._value(words[0])

    def _value(self, word: str) -> Any:
        if word in self.choices:
            return word
        try:
            if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in word):
                raise ValueError
            return KINDS[self.kind][0](os.path.expanduser(word) if word.startswith("~/") else word)  # as shells do, at times
        except (KeyError, ValueError):
            raise ValueError(f"`--{self.name}` has a wrong value{self._shown(word)}: it must be {self.requirement}.") from None

    def _shown(self, text: str) -> str:
        return "" if self.secret else f", {text!r}" if len(text) <= 100 else f", {text[:100]!r}…"

    @property
    def requirement(self) -> str:
        """What a value must be, in words."""
        kinds = [] if self.kind is None else [KINDS[self.kind][1]]
        return " or ".join(kinds + ([f"one of {', '.join(self.choices)}"] if self.choices else []))


def options_of(options_class: type) -> list[Option]:
    """The options that the fields of a dataclass are."""
    types = get_type_hints(options_class)
    return [_option(item, types[item.name]) for item in fields(options_class)]


def _option(item: Any, annotation: Any) -> Option:
    allowed = set(members(annotation))
    lists = [member for member in allowed if get_origin(member) is list]
    values = set(members(get_args(lists[0])[0])) if lists else allowed
    kinds = [member for member in values if member in KINDS]
    return Option(
        name=item.name,
        kind=kinds[0] if kinds else None,
        choices=tuple(choice for member in values if get_origin(member) is Literal for choice in get_args(member)),
        is_list=bool(lists),
        may_be_none=NoneType in allowed,
        default=item.default if item.default_factory is MISSING else item.default_factory(),
        help=item.metadata["help"],
        aliases=tuple(item.metadata.get("aliases", ())),
        secret=bool(item.metadata.get("secret")),
    )


def parse_options(options_class: type, arguments: Sequence[str], command: str, description: str) -> dict[str, Any]:
    """
    The options that are given, by their names: those of a file, if the first argument is one, and then those of flags.

    `--help` prints them all and exits.

    Raises:
        `ValueError`: in one sentence, for what is no option or no value of it, and for what is missing.
    """
    options = options_of(options_class)
    if {"-h", "--help"} & set(arguments):
        _print_help(options, command, description)
    given = {}
    if arguments and not arguments[0].startswith("-"):
        given, arguments = read_file(Path(arguments[0]), options), arguments[1:]
    given |= read_flags(arguments, options)
    for needed in options:
        if needed.default is MISSING and needed.name not in given:
            raise ValueError(f"`--{needed.name}` is missing: {needed.help}")
    return given


def split_paths(arguments: Sequence[str]) -> tuple[list[Path], Sequence[str]]:
    """The paths that a command line begins with, and all that follows them: options."""
    paths = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    return [Path(path) for path in paths], arguments[len(paths) :]


def read_flags(arguments: Sequence[str], options: Sequence[Option]) -> dict[str, Any]:
    """Options by their names from a command line: `--name value ...` or `--name=value`, of a boolean `--name` or `--no_name`.

    A name may be abbreviated, and have hyphens for underscores. Of an option that is given twice the last counts.
    """
    names, words = _by_name(options), {}
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, word = argument[2:].partition("=")
            name, no = _find(flag.replace("-", "_"), names)
            words[name] = [word] if equals else no
        elif not words:
            raise ValueError(
                "An option is a flag, `--name value`, or comes from a file that is named first; `--help` lists them."
            )
        else:
            words[name].append(argument)
    return _by_own_names({name: names[name].read(given) for name, given in words.items()}, names)


def _find(flag: str, names: dict[str, Option]) -> tuple[str, list[str]]:
    """The name that a flag is, or begins, and the value that it implies: `--no_name` that of a boolean."""
    if flag in names:
        return flag, []
    if flag.startswith("no_") and flag[3:] in names and names[flag[3:]].kind is bool:
        return flag[3:], ["false"]
    begun = [name for name in names if flag and name.startswith(flag)]
    if len({names[name].name for name in begun}) == 1:
        return begun[0], []
    what = "short for several options" if begun else "no option"
    raise ValueError(f"`--{flag[:60]}` is {what}{_did_you_mean(flag[:60], names, begun)}")


def _did_you_mean(name: str, names: dict[str, Option], begun: Sequence[str] = ()) -> str:
    near = begun or difflib.get_close_matches(name, names)
    return f": did you mean {' or '.join(f'`--{known}`' for known in near[:3])}?" if near else "; `--help` lists them."


def _by_name(options: Sequence[Option]) -> dict[str, Option]:
    return {name: option for option in options for name in (option.name, *option.aliases)}


def _by_own_names(values: dict[str, Any], names: dict[str, Option]) -> dict[str, Any]:
    """Values by the first names of their options; `ValueError` for an option that is given by two names."""
    given = {}
    for name in values:
        if (other := given.setdefault(names[name].name, name)) != name:
            raise ValueError(f"`--{other}` and `--{name}` are one option: give it once.")
    return {own: values[name] for own, name in given.items()}


def read_file(path: Path, options: Sequence[Option]) -> dict[str, Any]:
    """Options by their names from a YAML or JSON file, as it writes them: `no` is a word, and typed by its option.

    Raises:
        `ValueError`: in one sentence, for a file that does not map options to values.
    """
    content, names = _content_of(path), _by_name(options)
    if not isinstance(content, dict):
        what = "is empty" if content in ("", None) else f"is a {'list' if isinstance(content, list) else 'text'}"
        raise ValueError(f"{str(path)!r} {what}, but must map options to values; `--help` lists the options.")
    values = {}
    for name, value in content.items():
        if name not in names:
            raise ValueError(f"{str(path)!r} has {name[:60]!r}, which is no option{_did_you_mean(name[:60], names)}")
        if value in ("", "~", "null"):
            if not names[name].may_be_none:
                raise ValueError(f"{str(path)!r} has no value for `{name}`: give one, or leave it out.")
        elif value == [] and names[name].is_list:  # which a flag can't say
            values[name] = []
        elif isinstance(value, list) and names[name].is_list and all(isinstance(part, str) for part in value):
            values[name] = names[name].read(value)
        elif isinstance(value, str):
            values[name] = names[name].read([value])
        else:
            raise ValueError(f"{str(path)!r} nests something in `{name}`, which must be {names[name].requirement}.")
    return _by_own_names(values, names)


def _content_of(path: Path) -> Any:
    """What a YAML or JSON file holds: dictionaries, lists and words."""
    text = read_text(path, MAX_FILE_BYTES)
    try:
        return yaml.load(text, _Words)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{str(path)!r} is neither YAML nor JSON: {error.problem}{where}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{str(path)!r} is neither YAML nor JSON: it has characters that are no text.") from error
    except RecursionError as error:
        raise ValueError(f"{str(path)!r} is nested too deep: it must map options to values.") from error


class _Words(yaml.BaseLoader):
    """Scalars stay the words that they are; an alias, which can stand for any amount, and a name used twice are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "an alias, which options have no use for", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        pairs = super().construct_scalar(node)  # of surrogates, as JSON writes what is beyond 16 bits
        return pairs.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in names:
                problem = f"{key.value!r} is there twice" if isinstance(key, yaml.ScalarNode) else "a name that is no word"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a regular file that is not larger; `ValueError` for any other."""
    try:
        if not path.is_file():
            raise ValueError(f"There is no file {str(path)!r}.")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{str(path)!r} can't be read: {error.strerror}.") from error
    if len(content) > max_bytes:
        raise ValueError(f"{str(path)!r} has more than {max_bytes:,} bytes: this is no such file.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8.") from error


def check_file_to_write(path: Path) -> None:
    """Raise `ValueError` unless there is a folder to write a file of that name into."""
    if len(os.fsencode(path.name)) > 255:
        raise ValueError(f"{path.name[:60]!r}… is longer than names of files can be.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into: make it first.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: name a file to write.")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{str(path)!r} can't be written: name a file that can be.")


def _print_help(options: Sequence[Option], command: str, description: str) -> None:
    """Print all options, and exit."""
    parser = argparse.ArgumentParser(command, description=description)
    parser.usage = f"{command} [options.yaml] [--name value ...]"
    for known in options:
        default = ", ".join(map(str, known.default)) if isinstance(known.default, list) else known.default
        default = "" if default in (None, MISSING) else f" Default: {default}."
        choices = f" One of {', '.join(known.choices)}." if known.choices else ""
        flags = (f"--{name}" for name in (known.name, *known.aliases))
        kind = (known.kind or str).__name__
        parser.add_argument(*flags, metavar=kind, help=f"{known.help}{choices}{default}".replace("%", "%%"))
    parser.parse_args(["--help"])


@contextmanager
def exit_with_message(
    command: str, *error_types: type[Exception], silent: bool = False, own_names: Mapping[str, str] = {}
) -> Iterator[None]:
    """
    End the program with the message of an error of these types instead of its traceback, or with neither.

    Arguments of the library that the message names are spelled as flags, as `own_names` says where they have other ones.
    """
    try:
        yield
    except error_types as error:
        message = in_one_line(redacted(spelled(error, as_flag(own_names))))
        raise SystemExit(1 if silent else f"{command}: {message}") from error


def in_one_line(message: str) -> str:
    """A message with spaces for its line breaks, and codes for what a terminal can't print."""
    line = " ".join(message.split("\n"))
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)


@contextmanager
def without_traceback(command: str) -> Iterator[None]:
    """End the program quietly when it is interrupted, and when nobody reads on what it prints."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{command}: interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes there
        raise SystemExit(1) from None
