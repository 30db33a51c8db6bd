"""Float32 at least: what must not be computed in half precision, whatever dtype a model is moved to or loaded in."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if that is what it has."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def highest_precision(device: torch.device) -> torch.dtype:
    """Float64, except on devices that lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


class FullPrecisionModule(nn.Module):
    """A module whose parameters and buffers are moved to devices, but never to less than float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FullPrecisionModule":
        def fn_but_at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            exact = moved.dtype == tensor.dtype or not is_half(moved.dtype)
            return moved if exact else at_least_float32(tensor).to(moved.device)

        return super()._apply(fn_but_at_least_float32, recurse)


def is_half(dtype: torch.dtype) -> bool:
    """Whether it is a floating-point type of less than float32."""
    return dtype.is_floating_point and dtype.itemsize < 4


def in_full_precision(method: Callable) -> Callable:
    """A method of a tensor that sees it in float32 at least and computes without autocast."""

    @wraps(method)
    def without_autocast(self, t: Tensor):
        t = at_least_float32(t)
        with torch.autocast(t.device.type, enabled=False):
            return method(self, t)

    return without_autocast


def compute_dtype(module: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """What a denoiser or an autoencoder takes: the dtype of its parameters, or what it computes in if they are stored in less.

    `otherwise` for a module without parameters.
    """
    parameter = next(module.parameters(), None)
    if parameter is None:
        return otherwise
    if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
        return parameter.dtype
    return getattr(module, "dtype", torch.float32)
