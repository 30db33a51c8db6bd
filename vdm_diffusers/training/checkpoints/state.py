"""The state of a run in the files of a checkpoint: safetensors, JSON, and tensors that `torch.load` reads safely."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.lr_scheduler import LRScheduler

from ...guards.messages import Message
from ..placement.whole import Replicated
from . import earlier
from .files import STATE, random_states


REFUSED = Message(
    "is refused: it holds something other than tensors and plain values, which could run anything. Go on from a checkpoint that"
    " you trust, or train the finished model on by {pretrained_model_name_or_path}."
)
OF_ANOTHER_MODEL = ("size mismatch", "missing key", "unexpected key", "parameter group")
"""What torch's messages contain when weights or an optimiser's state don't fit the model."""


class RunState:
    """
    Everything that changes while a run trains.

    Args:
        placement ([`Replicated`]): Saves and loads the model, the optimiser, and the parameters of the moving average.
        lr_scheduler, average, history: Saved here but for these parameters.
        stream ([`Stateful`], *optional*): Its state covers all processes, so that all must ask for it together.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        placement: Replicated,
        lr_scheduler: LRScheduler,
        average: EMAModel,
        history: Stateful,
        stream: Stateful | None = None,
    ):
        self.accelerator, self.placement = accelerator, placement
        self.parts = {"lr_scheduler": lr_scheduler, "moving_average": average, "history": history}
        self.parts |= {"gradient_scaler": accelerator.scaler} if accelerator.scaler is not None else {}
        self.parts |= {"stream": stream} if stream is not None else {}

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """
        Take all of it as it is. Call it on all processes, and on the main one what it returns, which writes into the folder.

        That may take place at any later time and in another thread, since it needs no other process.
        """
        state = {name: _plain(part.state_dict()) for name, part in self.parts.items()}
        draws = gather_object([json.dumps(_random_states(self.accelerator.device))])
        texts = {STATE: json.dumps(state)} | {random_states(index): text for index, text in enumerate(draws)}
        write_weights = self.placement.snapshot(folder)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_weights()
            for name, text in texts.items():
                (folder / name).write_text(text)

        return write

    def load(self, folder: Path, with_random_states: bool) -> None:
        """
        Read what was written of it, in this version or an earlier one. Call it on all processes.

        Files that were written otherwise raise errors of any kind, but nothing in them is run.
        """
        self.placement.load(folder)
        is_earlier = not (folder / STATE).exists()
        state = earlier.read_state(folder, self.parts) if is_earlier else _read(folder / STATE)
        for name, part in self.parts.items():
            known = _plain(part.state_dict()) if name != "stream" else state[name]
            part.load_state_dict({key: value for key, value in state[name].items() if key in known})
        if with_random_states:
            index = self.accelerator.process_index
            states = earlier.read_random_states(folder, index) if is_earlier else _read(folder / random_states(index))
            _set_random_states(states, self.accelerator.device)


def unusable(error: Exception) -> str | Message:
    """Why a checkpoint could not be loaded, as the rest of a sentence that begins with its name."""
    if isinstance(error, pickle.UnpicklingError):
        return REFUSED
    message = str(error).strip() or type(error).__name__
    last = message.splitlines()[-1].strip()
    if any(words in message.lower() for words in OF_ANOTHER_MODEL):
        return f"is one of another model than these options make: {last}"
    return f"has a state that can't be gone on from: {type(error).__name__}: {last}"


def _plain(state: dict) -> dict:
    """A state without the parameters of an average, which the placement saves."""
    return {name: value for name, value in state.items() if name != "shadow_params"}


def _random_states(device: torch.device) -> dict:
    """The states of the generators of Python, NumPy, and torch on the CPU and on this process's device."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().tolist(),
    }
    states["numpy"]["state"]["key"] = states["numpy"]["state"]["key"].tolist()
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state().tolist()
    return states


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _set_random_states(states: dict, device: torch.device) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type in states:
        torch.get_device_module(device).set_rng_state(torch.tensor(states[device.type], dtype=torch.uint8))
