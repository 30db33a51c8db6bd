"""Autoencoders of diffusers: images in [-1, 1] -> the latents that a latent VDM is a model of, and back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from diffusers import AutoModel, DiffusionPipeline, ModelMixin
from torch import Tensor

from .guards.foreign_models import check_model, weights_limited
from .guards.loading import reason_of
from .guards.messages import Message
from .precision import compute_dtype


AUTOENCODERS = ("vae", "vqvae")
"""What pipelines call it."""

BYTES_A_WEIGHT = 4
"""Of memory, in float32."""


def load_autoencoder(name_or_path: str | os.PathLike, cache_dir: str | None = None) -> ModelMixin:
    """An autoencoder of diffusers, by itself or as the `vae` or `vqvae` of a pipeline, frozen.

    Raises `ValueError` if there is none, or if it is not one of images.
    """
    reason = None
    for subfolder in (None, *AUTOENCODERS):
        try:
            check_model(Path(name_or_path, subfolder or ""))
            with weights_limited(psutil.virtual_memory().total // BYTES_A_WEIGHT):
                vae = AutoModel.from_pretrained(str(name_or_path), subfolder=subfolder, cache_dir=cache_dir)
        except TypeError:  # AutoModel's, where the index of a pipeline doesn't list the subfolder
            reason = "It is a pipeline without a `vae`."
            continue
        except OSError as error:  # where a file is missing, which may be in another place
            if reason is None or Path(name_or_path, subfolder).is_dir():
                reason = reason_of(error)
            continue
        except Exception as error:
            reason = reason_of(error)
            break
        if not hasattr(vae, "encode") or not hasattr(vae, "decode"):
            raise ValueError(
                Message("{vae_model_name_or_path} {!r} is a {}, no autoencoder.", str(name_or_path), type(vae).__name__)
            )
        return vae.requires_grad_(False).eval()
    raise ValueError(
        Message(
            "{vae_model_name_or_path} {!r} could not be loaded: {} Name an autoencoder, or a pipeline with one, on the Hub or"
            " as a folder.",
            *(str(name_or_path), reason),
        )
    )


def autoencoder_of(pipeline: DiffusionPipeline) -> ModelMixin | None:
    """The autoencoder whose latents a pipeline samples, if it has one."""
    return next((pipeline.components[name] for name in AUTOENCODERS if pipeline.components.get(name) is not None), None)


def pixels_a_latent(vae: ModelMixin) -> int:
    """How many times higher and wider images are than their latents."""
    return getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def scale_to_unit(images: Tensor, num_levels: int) -> Tensor:
    """Integer images in `[0, num_levels)` as what autoencoders take: float32, from -1 to 1."""
    return images.float() * (2 / (num_levels - 1)) - 1


@torch.no_grad()
def encode(vae: ModelMixin, x: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
    """Latents, `(B, c, h, w)`, shifted and scaled as the autoencoder's configuration says; a draw where it has a distribution.

    Args:
        vae ([`AutoencoderKL`], [`VQModel`], [`AutoencoderTiny`], [`AutoencoderDC`], ...): It is moved to the images' device.
        x (`Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
        generator (`torch.Generator` or a list of them, one an image, *optional*): Of the draw; defaults to the global one.
    """
    with _safe_precision(vae.to(x.device)):
        output = vae.encode(x.to(compute_dtype(vae)))
    if hasattr(output, "latent_dist"):
        latents = output.latent_dist.sample(generator)
    else:
        latents = output.latents if hasattr(output, "latents") else output.latent
    shift, scale = _shift_and_scale(vae, x.device)
    return (latents.to(x.dtype) - shift) * scale


@torch.no_grad()
def decode(vae: ModelMixin, latents: Tensor) -> Tensor:
    """Images in [-1, 1], `(B, C, H, W)`, of latents `(B, c, h, w)`, in their dtype."""
    shift, scale = _shift_and_scale(vae, latents.device)
    with _safe_precision(vae):
        images = vae.decode((latents / scale + shift).to(compute_dtype(vae)), return_dict=False)[0]
    return images.to(latents.dtype).clamp(-1, 1)


@contextmanager
def _safe_precision(vae: ModelMixin) -> Iterator[None]:
    """Without autocast, and in float32 while it lasts where the autoencoder overflows in float16 (`force_upcast`)."""
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast")
    try:
        if upcast:
            vae.to(torch.float32)
        with torch.autocast(vae.device.type, enabled=False):
            yield
    finally:
        if upcast:
            vae.to(torch.float16)


def have_same_latents(vae: ModelMixin, other: ModelMixin) -> bool:
    """Whether two autoencoders have the same weights, and shift and scale latents alike."""
    options = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    weights, others = vae.state_dict(), other.state_dict()
    return (
        type(vae) is type(other)
        and all(vae.config.get(name) == other.config.get(name) for name in options)
        and weights.keys() == others.keys()
        and all(torch.equal(weight.cpu(), others[name].cpu()) for name, weight in weights.items())
    )


def _shift_and_scale(vae: ModelMixin, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
    """What latents are normalised by: `latents_mean` and `latents_std` of every channel, or one number for all."""
    scale = vae.config.get("scaling_factor") or 1.0
    if vae.config.get("latents_mean") is None:
        return vae.config.get("shift_factor") or 0.0, scale
    mean, std = (torch.tensor(vae.config[name], device=device)[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, scale / std
