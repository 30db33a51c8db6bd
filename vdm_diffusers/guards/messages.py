"""Messages that name arguments, and spell them for whoever reads: `resize` in Python, `--resize` on a command line."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any


Spelling = Callable[[str, str], str]
"""How an argument is spelled: its name and, or else empty, a value to give it."""


@dataclass(frozen=True)
class Argument:
    """An argument by its name, for a [`Message`] that is told which one it names."""

    name: str


class Message:
    """
    A text in the format of `str.format`. Braces with a name hold an argument, the others the values in their order.

        raise ValueError(Message("{center_crop} needs {resize}, which says how large the square is."))
        raise ValueError(Message("{resize} is {}, but must be at most {:,}.", resize, MAX_SIDE))
        raise ValueError(Message("{} has 16 bits a channel: {convert:RGB} takes 8 of them.", path))

    Values may be messages, exceptions and `Argument`s too, which are spelled like the whole. Any exception can carry a message,
    through pickling too; `str` of either spells `` `resize` `` and `` `convert='RGB'` ``.
    """

    def __init__(self, text: str, *values: Any):
        self.text, self.values = text, values

    def spelled(self, spelling: Spelling) -> str:
        """The text with its arguments spelled so."""
        return _Speller(spelling).vformat(self.text, self.values, {})

    def __str__(self) -> str:
        return self.spelled(as_keyword)


def refuse_if(is_wrong: bool, text: str, *values: Any) -> None:
    """Raise `ValueError` with this [`Message`] if something is wrong."""
    if is_wrong:
        raise ValueError(Message(text, *values))


def message_of(error: BaseException) -> Message | str:
    """The [`Message`] that an exception carries, or else what it says."""
    return error.args[0] if error.args and isinstance(error.args[0], Message) else str(error)


def spelled(error: BaseException, spelling: Spelling) -> str:
    """What an exception says, with arguments spelled so if it carries a [`Message`]."""
    message = message_of(error)
    return message.spelled(spelling) if isinstance(message, Message) else message


def as_keyword(name: str, value: str = "") -> str:
    """An argument as Python has it."""
    shown = value if value.lstrip("-").isdigit() else repr(value)
    return f"`{name}={shown}`" if value else f"`{name}`"


def as_flag(own_names: Mapping[str, str] = {}) -> Spelling:
    """Arguments as a command line has them; `own_names` say how the command calls those that are none of its options."""

    def spelling(name: str, value: str = "") -> str:
        return own_names.get(name) or (f"`--{name} {value}`" if value else f"`--{name}`")

    return spelling


class _Speller(Formatter):
    """Formats messages, and what is in them, by one spelling."""

    def __init__(self, spelling: Spelling):
        self.spelling = spelling

    def get_value(self, key: int | str, args: tuple, kwargs: dict) -> Any:
        return args[key] if isinstance(key, int) else Argument(key)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Argument):
            return self.spelling(value.name, format_spec)
        if isinstance(value, Message):
            return value.spelled(self.spelling)
        if isinstance(value, BaseException):
            return spelled(value, self.spelling)
        return format(value, format_spec)


def to_json(error: BaseException) -> str:
    """What an exception says, for where it has to be kept as a string; [`from_json`] has its [`Message`] again, if any."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseException):
            value = message_of(value)
        return {"text": value.text, "values": [plain(part) for part in value.values]} if isinstance(value, Message) else value

    return json.dumps(plain(error))


def from_json(content: str) -> Message | str:
    """What an exception said."""
    return json.loads(content, object_hook=lambda message: Message(message["text"], *message["values"]))
