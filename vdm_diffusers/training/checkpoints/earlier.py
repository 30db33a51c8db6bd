"""Checkpoints of the first versions, whose state is pickled by accelerate. Only tensors and plain values are read from them."""

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.utils import load
from torch import Tensor

from .files import EARLIER, random_states


def read_state(folder: Path, parts: Iterable[str]) -> dict[str, dict]:
    """The state of each of these parts; `UnpicklingError` for anything but tensors and plain values."""
    return {name: torch.load(folder / EARLIER[name], map_location="cpu", weights_only=True) for name in parts}


def read_average(folder: Path) -> list[Tensor]:
    """The parameters of the moving average."""
    return read_state(folder, ["moving_average"])["moving_average"]["shadow_params"]


def read_random_states(folder: Path, process_index: int) -> dict:
    """The random states of one process, in the form in which they are written now."""
    states = load(folder / random_states(process_index, earlier=True), weights_only=True)
    kind, key, position, has_gauss, gauss = states["numpy_random_seed"]
    numpy_state = {"bit_generator": kind, "state": {"key": key, "pos": position}, "has_gauss": has_gauss, "gauss": gauss}
    read = {"python": states["random_state"], "numpy": numpy_state, "torch": states["torch_manual_seed"].tolist()}
    if "torch_cuda_manual_seed" in states:
        mine = torch.cuda.current_device() if torch.cuda.is_available() else 0
        read["cuda"] = states["torch_cuda_manual_seed"][mine].tolist()
    return read
