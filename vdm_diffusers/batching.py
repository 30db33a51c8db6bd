"""How many images a model is given at once: as many as memory allows, in parts that are as equal as they can be."""

import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import ModelMixin
from diffusers.utils.torch_utils import is_compiled_module
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from .conditioning import Condition, collate, row, split_batch, split_condition, to_device
from .denoisers import predict, sample_shape
from .memory import activation_bytes, free_bytes, peak_bytes
from .precision import compute_dtype


SHARE = 0.5
"""Of the free memory. The rest is for what libraries take for their kernels, and for all that is not the model's."""

ENOUGH = {"cpu": 2**28}
ENOUGH_ELSEWHERE = 2**33
"""Bytes of a call, by device: with more it is no faster. CPUs were measured, see `docs/performance.md`, others were not."""

MOST_TO_EVALUATE = 512
"""Images, however small the denoiser: what an evaluation computes besides is not counted."""

UNKNOWN = 2**20
"""Bytes an image that stand for what can't be found out."""


class InBatches:
    """
    A function of images that is called with no more than so many at once; out of memory, with half as many from then on.

    Args:
        function (`Callable`): Of tensors and conditions that have a row an image, a tensor first; to a tensor that has, too.
        max_batch_size (`int`): Images a call, at most.
    """

    def __init__(self, function: Callable[..., Tensor], max_batch_size: int):
        self.function, self.max_batch_size = function, max_batch_size

    def __call__(self, *rows: Tensor | Condition) -> Tensor:
        number = len(rows[0])
        if number > self.max_batch_size:
            return torch.cat([self(*part) for part in _parts(rows, math.ceil(number / self.max_batch_size))])
        try:
            return self.function(*rows)
        except RuntimeError as error:
            if number == 1 or not should_reduce_batch_size(error):
                raise
        self.max_batch_size = number // 2
        clear_device_cache(garbage_collection=True)  # here, where the error no longer holds what was computed
        return self(*rows)


def _parts(rows: tuple[Tensor | Condition, ...], number: int) -> list[tuple[Tensor | Condition, ...]]:
    columns = (each.tensor_split(number) if isinstance(each, Tensor) else split_condition(each, number) for each in rows)
    return list(zip(*columns))


def denoiser_batch_size(unet: nn.Module, condition: Condition, device: torch.device) -> int:
    """How many samples a denoiser can be given at once, without gradients, with conditions like this one."""
    told = to_device(row(condition, 0), "meta")

    def call(twin: nn.Module) -> None:
        predict(twin, torch.zeros(1, *sample_shape(twin)), torch.zeros(1), told)

    return _batch_size(_peak_bytes(unet, call, tree_leaves(told)), device)


def decoder_batch_size(vae: ModelMixin, latents: Tensor) -> int:
    """How many of these latents, `(B, c, h, w)`, an autoencoder can decode at once."""
    if len(latents) == 1:
        return 1
    one = latents[:1].to("meta")
    return _batch_size(_peak_bytes(vae, lambda twin: twin.decode(one.to(compute_dtype(twin))), [one]), latents.device)


def evaluation_batch_size(
    unet: nn.Module, dataset: Dataset, device: str | torch.device, with_gradients: bool = False, vae: ModelMixin | None = None
) -> int:
    """
    How many images of a data set a denoiser can be evaluated on at once.

    Args:
        unet (`nn.Module`): The denoiser.
        dataset (`Dataset`): Items as [`ImageDataset`] has them.
        device (`str` or `torch.device`): Where it is evaluated.
        with_gradients (`bool`, defaults to `False`): Whether its derivative is computed too.
        vae ([`AutoencoderKL`], ..., *optional*): What encodes the images.
    """
    device = torch.device(device)
    images, condition = split_batch(collate([dataset[0]]))
    if with_gradients:
        numbers = [_batch_size(2 * activation_bytes(unet, 1), device)]  # what is kept, and its gradients
    else:
        numbers = [denoiser_batch_size(unet, condition, device)]
    if vae is not None:
        one = images.to("meta")
        numbers.append(_batch_size(_peak_bytes(vae, lambda twin: twin.encode(one.to(compute_dtype(twin))), [one]), device))
    return min(MOST_TO_EVALUATE, *numbers)


def _batch_size(bytes_an_image: int, device: torch.device) -> int:
    enough = ENOUGH.get(device.type, ENOUGH_ELSEWHERE)
    return max(1, int(min(enough, SHARE * free_bytes(device)) / max(bytes_an_image, 1)))


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple, int]] = WeakKeyDictionary()
"""What was found already: a pass of a deep model takes a second."""


def _peak_bytes(model: nn.Module, function: Callable[[nn.Module], Any], tensors: Sequence[Tensor]) -> int:
    """[`peak_bytes`] of a function of one image, with tensors of this shape; [`UNKNOWN`] if that fails."""
    model = model._orig_mod if is_compiled_module(model) else model
    known, key = _KNOWN.setdefault(model, {}), (compute_dtype(model), *(tensor.shape for tensor in tensors))
    if key not in known:
        try:
            known[key] = peak_bytes(model, function)
        except Exception:  # whatever a model of one's own can't do without numbers: it is called all the same
            known[key] = UNKNOWN
    return known[key]
