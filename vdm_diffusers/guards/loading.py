"""Files that are not what they should be: whatever the libraries that read them raise becomes one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import get_worker_info

from .messages import Message, from_json, message_of, to_json
from .secrecy import redacted


MAX_LENGTH = 300
"""Characters of a reason: some libraries quote a whole damaged file."""


@contextmanager
def refused_as(what: str | Message, remedy: str | Message = "") -> Iterator[None]:
    """Turn any error into a `ValueError` of one sentence: `what`, the reason, and the remedy."""
    try:
        yield
    except Exception as error:
        raise ValueError(Message("{}: {} {}" if remedy else "{}: {}", what, reason_of(error), remedy)) from error


@contextmanager
def loading(what: str) -> Iterator[None]:
    """
    [`refused_as`] for `from_pretrained`: `what` could not be loaded.

    `OSError`s, of files that are missing or can't be read, stay such. What a part of `what` was refused for is said as it is.
    """
    try:
        with refused_as(f"{what} could not be loaded"):
            yield
    except ValueError as refusal:
        cause = refusal.__cause__
        message = reason_of(cause if "could not be loaded:" in str(cause) else refusal)
        raise (OSError if isinstance(cause, OSError) else ValueError)(message) from cause


def reason_of(error: BaseException) -> str | Message:
    """The first line of what an error says, as a sentence, without any secret; its [`Message`], if it carries one."""
    if isinstance(message := message_of(error), Message):
        return message
    name, lines = type(error).__name__, redacted(str(error)).strip().splitlines()
    text = lines[0].strip() if lines else name
    text = f"{name}: {text}" if isinstance(error, KeyError) else text
    text = text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
    return text if text.endswith((".", "!", "?", "…")) else f"{text.rstrip(':,;')}."


def root_cause(error: BaseException) -> BaseException:
    """The error that led to this one, by way of others or at once."""
    return error if error.__cause__ is None else root_cause(error.__cause__)


class DataError(ValueError):
    """
    Images can't be read on, though they were checked; the message names the one that it fails at.

    Of an error in a worker torch hands on the traceback alone, as the message of another. It ends in JSON there.
    """

    def __init__(self, message: str | Message):
        if isinstance(message, str) and "\n" in message:
            message = from_json(message.strip().splitlines()[-1].split(f"{type(self).__name__}: ", 1)[-1])
        super().__init__(message)

    def __str__(self) -> str:
        return super().__str__() if get_worker_info() is None else to_json(self)
