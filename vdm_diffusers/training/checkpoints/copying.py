"""Copies in the memory of the CPU, which training leaves as they are."""

from typing import Any

import torch
from accelerate.utils import recursively_apply


@torch.no_grad()
def copy_to_cpu(state: Any) -> Any:
    """A copy of nested mappings, lists and tuples with its tensors on the CPU; waits for an accelerator once, at the end."""
    copied = recursively_apply(lambda tensor: tensor.to("cpu", non_blocking=True, copy=True), state)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copied
