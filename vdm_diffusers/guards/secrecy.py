"""What this process knows and must not say: access tokens, kept out of messages, logs and whatever is sent."""

import json
import logging
import mmap
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import get_token

from .messages import Argument, Message


REDACTED = "[secret]"
SHORTEST, SHORTEST_OF_THE_ENVIRONMENT = 4, 8
"""Characters of a secret: messages could not do without shorter words, be they tokens."""
OF_THE_ENVIRONMENT = re.compile(r".*_(TOKEN|API_KEY|SECRET|PASSWORD)")
OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{30,}")

_told: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on [`redacted`] leaves this value out."""
    _told.add(value)


def check_secret(name: str, value: str) -> None:
    """`ValueError`, without the value, unless it can be sent as a token."""
    if not value or not all("!" <= character <= "~" for character in value):
        raise ValueError(
            Message(
                "{} is no token: it must have letters, digits and signs of ASCII alone, but is empty or has a space, a line"
                " break or another character. Copy it again from https://huggingface.co/settings/tokens.",
                Argument(name),
            )
        )


def redacted(text: str) -> str:
    """The text without any secret, however it is escaped."""
    for form in sorted(_forms(), key=len, reverse=True):
        text = text.replace(form, REDACTED)
    return OF_THE_HUB.sub(REDACTED, text)


def files_with_secrets(folder: Path) -> list[Path]:
    """Those that must not be sent, whoever wrote them there."""
    forms = [form.encode() for form in _forms()]
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _holds(path, forms)]


@contextmanager
def guarded_output() -> Iterator[None]:
    """While it lasts, arguments that trackers store, log records, warnings and tracebacks have no secret in them."""
    arguments, make_record, format_warning = sys.argv, logging.getLogRecordFactory(), warnings.formatwarning

    def make_redacted_record(*args, **kwargs) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        message = record.getMessage()
        if (text := redacted(message)) != message:
            record.msg, record.args = text, None
        if record.exc_info and record.exc_info[1]:
            record.exc_text = redacted("".join(traceback.format_exception(record.exc_info[1]))).rstrip()
        return record

    logging.setLogRecordFactory(make_redacted_record)
    warnings.formatwarning = lambda *args, **kwargs: redacted(format_warning(*args, **kwargs))
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if redacted(text) == text:
            raise
        sys.stderr.write(redacted(text))
        raise SystemExit(1) from None
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning
        sys.argv = arguments


def forget_arguments() -> None:
    """Leave the secrets out of `sys.argv`, which trackers store."""
    sys.argv = [redacted(argument) for argument in sys.argv]


def _forms() -> set[str]:
    """Every secret that is known, as it is and as messages, addresses and files write it."""
    given = {value for name, value in os.environ.items() if OF_THE_ENVIRONMENT.fullmatch(name)}
    given = {value for value in given if len(value) >= SHORTEST_OF_THE_ENVIRONMENT}
    secrets = {secret for value in {*_told, *given, get_token() or ""} for secret in (value, *value.split())}
    escapes = (
        str,
        quote,
        lambda secret: quote(secret, safe=""),
        lambda secret: json.dumps(secret)[1:-1],
        lambda secret: repr(secret)[1:-1],
    )
    return {escape(secret) for secret in secrets if len(secret) >= SHORTEST for escape in escapes}


def _holds(path: Path, forms: list[bytes]) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(form) >= 0 for form in forms)
