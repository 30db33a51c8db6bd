"""Batches of images as feature extractors take them: those of a data set, and those that a pipeline makes."""

import inspect
from collections.abc import Iterator

import torch
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..conditioning import collate, num_classes
from ..guards.loading import refused_as


def real_images(images: Dataset, batch_size: int) -> Iterator[Tensor]:
    """Batches `(B, 3, H, W)` of uint8."""
    for batch in DataLoader(images, batch_size, collate_fn=collate):
        yield rgb(batch["images"])


def generated_images(
    pipeline: DiffusionPipeline, num_images: int, num_inference_steps: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Batches `(B, 3, H, W)` of uint8, of a class-conditional pipeline all classes in turn; they depend on the batch size."""
    set_seed(seed)  # some pipelines don't pass their generator on
    generator = torch.Generator().manual_seed(seed)
    classes = _num_classes(pipeline)
    for start in range(0, num_images, batch_size):
        indices = range(start, min(start + batch_size, num_images))
        call = {"batch_size": len(indices)} if classes is None else {"class_labels": [index % classes for index in indices]}
        with refused_as("The pipeline could not make images"):
            output = pipeline(generator=generator, num_inference_steps=num_inference_steps, output_type="np", **call)
        yield rgb(torch.from_numpy(output.images).mul(255).round().byte().permute(0, 3, 1, 2))


def check_makes_images(pipeline: DiffusionPipeline) -> None:
    """Raise `ValueError` unless [`generated_images`] can call a pipeline."""
    parameters = inspect.signature(pipeline.__call__).parameters
    if "num_inference_steps" not in parameters or not {"batch_size", "class_labels"} & parameters.keys():
        raise ValueError(f"{type(pipeline).__name__} makes no images from noise alone or from classes: give one that does.")


def _num_classes(pipeline: DiffusionPipeline) -> int | None:
    """The classes of a pipeline that is called with their labels."""
    if "class_labels" not in inspect.signature(pipeline.__call__).parameters:
        return None
    return num_classes(pipeline.components.get("unet") or pipeline.components.get("transformer"))


def rgb(images: Tensor) -> Tensor:
    """Grey images repeated as RGB."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
