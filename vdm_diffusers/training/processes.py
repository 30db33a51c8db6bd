"""What the processes of a run do one for all."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..guards.messages import message_of


def on_main_process(accelerator: Accelerator, function: Callable, *arguments: object) -> Any:
    """What a function returns on the main process, on all of them; its `ValueError` ends them all, and that process says it."""
    result, message = None, None
    if accelerator.is_main_process:
        try:
            result = function(*arguments)
        except ValueError as error:
            message = message_of(error)
    result, message = broadcast_object_list([result, message])
    if message is not None:
        raise ValueError(message) if accelerator.is_main_process else SystemExit(1)
    return result
