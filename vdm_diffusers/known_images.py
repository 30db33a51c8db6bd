"""Known images: sampling that begins at images, or that keeps what a mask says is known (img2img and inpainting)."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import SchedulerMixin
from torch import Tensor
from torch.nn.functional import interpolate

from . import gaussian
from .scheduling_vdm import VDMScheduler


Masks = PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | Tensor


@dataclass
class KnownImages:
    """
    Images that are diffused to wherever a scheduler is, each time with the same noise.

    Args:
        x (`Tensor` of shape `(B, C, *size)`): The images, scaled, or their latents.
        noise (`Tensor` of shape `(B, C, *size)`): Standard normal.
        mask (`Tensor` of shape `(B, 1, *size)`, *optional*): 1 where they are to be replaced, 0 where they are kept.
    """

    x: Tensor
    noise: Tensor
    mask: Tensor | None = None

    def at(self, scheduler: SchedulerMixin, timestep: Tensor | None) -> Tensor:
        """`q(z_t|x)` at a timestep, as the scheduler scales its latents; where its steps end for `None`."""
        if timestep is not None:
            return scheduler.add_noise(self.x, self.noise, timestep.reshape(1))
        return self.x * (gaussian.alpha(scheduler.gamma_0).item() if isinstance(scheduler, VDMScheduler) else 1)

    def kept(self, latents: Tensor, scheduler: SchedulerMixin, timestep: Tensor | None) -> Tensor:
        """Latents of that timestep with what is known in its place."""
        return latents if self.mask is None else torch.where(self.mask > 0, latents, self.at(scheduler, timestep))


def last_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, strength: float) -> Tensor:
    """
    The share `strength` of a scheduler's timesteps, the last, with which it is set to begin.

    Raises `ValueError` if that is less than a step.
    """
    number = int(num_inference_steps * strength)
    if number == 0:
        raise ValueError(f"`strength` {strength} of {num_inference_steps} steps is less than one: raise either.")
    first = (num_inference_steps - number) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def as_mask(mask_image: Masks, number: int, size: tuple[int, ...]) -> Tensor:
    """
    A mask as callers give it, as 0 and 1 of shape `(B, 1, *size)`: pictures, white where something is to be drawn, or numbers
    in [0, 1], `(*size)`, `(B, *size)`, or `(B, 1, *size)`.

    Raises `ValueError` for another shape, another number than one or that of the images, and values beyond.
    """
    if isinstance(mask_image, PIL.Image.Image):
        mask_image = [mask_image]
    if isinstance(mask_image, list):
        mask_image = np.stack([np.asarray(picture.convert("L")) / 255 for picture in mask_image])
    mask, num_dims = torch.as_tensor(np.asarray(mask_image) if not isinstance(mask_image, Tensor) else mask_image), len(size)
    mask = mask.float().cpu()
    mask = mask[None] if mask.ndim == num_dims else mask
    mask = mask[:, None] if mask.ndim == num_dims + 1 else mask
    if mask.ndim != num_dims + 2 or mask.shape[1] != 1 or len(mask) not in (1, number):
        raise ValueError(f"`mask_image` has the shape {tuple(mask.shape)}, but must be one for all images, or one for each.")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("`mask_image` must have values from 0, which is kept, to 1, which is drawn anew.")
    if tuple(mask.shape[2:]) != tuple(size):
        mask = interpolate(mask, size=tuple(size), mode="nearest")  # as latents are smaller than their images
    return (mask >= 0.5).float().expand(number, *mask.shape[1:])
