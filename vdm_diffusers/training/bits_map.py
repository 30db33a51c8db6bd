"""The picture of where the bits of held-out images go, which a run leaves."""

from pathlib import Path

import torch

from ..conditioning import collate, split_batch, to_device
from ..data.image_data import ImageData
from ..data.texts import with_encoded_captions
from ..figures import save_bits_maps
from ..likelihood.bits_map import bits_per_pixel
from ..units import BITS_PER_DIM
from ..vdm import VDM


NUM_IMAGES, NUM_REPEATS = 6, 64


def save_bits_map(vdm: VDM, data: ImageData, seed: int, path: Path) -> None:
    """Plot the first held-out images with the bits of each pixel; nothing of latents, and of what is not grey or in colour."""
    if vdm.unit is not BITS_PER_DIM or len(data.shape) != 3 or data.shape[0] not in (1, 3):
        return
    dataset = with_encoded_captions(data.validation, vdm.prompt_encoder, vdm.unet)
    images, condition = split_batch(collate([dataset[index] for index in range(min(NUM_IMAGES, len(dataset)))]))
    device = vdm.noise_schedule.device
    bits = bits_per_pixel(
        vdm,
        images.to(device),
        to_device(condition, device),
        generator=torch.Generator(device).manual_seed(seed),
        num_repeats=NUM_REPEATS,
    )
    save_bits_maps(images / (data.num_levels - 1), bits, path)
