"""The samples that a training run draws and shows: one grid, of a class-conditional model with a block for every class.

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


Samples = list[PIL.Image.Image] | list[np.ndarray]
"""Pictures, or arrays `(*size, C)` in [0, 1] of what is no picture."""


def draw_samples(accelerator: Accelerator, vdm: VDM, config: TrainingConfig) -> Samples:
    """`num_samples` of them, of the classes of [`sample_labels`] if there are any, drawn by all processes, for all of them.

    Image i is drawn from the seed `seed + i`, whatever the number of processes.
    """
    pipeline = vdm.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    labels = sample_labels(vdm, config.num_samples)
    mine = range(config.num_samples)[accelerator.process_index :: accelerator.num_processes]
    pictures = []
    if mine:
        images = pipeline(
            len(mine),
            condition=None if labels is None else {LABELS: torch.tensor([labels[i] for i in mine])},
            num_inference_steps=config.num_inference_steps,
            generator=[torch.Generator().manual_seed(config.seed + i) for i in mine],
            output_type="np",
        ).images
        pictures = [to_picture(image) if image.ndim == 3 else image for image in images]
    drawn = dict(gather_object(list(zip(mine, pictures))))
    return [drawn[i] for i in range(config.num_samples)]


def save_samples(pictures: Samples, vdm: VDM, path: str | os.PathLike) -> None:
    """Write what [`draw_samples`] drew: pictures as a square grid, or every class under its label and name.

    Arrays are written as one, beside the path, its suffix replaced by `.npy`; those of a class-conditional model are of the
    classes of [`sample_labels`].
    """
    if isinstance(pictures[0], np.ndarray):
        np.save(Path(path).with_suffix(".npy"), np.stack(pictures))
        return
    labels = sample_labels(vdm, len(pictures))
    if labels is None:
        save_image_grid(pictures, path, columns=math.ceil(math.sqrt(len(pictures))))
        return
    names = captions(vdm.class_names, num_classes(vdm.unet))
    blocks: dict[str, list[PIL.Image.Image]] = {}
    for label, picture in sorted(zip(labels, pictures), key=lambda pair: pair[0]):
        blocks.setdefault(names[label], []).append(picture)
    save_labelled_grid(blocks, path)
