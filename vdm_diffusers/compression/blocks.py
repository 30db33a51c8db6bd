"""Blocks: images that share their bits, the first of them pushed without the model, to begin with some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..conditioning import Condition, as_condition, num_classes, to_device
from ..text_encoders import PromptEncoder
from ..vdm import VDM
from .ans import BitStack
from .bits_back import pop_image, push_image
from .container import Block, DamagedFile, checksum, digest_of_images
from .latents import CodedLatents


class Item(NamedTuple):
    """An integer image `(C, *size)` on the CPU, its name, and the label of its class."""

    image: Tensor
    name: str | None = None
    label: int | None = None


@dataclass
class Rates:
    """
    What images cost.

    Attributes:
        num_dims (`int`): Numbers of an image.
        num_images, num_plain (`int`): All of them, and those that are coded without the model.
        gross_bits (`float`): Of the file.
        initial_bits (`float`): Of the images that are coded without the model.
        net_bits (`float`): Of all others.
    """

    num_dims: int
    num_images: int = 0
    num_plain: int = 0
    gross_bits: float = 0.0
    initial_bits: float = 0.0
    net_bits: float = 0.0

    def add(self, other: "Rates") -> None:
        """Count what other images cost."""
        for name in ("num_images", "num_plain", "gross_bits", "initial_bits", "net_bits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def gross(self) -> float:
        """Bits per dimension of the file."""
        return self.gross_bits / max(1, self.num_images * self.num_dims)

    @property
    def net(self) -> float:
        """Bits per dimension of the images that are coded with the model; not a number if there are none."""
        coded = self.num_images - self.num_plain
        return self.net_bits / (coded * self.num_dims) if coded else float("nan")


def pack(items: Sequence[Item], latents: CodedLatents, on_image: Callable[[], None]) -> tuple[Block, Rates]:
    """A block of images. The last are pushed first, plain as long as there are not bits enough for latents."""
    stack, rates = BitStack(), Rates(latents.num_dims, num_images=len(items))
    initial_bits = latents.initial_bits()
    for place, item in reversed(list(enumerate(items))):
        before = stack.num_bits
        if before < initial_bits:
            _push_plain(stack, item.image, latents.vdm.num_levels)
            rates.num_plain += 1
            rates.initial_bits += stack.num_bits - before
        else:
            push_image(stack, latents, item.image, condition_of(latents.vdm, latents.prompt_encoder, item.label), place)
            rates.net_bits += stack.num_bits - before
        on_image()
    facts = {"names": [item.name for item in items], "labels": [item.label for item in items]}
    facts = {name: values for name, values in facts.items() if any(value is not None for value in values)}
    levels = [item.image.numpy() for item in items]
    return Block(rates.num_plain, list(map(checksum, levels)), digest_of_images(levels), facts, stack.words()), rates


def unpack(block: Block, latents: CodedLatents, on_image: Callable[[], None]) -> list[Item]:
    """The images of a block, uint8 for up to 256 levels, else int32; [`DamagedFile`] if one is not what it was, which its
    checksum shows at once but for one case in 65,536, and the digest of all in the end."""
    names, labels = (block.facts.get(name, [None] * len(block.checksums)) for name in ("names", "labels"))
    _check_facts(names, labels, num_classes(latents.vdm.unet))
    stack, items = _stack_of(block.words), []
    num_coded, num_levels = len(block.checksums) - block.num_plain, latents.vdm.num_levels
    dtype = torch.uint8 if num_levels <= 256 else torch.int32
    for place, (expected, name, label) in enumerate(zip(block.checksums, names, labels)):
        is_coded = place < num_coded
        image = _pop_coded(stack, latents, label, place) if is_coded else _pop_plain(stack, latents.shape, num_levels)
        if image is None or image.max() >= num_levels or checksum(image.numpy()) != expected:
            raise _other_images()
        items.append(Item(image.to(dtype), name, label))
        on_image()
    if digest_of_images(item.image.numpy() for item in items) != block.digest:
        raise _other_images()
    return items


def _other_images() -> DamagedFile:
    return DamagedFile(
        "An image is not the one that was compressed: the denoiser's outputs are others here than where the file was written,"
        " or the file was changed. Nothing of its block is given out."
    )


def _check_facts(names: list, labels: list, last_label: int | None) -> None:
    if not all(name is None or isinstance(name, str) for name in names):
        raise DamagedFile("A block has names that are no text.")
    if not all(label is None or (type(label) is int and 0 <= label <= (last_label or 0)) for label in labels):
        raise DamagedFile("A block has labels of no class of this model.")


def _stack_of(words: np.ndarray) -> BitStack:
    try:
        return BitStack(words)
    except ValueError as error:  # words that end in a zero, as those of no stack do
        raise DamagedFile("A block has bits that no coder leaves.") from error


def _pop_coded(stack: BitStack, latents: CodedLatents, label: int | None, place: int) -> Tensor | None:
    try:
        return pop_image(stack, latents, condition_of(latents.vdm, latents.prompt_encoder, label), place)
    except ArithmeticError:  # latents of other bits can be anything
        return None


def condition_of(vdm: VDM, prompt_encoder: PromptEncoder | None, label: int | None = None) -> Condition:
    """What the denoiser is told of an image: its class, or that none is known, and no text."""
    condition = {} if prompt_encoder is None else prompt_encoder([""], vdm.unet)
    if (null := num_classes(vdm.unet)) is not None:
        condition = as_condition(condition, torch.tensor([null if label is None else label]))
    return to_device(condition, vdm.noise_schedule.device)


def _push_plain(stack: BitStack, image: Tensor, num_levels: int) -> None:
    stack.push_uniform(image.flatten().long().numpy(), num_levels)


def _pop_plain(stack: BitStack, shape: tuple[int, ...], num_levels: int) -> Tensor:
    return torch.from_numpy(stack.pop_uniform(int(np.prod(shape)), num_levels)).reshape(shape)
