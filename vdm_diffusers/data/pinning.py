"""Page-locked memory, from which a batch is copied to an accelerator while both go on working."""

import torch


def can_be_pinned(device: torch.device) -> bool:
    """Whether copies to this device can come from such memory: not on a CPU, nor, in PyTorch, on Apple's GPUs."""
    return device.type not in ("cpu", "mps")
