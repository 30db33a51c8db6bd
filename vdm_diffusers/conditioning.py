"""What a denoiser is told beside its noise level: nothing or a class, of which the last means none."""

import torch
from torch import Tensor, nn


def num_classes(denoiser: nn.Module) -> int | None:
    """How many classes a denoiser knows, `None` if it is unconditional; the label after the last of them means none."""
    config = getattr(denoiser, "config", {})
    if config.get("num_class_embeds"):
        return config["num_class_embeds"] - 1
    return config.get("num_embeds_ada_norm")


def check_class_labels(class_labels: Tensor | None, batch_size: int, unet: nn.Module) -> None:
    """
    Refuse labels that are not one whole number `(B,)` an image, or not of the denoiser's classes; the numbers themselves are
    looked at on the CPU, where this waits for nothing.

    Raises `TypeError` or `ValueError`.
    """
    if class_labels is None:
        return
    if not isinstance(class_labels, Tensor):
        raise TypeError(f"`class_labels` are a {type(class_labels).__name__}, but must be a tensor of whole numbers.")
    if class_labels.is_floating_point() or class_labels.dtype == torch.bool or class_labels.shape != (batch_size,):
        raise ValueError(
            f"`class_labels` must be {batch_size} whole numbers, one an image, but are {class_labels.dtype} of shape"
            f" {tuple(class_labels.shape)}."
        )
    null = num_classes(unet)
    if null is not None and class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = class_labels.aminmax()
        if low < 0 or high > null:
            raise ValueError(f"`class_labels` run from {low} to {high}, but must be from 0 to {null}, the last for no class.")
