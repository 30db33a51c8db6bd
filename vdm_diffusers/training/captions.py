"""Captions in training: which of an image's is taken, which are dropped, and the prompts that samples are drawn for."""

from collections.abc import Sequence

from torch import Tensor

from ..data.image_data import ImageData
from ..data.texts import captions_at


def draw_captions(captions: Sequence[Sequence[str]], draws: Tensor, dropout: float) -> list[str]:
    """
    A caption for each image: one of its own, or with probability `dropout` the empty one, the null condition of guidance.

    Args:
        captions (`list[list[str]]`): Those of the images, one or several each.
        draws (`Tensor` of shape `(2, B)`): Uniform on [0, 1): for what is dropped, and for which is taken.
        dropout (`float`): The share of dropped captions.
    """
    return [
        "" if dropped < dropout else of_image[int(choice * len(of_image))]
        for of_image, dropped, choice in zip(captions, *draws.tolist())
    ]


def validation_prompts(data: ImageData, number: int) -> list[str]:
    """The captions of so many held-out images, the first, each once."""
    numbers = range(min(number, len(data.validation)))
    return list(dict.fromkeys(captions_at(data.validation, index)[0] for index in numbers))
