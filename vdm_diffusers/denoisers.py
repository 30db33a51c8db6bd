"""What a denoiser tells of itself: how it is called, and the shape of a sample."""

import inspect

from torch import nn
from torch.nn.modules.conv import _ConvNd


def check_denoiser(unet: nn.Module) -> None:
    """Raise `ValueError` for a denoiser that can't be called as `unet(sample, timestep)`, such as one of texts."""
    parameters = list(inspect.signature(unet.forward).parameters.values())[2:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [f"`{p.name}`" for p in parameters if p.kind in kinds and p.default is p.empty]
    if needed:
        raise ValueError(
            f"{type(unet).__name__} needs {', '.join(needed)}, but a denoiser here is told a timestep and, at most, a class."
        )


def sample_shape(unet: nn.Module) -> tuple[int, ...] | None:
    """The shape of a sample without its batch, `(C, *size)`; `None` if the denoiser's configuration doesn't say.

    A `sample_size` that is one number counts for every dimension that the denoiser convolves over.
    """
    config = getattr(unet, "config", {})
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        return None
    return (channels, *(size if isinstance(size, (list, tuple)) else [size] * _num_spatial_dims(unet)))


def _num_spatial_dims(unet: nn.Module) -> int:
    """Those of its first convolution; 2 if it has none."""
    return next((len(module.kernel_size) for module in unet.modules() if isinstance(module, _ConvNd)), 2)
