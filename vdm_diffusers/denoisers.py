"""Denoisers, whatever their class: how one is called, the shape of its samples, and what it makes of one."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .conditioning import Condition, trial_condition
from .precision import compute_dtype


def predict(unet: nn.Module, sample: Tensor, timestep: Tensor, condition: Condition | None = None) -> Tensor:
    """A denoiser's output for samples `(B, C, *size)` at timesteps `(B,)`, in their dtype; it computes in its own.

    All keywords are given by name, for denoisers differ in their order. It may have further channels, of learned variances.
    """
    sample_of_its_dtype = sample.to(compute_dtype(unet, sample.dtype))
    return unet(sample_of_its_dtype, timestep=timestep, return_dict=False, **(condition or {}))[0].to(sample.dtype)


DENOISERS = ("unet", "transformer")
"""What pipelines call it."""


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """What a pipeline calls its denoiser; `ValueError` if it has none, or one that is told of another image in its sample."""
    names = [name for name in DENOISERS if pipeline.components.get(name) is not None]
    if not names:
        raise ValueError(f"{type(pipeline).__name__} has no {' or '.join(f'`{name}`' for name in DENOISERS)}: no denoiser.")
    config = getattr(getattr(pipeline, names[0]), "config", {})
    taken, made = config.get("in_channels"), config.get("out_channels")
    if None not in (taken, made) and made not in (taken, 2 * taken):
        raise ValueError(
            f"The denoiser of {type(pipeline).__name__} takes {taken} channels and makes {made}, as one that is told of another"
            " image beside its sample, for inpainting or super-resolution: give one of the sample alone."
        )
    return names[0]


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The denoiser of a pipeline, as [`denoiser_name`] finds it."""
    return getattr(pipeline, denoiser_name(pipeline))


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


@torch.no_grad()
def check_denoiser(unet: ModelMixin, shape: Sequence[int]) -> None:
    """Raise an error unless a denoiser makes a sample `(C, *size)` of one, or two with variances; nothing is computed."""
    config = dict(unet.config) | {"_use_default_values": []}  # what is listed there `from_config` would leave out
    with torch.device("meta"):
        twin = type(unet).from_config(config).eval()
        output = predict(twin, torch.zeros(1, *shape), torch.zeros(1), trial_condition(unet, "meta"))
    if output.shape[0] != 1 or output.shape[1] not in (shape[0], 2 * shape[0]) or tuple(output.shape[2:]) != tuple(shape[1:]):
        raise ValueError(f"Its denoiser makes {tuple(output.shape[1:])} of {tuple(shape)}.")
