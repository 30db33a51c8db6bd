"""Captions as what a denoiser is told of them: encoded as they come, or once, into a folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from ..conditioning import CAPTIONS, mapped
from ..text_encoders import PromptEncoder
from .image_data import ImageDataset
from .kept import KeptFolder


DESCRIPTION = "captions.json"
"""Says which captions and which encoder a folder's tensors come from, and names them: each is a file."""
OTHERS = "of other captions, or by another encoder"


CAPTION_KINDS = {"own": "", "none": ", without captions", "others": ", with other images' captions"}
"""Captions that images are evaluated with, and how figures of them are named."""


class EncodedCaptions(Dataset):
    """
    A data set with the encoding of its captions in their place.

    Args:
        dataset (`Dataset`): Items as [`ImageDataset`] has them; those with several captions have the first.
        encoder ([`PromptEncoder`]): Encodes them.
        unet (`nn.Module`): The denoiser that is told of them.
        captions (`list[str]`, *optional*): Other captions than its own, or than none, one for each item.
    """

    def __init__(self, dataset: Dataset, encoder: PromptEncoder, unet: nn.Module, captions: Sequence[str] | None = None):
        self.dataset, self.encoder, self.unet, self.captions = dataset, encoder, unet, captions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.dataset[index])
        own = item.pop(CAPTIONS, [""])[0]
        caption = own if self.captions is None else self.captions[index]
        return item | mapped(lambda name, rows: rows[0].cpu(), self.encoder([caption], self.unet))


def with_encoded_captions(
    dataset: Dataset, encoder: PromptEncoder | None, unet: nn.Module, captions: Sequence[str] | None = None
) -> Dataset:
    """The data set as a model with this encoder takes it: as it is if there is none, else as [`EncodedCaptions`]."""
    return dataset if encoder is None else EncodedCaptions(dataset, encoder, unet, captions)


def captions_at(dataset: Dataset, index: int) -> list[str]:
    """The captions of an item, at least one, the empty one where it has none; of stored images they alone are read."""
    if isinstance(dataset, Subset):
        return captions_at(dataset.dataset, dataset.indices[index])
    return dataset.captions(index) if isinstance(dataset, ImageDataset) else dataset[index].get(CAPTIONS, [""])


def all_captions(dataset: Dataset) -> list[str]:
    """The captions of all items, each once."""
    return list(dict.fromkeys(text for index in range(len(dataset)) for text in captions_at(dataset, index)))


def captions_of_kind(kind: str, dataset: Dataset, seed: int) -> list[str] | None:
    """
    The captions that a data set is evaluated with, by one of the `CAPTION_KINDS`; `None` for its own.

    Those of other images are dealt at random, none to its own image.
    """
    number = len(dataset)
    if kind == "own":
        return None
    if kind == "none":
        return [""] * number
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    return [captions_at(dataset, other)[0] for _, other in sorted(zip(order, order[1:] + order[:1]))]


class TextEmbeddings(Mapping):
    """Encodings by their texts, on disk, each as [`~PromptEncoder.encode`] returns it."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / DESCRIPTION).read_text())
        self.rows = {text: row for row, text in enumerate(facts["captions"])}
        self.tensors = {name: np.load(folder / _file(name), mmap_mode="r") for name in facts["tensors"]}

    def __getitem__(self, text: str) -> dict[str, Tensor]:
        row = self.rows[text]
        return {name: torch.from_numpy(np.array(tensor[row])) for name, tensor in self.tensors.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def cache_text_embeddings(encoder: PromptEncoder, dataset: Dataset, folder: str, write: bool = True) -> None:
    """
    Have an encoder look up the captions of a data set, and the empty one, in a folder, which is written unless it holds them.

    Args:
        encoder ([`PromptEncoder`]): Left with `stored` encodings, if the folder holds them then.
        dataset (`Dataset`): Items as [`ImageDataset`] has them; all captions of an item count.
        folder (`str`): Where they are kept.
        write (`bool`): Whether it may be written.

    Raises:
        `ValueError`: if the folder holds something else, or encodings of other captions or by another encoder.
    """
    facts = {"encoder": encoder.fingerprint, "captions": sorted({*all_captions(dataset), ""}), "tensors": [*encoder.encode("")]}
    kept = KeptFolder(Path(folder), "cache_text_embeddings", DESCRIPTION, facts, "encodings", OTHERS)
    if write and not kept.holds():
        with kept.writing() as partial:
            _write(partial, facts["captions"], encoder)
    if kept.holds():
        encoder.stored = TextEmbeddings(kept.path)


def _write(folder: Path, captions: Sequence[str], encoder: PromptEncoder) -> None:
    """Encode captions into a folder."""
    arrays: dict[str, np.memmap] = {}
    for row, caption in enumerate(tqdm(captions, desc="Encoding captions", leave=False)):
        for name, tensor in encoder.encode(caption).items():
            value = tensor.cpu().numpy()
            if name not in arrays:
                shape = (len(captions), *value.shape)
                arrays[name] = np.lib.format.open_memmap(folder / _file(name), "w+", value.dtype, shape)
            arrays[name][row] = value
    for array in arrays.values():
        array.flush()


def _file(name: str) -> str:
    """Of a tensor of all captions."""
    return f"{name}.npy"
