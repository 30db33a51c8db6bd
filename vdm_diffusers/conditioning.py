"""Conditions: what a denoiser is told beside its noise level. This module alone knows what is in one."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter, signature
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from .class_names import Labels, suggestion
from .gaussian import expand
from .guards.messages import Message
from .precision import compute_dtype


Condition = Mapping[str, "Tensor | Condition"]
"""`{keyword of the denoiser: tensor, the batch first}`, in place of a tensor also a mapping of such, as `added_cond_kwargs`;
empty, or `None`, for none. All other code hands it on unread."""

LABELS = "class_labels"
"""The keyword of labels of classes, as in diffusers; the label after the last class means none."""

HIDDEN_STATES, MASK = "encoder_hidden_states", "encoder_attention_mask"
"""The keywords of a text: the vectors of its tokens, and which of them count."""

ADDED, POOLED = "added_cond_kwargs", "text_embeds"
"""The keyword of what SDXL and PixArt are told besides, and the name in it of the vector of a whole text."""

SIZES = ("time_ids", "resolution", "aspect_ratio")
"""What SDXL and PixArt are told of the size of an image, as numbers."""

CAPTIONS = "captions"
"""What items of data call their captions, lists of text. They are no condition before something encodes them."""


def num_classes(denoiser: nn.Module) -> int | None:
    """How many classes a denoiser knows, the null class left out; `None` if it is told no class."""
    config = getattr(denoiser, "config", {})
    if config.get("num_class_embeds"):
        return config["num_class_embeds"] - 1
    return None if config.get("norm_type") == "ada_norm_single" else config.get("num_embeds_ada_norm")  # as of PixArt


def as_condition(condition: Condition | Tensor | None, class_labels: Tensor | None = None) -> Condition:
    """The condition that a caller means, who may give `class_labels` apart, or nothing but labels."""
    if not isinstance(condition, Mapping | None):
        condition, class_labels = None, condition
    return (condition or {}) if class_labels is None else {**(condition or {}), LABELS: class_labels}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The batch of some items of data, as PyTorch stacks them, but with their captions as one list for each image."""
    batch = default_collate([{name: value for name, value in item.items() if name != CAPTIONS} for item in items])
    return batch | ({CAPTIONS: [item[CAPTIONS] for item in items]} if CAPTIONS in items[0] else {})


def split_batch(batch: Mapping[str, Any]) -> tuple[Tensor, Condition]:
    """The images of a batch of data, and their condition: whatever the items have besides, but captions."""
    return batch["images"], {keyword: value for keyword, value in batch.items() if keyword not in ("images", CAPTIONS)}


def captions_of(batch: Mapping[str, Any]) -> list[list[str]] | None:
    """The captions of a batch of data, at least one for each image; `None` if the data have none."""
    return batch.get(CAPTIONS)


def trial_condition(denoiser: nn.Module, device: str | torch.device = "cpu") -> Condition:
    """A condition for one sample, to try a denoiser with: the first class, and zeros for what its configuration describes."""
    condition: dict[str, Tensor | Condition] = {}
    if num_classes(denoiser) is not None:
        condition[LABELS] = torch.zeros(1, dtype=torch.long, device=device)
    if (width := text_width(denoiser)) is not None:
        condition[HIDDEN_STATES] = torch.zeros(1, 1, width, device=device)
    if widths := _added_widths(denoiser):
        condition[ADDED] = {name: torch.zeros(1, width, device=device) for name, width in widths.items()}
    return condition


def text_width(denoiser: nn.Module) -> int | None:
    """The length of the vectors of a text that a denoiser takes; `None` if it takes no text."""
    config = getattr(denoiser, "config", {})
    names = ("caption_channels", "encoder_hid_dim", "cross_attention_dim")
    width = next((config[name] for name in names if config.get(name)), None)
    return width[0] if isinstance(width, (list, tuple)) else width


def pooled_width(denoiser: nn.Module) -> int | None:
    """The length of the vector of a whole text that a denoiser takes; `None` if it takes none."""
    return _added_widths(denoiser).get(POOLED)


def takes_size(denoiser: nn.Module) -> bool:
    """Whether a denoiser is told the size of images."""
    return not _added_widths(denoiser).keys().isdisjoint(SIZES)


def condition_of_texts(texts: Mapping[str, Tensor], image_size: tuple[int, int] | None, denoiser: nn.Module) -> Condition:
    """
    What a denoiser is told of texts and of the size of their images, of all that it takes; vectors in the dtype it computes in.

    Args:
        texts (`dict[str, Tensor]`): `HIDDEN_STATES` `(B, L, width)`, and if there are any, `MASK` `(B, L)` and `POOLED`
            `(B, pooled_width)`.
        image_size (`tuple[int, int]`, *optional*): Height and width in pixels; the image is all of the original.
        denoiser (`nn.Module`): Whose condition it is.

    Raises `ValueError` for a denoiser that is told the size where there is none.
    """
    dtype, added = compute_dtype(denoiser), {}
    condition: dict[str, Tensor | Condition] = {HIDDEN_STATES: texts[HIDDEN_STATES].to(dtype)}
    if MASK in texts and takes(denoiser, MASK):
        condition[MASK] = texts[MASK]
    if POOLED in texts:
        added[POOLED] = texts[POOLED].to(dtype)
    if takes_size(denoiser):
        number, device = len(texts[HIDDEN_STATES]), texts[HIDDEN_STATES].device
        added |= {name: torch.tensor([row] * number, device=device) for name, row in _sizes(image_size, denoiser).items()}
    return condition | ({ADDED: added} if added else {})


def _sizes(image_size: tuple[int, int] | None, denoiser: nn.Module) -> dict[str, list[float]]:
    """What a denoiser is told of an image's size, by its names for it."""
    if image_size is None:
        text = "{} is told the size of images, in pixels: give it to the text encoder as {image_size}."
        raise ValueError(Message(text, type(denoiser).__name__))
    height, width = map(float, image_size)
    original, top_left, target = [height, width], [0.0, 0.0], [height, width]
    sizes = {"time_ids": original + top_left + target, "resolution": target, "aspect_ratio": [height / width]}
    return {name: sizes[name] for name in _added_widths(denoiser) if name in SIZES}


def _added_widths(denoiser: nn.Module) -> dict[str, int]:
    """The lengths of the vectors that SDXL and PixArt are told besides, by their names."""
    config = getattr(denoiser, "config", {})
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {POOLED: pooled, "time_ids": 6}
    return {"resolution": 2, "aspect_ratio": 1} if getattr(denoiser, "use_additional_conditions", False) else {}


def _tensors(condition: Condition) -> list[tuple[str, Tensor]]:
    """Every tensor of a condition with its own name, those within mappings too."""
    return [
        pair
        for name, value in condition.items()
        for pair in (_tensors(value) if isinstance(value, Mapping) else [(name, value)])
    ]


def mapped(function: Callable[..., Tensor], condition: Condition, *others: Condition) -> Condition:
    """`function(name, tensor, ...)` in the place of every tensor, those within mappings too, of conditions that are alike."""
    return {
        name: mapped(function, value, *(other[name] for other in others))
        if isinstance(value, Mapping)
        else function(name, value, *(other[name] for other in others))
        for name, value in condition.items()
    }


def check_condition(condition: Condition, batch_size: int, denoiser: nn.Module) -> None:
    """
    Refuse a condition that a denoiser doesn't take, or that is not one for each sample.

    The values of labels are looked at on the CPU alone, where this waits for nothing.

    Raises:
        `TypeError`: for what is no tensor.
        `ValueError`: for keywords that the denoiser lacks, or needs; for another number of rows than `batch_size`; and for
            labels that are not whole numbers, or of no class.
    """
    if not torch.compiler.is_compiling():
        _check_keywords(condition, denoiser)
    for keyword, tensor in _tensors(condition):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{keyword}` are a {type(tensor).__name__}, but must be a tensor with a row for each image.")
        if keyword == LABELS:
            _check_labels(tensor, batch_size, denoiser)
        elif tensor.shape[:1] != (batch_size,):
            raise ValueError(
                f"`{keyword}` have the shape {tuple(tensor.shape)}, but must have {batch_size} rows, one an image."
            )


def _check_labels(labels: Tensor, batch_size: int, denoiser: nn.Module) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (batch_size,):
        raise ValueError(
            f"`class_labels` must be {batch_size} whole numbers, one an image, but are {labels.dtype} of shape"
            f" {tuple(labels.shape)}."
        )
    null = num_classes(denoiser)
    if null is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = labels.aminmax()
        if low < 0 or high > null:
            raise ValueError(f"`class_labels` run from {low} to {high}, but must be from 0 to {null}, the last for no class.")


def _check_keywords(condition: Condition, denoiser: nn.Module) -> None:
    needed, taken = _keywords(type(denoiser).forward)
    if taken is not None:
        needed |= taken & trial_condition(denoiser, "meta").keys()
    name = type(denoiser).__name__
    if missing := needed - condition.keys():
        raise ValueError(f"{name} needs {', '.join(f'`{keyword}`' for keyword in sorted(missing))}: give it in `condition`.")
    if taken is not None and (unknown := condition.keys() - taken):
        raise ValueError(f"{name} takes no {', '.join(f'`{keyword}`' for keyword in sorted(unknown))}: leave it out.")


def takes(denoiser: nn.Module, keyword: str) -> bool:
    """Whether a denoiser may be told something by this keyword."""
    _, taken = _keywords(type(denoiser).forward)
    return taken is None or keyword in taken


@lru_cache
def _keywords(forward: Callable) -> tuple[frozenset[str], frozenset[str] | None]:
    """The keywords that a denoiser's `forward` needs besides sample and timestep, and those that it takes; `None` for any."""
    parameters = list(signature(forward).parameters.values())
    if any(p.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) for p in parameters):  # as of a wrapper
        return frozenset(), None
    keywords = [parameter for parameter in parameters[2:] if parameter.name not in ("timestep", "return_dict")]
    return frozenset(p.name for p in keywords if p.default is p.empty), frozenset(p.name for p in keywords)


def null_condition(condition: Condition, denoiser: nn.Module) -> Condition:
    """What guidance compares a condition with: the null class, and zeros for floating-point numbers; the rest stays.

    So do masks, whatever their type, which say where there is something to attend to, and the sizes of images.
    """

    def null(name: str, tensor: Tensor) -> Tensor:
        if name == LABELS:
            return torch.full_like(tensor, num_classes(denoiser))
        stays = not tensor.is_floating_point() or name.endswith("mask") or name in SIZES
        return tensor if stays else torch.zeros_like(tensor)

    return mapped(null, condition)


def drop(condition: Condition, share: float, denoiser: nn.Module) -> Condition:
    """The condition, that of a random share of the samples replaced by the null condition; drawn where the tensors are."""
    if not condition:
        return condition
    _, first = _tensors(condition)[0]
    dropped = torch.rand(len(first), device=first.device) < share

    def mixed(name: str, tensor: Tensor, null: Tensor) -> Tensor:
        return torch.where(expand(dropped, tensor), null, tensor)

    return mapped(mixed, condition, null_condition(condition, denoiser))


def concatenate(first: Condition, second: Condition) -> Condition:
    """One batch of two, whose conditions have the same keywords."""
    return mapped(lambda name, *tensors: torch.cat(tensors), first, second)


def merged(first: Condition, second: Condition) -> Condition:
    """What both say, within mappings too; where they contradict, what the second says."""

    def both(name: str, value: Tensor | Condition) -> Tensor | Condition:
        return merged(first.get(name, {}), value) if isinstance(value, Mapping) else value

    return {**first, **{name: both(name, value) for name, value in second.items()}}


def without_sizes(condition: Condition) -> Condition:
    """The condition but for what it says of the size of images."""
    return {
        name: without_sizes(value) if isinstance(value, Mapping) else value
        for name, value in condition.items()
        if name not in SIZES
    }


def repeated(condition: Condition, number: int) -> Condition:
    """Every row so many times, one after the other."""
    return mapped(lambda name, rows: rows.repeat_interleave(number, dim=0), condition)


def row(condition: Condition, index: int) -> Condition:
    """The condition of one sample, a batch of one."""
    return mapped(lambda name, tensor: tensor[index : index + 1], condition)


def split_condition(condition: Condition, number: int) -> list[Condition]:
    """The conditions of so many parts of the samples, one after the other, that are as equal as they can be."""
    parts = mapped(lambda name, rows: rows.tensor_split(number), condition)
    return [mapped(lambda name, rows, place=place: rows[place], parts) for place in range(number)]


def to_device(condition: Condition, device: str | torch.device) -> Condition:
    """The condition with all tensors on a device."""
    return mapped(lambda name, tensor: tensor.to(device), condition)


def batch_sizes(condition: Condition) -> dict[str, int]:
    """The number of rows of each tensor, by its name."""
    return {name: len(tensor) for name, tensor in _tensors(condition) if isinstance(tensor, Tensor) and tensor.ndim}


def labels_of(class_labels: Labels, number: int, names: Mapping[str, int], denoiser: nn.Module) -> Tensor:
    """
    Labels as users give them, as a tensor of int64 on the CPU.

    Args:
        class_labels (`list[int | str]`, `Tensor`, `int` or `str`): One for each sample, or one for all; names count as labels.
        number (`int`): Of samples, for one label for all.
        names (`dict[str, int]`): The labels of the names.
        denoiser (`nn.Module`): Whose classes they are.

    Raises `ValueError` for an unconditional denoiser and for unknown names, `TypeError` for what are no whole numbers.
    """
    if num_classes(denoiser) is None:
        raise ValueError("`class_labels` were given, but this denoiser is unconditional: leave them out.")
    if isinstance(class_labels, (Tensor, np.ndarray)) and class_labels.ndim == 0:
        class_labels = class_labels.item()
    if not isinstance(class_labels, Tensor):
        alone = isinstance(class_labels, str) or not hasattr(class_labels, "__len__")
        class_labels = [find_label(label, names) for label in ([class_labels] * number if alone else class_labels)]
    return _whole_numbers(class_labels).cpu()


def find_label(label: int | str, names: Mapping[str, int]) -> int:
    """The label of a class by its name, an integer as it is; `ValueError` for a name that is not in `names`."""
    if not isinstance(label, str):
        try:
            return index(label)
        except TypeError as error:
            raise ValueError(f"`class_labels` must be integers or names of classes, but are {label!r}.") from error
    if not names:
        raise ValueError(f"`class_labels` has the name {label!r}, but this model has no names of classes: give integers.")
    if label not in names:
        raise ValueError(f"`class_labels` has {label!r}, which names no class, or several: {suggestion(label, names)}.")
    return names[label]


def _whole_numbers(class_labels: Sequence[int] | Tensor) -> Tensor:
    try:
        labels = torch.as_tensor(class_labels).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.empty(0)
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(labels):
        raise TypeError(
            f"`class_labels` are {class_labels!r}, but must be whole numbers, one an image: the indices of classes."
        )
    return labels.long()
