"""Memory: what a device has left, and what a model takes for one image, which a pass without numbers tells."""

import copy
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .conditioning import trial_condition
from .denoisers import predict, sample_shape
from .precision import compute_dtype


CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def free_bytes(device: torch.device) -> float:
    """What this process can still allocate, of a CPU its share; infinite on devices that don't tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of `torchrun` and `accelerate launch`
        return min(psutil.virtual_memory().available, _left_to_container()) / processes
    return math.inf


def _left_to_container() -> float:
    """Its limit, less what is used and not a cache of files; infinite without one."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        details = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return math.inf
    return math.inf if limit == "max" else max(0, int(limit) - int(used) + int(details["inactive_file"]))


def peak_bytes(model: ModelMixin, function: Callable[[nn.Module], Any]) -> int:
    """
    What `function(model)` allocates at most at a time, without gradients, by calling it with a twin on the meta device.

    Attention counts as the formula, with all scores in memory, which fused kernels do without.
    """
    config = dict(model.config) | {"_use_default_values": []}  # what is listed there `from_config` would leave out
    with torch.device("meta"), torch.no_grad():
        twin = nn.Module.to(type(model).from_config(config), compute_dtype(model)).eval()  # diffusers' own `to` warns
        with _Allocations(twin) as allocations:
            function(twin)
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, but for a model's own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address: int, num_bytes: int) -> None:
        self.known.discard(address)
        self.now -= num_bytes


def activation_bytes(unet: nn.Module, batch_size: int) -> int:
    """What autograd keeps at most of a denoiser's forward pass, in float32, by a pass of one image without numbers."""
    unet = copy.deepcopy(unet).to("meta").train()
    parameters = {tensor.untyped_storage()._cdata for tensor in (*unet.parameters(), *unet.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    z_t, condition = torch.zeros(1, *sample_shape(unet), device="meta"), trial_condition(unet, "meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = predict(unet, z_t, torch.zeros(1, device="meta"), condition)
    del output
    return batch_size * sum(kept.values())
