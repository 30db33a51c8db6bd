"""Copies in the memory of the CPU, which training leaves as they are."""

from typing import Any

import torch
from accelerate.utils import recursively_apply


@torch.no_grad()
def copy_to_cpu(state: Any, device: torch.device) -> Any:
    """A copy of nested mappings, lists and tuples of tensors on a device, which is waited for once, at the end."""
    copied = recursively_apply(lambda tensor: tensor.to("cpu", non_blocking=True, copy=True), state)
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return copied
