"""The samples that a training run draws and shows: one grid, with a block for every class or prompt if there are any.

Samples that are no images are written as an array.
"""

import math
import os
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..class_names import captions
from ..conditioning import LABELS, num_classes
from ..figures import save_image_grid, save_labelled_grid, to_picture
from ..vdm import VDM
from .config import TrainingConfig


def sample_labels(vdm: VDM, num_samples: int) -> list[int] | None:
    """The classes to sample: all in turn, or, if there are fewer samples than classes, some that are spread evenly."""
    number = num_classes(vdm.unet)
    if number is None:
        return None
    return [i % number if num_samples >= number else i * number // num_samples for i in range(num_samples)]


def sample_prompts(config: TrainingConfig) -> list[str] | None:
    """The prompt of each sample, those of the options in turns; `None` if there are none."""
    prompts = config.validation_prompts
    return None if prompts is None else [prompts[i % len(prompts)] for i in range(config.num_samples)]


Samples = list[PIL.Image.Image] | list[np.ndarray]
"""Pictures, or arrays `(*size, C)` in [0, 1] of what is no picture."""


def draw_samples(accelerator: Accelerator, vdm: VDM, config: TrainingConfig) -> Samples:
    """
    `num_samples` of them, of the classes of [`sample_labels`] and for the [`sample_prompts`] if there are any, drawn by all
    processes, for all of them.

    Image i is drawn from the seed `seed + i`, whatever the number of processes.
    """
    pipeline = vdm.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    labels, prompts = sample_labels(vdm, config.num_samples), sample_prompts(config)
    mine = range(config.num_samples)[accelerator.process_index :: accelerator.num_processes]
    pictures = []
    if mine:
        images = pipeline(
            len(mine),
            condition=None if labels is None else {LABELS: torch.tensor([labels[i] for i in mine])},
            prompt=None if prompts is None else [prompts[i] for i in mine],
            guidance_scale=config.guidance_scale if labels or prompts else 1.0,
            num_inference_steps=config.num_inference_steps,
            generator=[torch.Generator().manual_seed(config.seed + i) for i in mine],
            output_type="np",
        ).images
        pictures = [to_picture(image) if image.ndim == 3 else image for image in images]
    drawn = dict(gather_object(list(zip(mine, pictures))))
    return [drawn[i] for i in range(config.num_samples)]


def save_samples(pictures: Samples, vdm: VDM, path: str | os.PathLike, prompts: list[str] | None = None) -> None:
    """Write what [`draw_samples`] drew: pictures as a square grid, or every class under its label and name, or every prompt.

    Arrays are written as one, beside the path, its suffix replaced by `.npy`; those of a class-conditional model are of the
    classes of [`sample_labels`].
    """
    if isinstance(pictures[0], np.ndarray):
        np.save(Path(path).with_suffix(".npy"), np.stack(pictures))
        return
    titles = prompts or _classes(vdm, len(pictures))
    if titles is None:
        save_image_grid(pictures, path, columns=math.ceil(math.sqrt(len(pictures))))
        return
    blocks: dict[str, list[PIL.Image.Image]] = {}
    for title, picture in zip(titles, pictures):
        blocks.setdefault(title, []).append(picture)
    save_labelled_grid(blocks, path)


def _classes(vdm: VDM, number: int) -> list[str] | None:
    """The class of each of so many samples, by its label and name; `None` if there are none."""
    labels = sample_labels(vdm, number)
    if labels is None:
        return None
    names = captions(vdm.class_names, num_classes(vdm.unet))
    return [names[label] for label in labels]
