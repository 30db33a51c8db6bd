"""Saved files that are not what they should be: whatever the loaders of diffusers make of them becomes one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(what: str) -> Iterator[None]:
    """
    For the loading of files that anybody may have written.

    Raises `OSError` for files that are missing or can't be read, `ValueError` for files that are something else, each with one
    sentence that begins with `what`.
    """
    try:
        yield
    except OSError as error:
        raise OSError(_sentence(what, error)) from error
    except Exception as error:
        raise ValueError(_sentence(what, error)) from error


def _sentence(what: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if "could not be loaded:" in reason else f"{what} could not be loaded: {reason}"


class DataError(ValueError):
    """Images can't be read on, though they were checked; the message names the one that it fails at."""

    def __init__(self, message: str):
        last_line = message.strip().splitlines()[-1]  # a worker's comes after its traceback
        super().__init__(last_line.split(f"{type(self).__name__}: ")[-1])
