"""What a run goes on from: its state in the files of a checkpoint, as safetensors, JSON, and tensors alone of `torch.load`."""

import json
import pickle
import random
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint import CheckpointException
from torch.optim.lr_scheduler import LRScheduler

from ...guards.messages import Message
from ..placement.sharding import Replicated
from . import earlier as earlier_checkpoints
from .files import STATE, random_states


REFUSED = Message(
    "is refused: it holds something other than tensors and plain values, which could run anything. Go on from a checkpoint that"
    " you trust, or train the finished model on by {pretrained_model_name_or_path}."
)
OF_ANOTHER_MODEL = ("size mismatch", "missing key", "unexpected key", "parameter group")
"""What torch says, among other things, of weights and of an optimiser's state that don't fit."""


class Stateful(Protocol):
    """What has a state of plain values."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class RunState:
    """
    Everything that changes while a run trains.

    Args:
        placement ([`Replicated`]): Has the model, the optimiser, and the parameters of the moving average.
        lr_scheduler, average, history: Their other state is of plain values.
        stream ([`Stateful`], *optional*): Its state is that of all processes, which ask for it at once.
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

    def save(self, folder: Path) -> None:
        """Write all of it into a folder; call it on all processes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.placement.save(folder)
        state = {name: _plain(part.state_dict()) for name, part in self.parts.items()}
        if self.accelerator.is_main_process:
            (folder / STATE).write_text(json.dumps(state))
        (folder / random_states(self.accelerator.process_index)).write_text(json.dumps(_random_states(self.accelerator.device)))

    def load(self, folder: Path, with_random_states: bool) -> None:
        """
        Go on from what `save` wrote, or one of the first versions of this package; call it on all processes.

        Raises all kinds of errors for what nothing of the kind has written, but runs nothing that it holds.
        """
        self.placement.load(folder)
        is_earlier = not (folder / STATE).exists()
        state = earlier_checkpoints.read_state(folder, self.parts) if is_earlier else json.loads((folder / STATE).read_text())
        for name, part in self.parts.items():
            known = part.state_dict().keys() if name != "stream" else state[name].keys()
            part.load_state_dict({key: value for key, value in state[name].items() if key in known})
        if with_random_states:
            index = self.accelerator.process_index
            read = earlier_checkpoints.read_random_states if is_earlier else _read_random_states
            _set_random_states(read(folder, index), self.accelerator.device)


def unusable(error: Exception) -> str | Message:
    """What to say of a checkpoint that could not be loaded, after its name."""
    if isinstance(error, CheckpointException):  # of shards: what went wrong on each process
        error, _ = next(iter(error.failures.values()))
    if isinstance(error, pickle.UnpicklingError):
        return REFUSED
    message = str(error).strip() or type(error).__name__
    last = message.splitlines()[-1].strip()
    if any(words in message.lower() for words in OF_ANOTHER_MODEL):
        return f"is one of another model than these options make: {last}"
    return f"has a state that can't be gone on from: {type(error).__name__}: {last}"


def _plain(state: dict) -> dict:
    """Without the parameters of an average, which the placement has."""
    return {name: value for name, value in state.items() if name != "shadow_params"}


def _random_states(device: torch.device) -> dict:
    """Of Python, NumPy, and torch on the CPU and on this process's device."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().tolist(),
    }
    states["numpy"]["state"]["key"] = states["numpy"]["state"]["key"].tolist()
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state().tolist()
    return states


def _read_random_states(folder: Path, process_index: int) -> dict:
    return json.loads((folder / random_states(process_index)).read_text())


def _set_random_states(states: dict, device: torch.device) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type in states:
        torch.get_device_module(device).set_rng_state(torch.tensor(states[device.type], dtype=torch.uint8))
