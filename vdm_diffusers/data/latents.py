"""Data sets of latents: images that an autoencoder has encoded beforehand, once."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..autoencoders import decode, encode, scale_to_unit
from ..conditioning import CAPTIONS, LABELS, captions_of, collate, split_batch
from ..guards.loading import refused_as
from ..guards.messages import Message
from ..pictures import in_words
from .fingerprints import fingerprint, fingerprint_of_captions
from .image_data import ImageData
from .kept import KeptFolder


BATCH_SIZE = 64
DESCRIPTION = "latents.json"
"""Says which images and which autoencoder a folder's latents come from."""
OTHERS = "of other images or captions, or by another autoencoder or seed"


class LatentDataset(Dataset):
    """Latents `(c, *size)`, float32, with the conditions and captions of their images.

    Args:
        columns (`Mapping[str, np.ndarray]`): By the names that items have for them, arrays with a row for each image, which may
            lie on disk: `"images"`, the latents, and every keyword of the condition.
        captions (`Sequence[Mapping]`, *optional*): A row `{CAPTIONS: list of texts}` for each image.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], captions: Sequence[Mapping[str, list[str]]] | None = None):
        self.columns, self.captions = columns, captions

    def __len__(self) -> int:
        return len(self.columns["images"])

    def __getitem__(self, index: int) -> dict[str, Tensor | list[str]]:
        item = {name: torch.from_numpy(np.array(column[index])) for name, column in self.columns.items()}
        return item if self.captions is None else item | self.captions[index]


def in_latent_space(
    data: ImageData,
    vae: ModelMixin,
    folder: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    write: bool = True,
) -> ImageData:
    """
    The same data for a model of latents: held-out images are encoded here; those of training too if there is a `folder` to
    keep them in, or else by the model as they come.

    Args:
        folder (`str`, *optional*): Written unless it holds the latents of these images by this autoencoder already.
        seed (`int`): Of the draws, where the autoencoder has a distribution of latents.
        write (`bool`): Whether the folder may be written; if not, training images that it lacks stay images.

    Raises:
        `ValueError`: if the autoencoder isn't one of such images, or if the folder holds other latents.
    """
    shape = latent_shape(vae, data)
    validation = _encoded(vae, data, data.validation, device, seed, _in_memory)
    train = data.train
    facts = _facts(vae, data, seed)
    if folder is not None:
        kept, names = KeptFolder(Path(folder), "cache_latents", DESCRIPTION, facts, "latents", OTHERS), list(data.train[0])
        files = [_file(name) for name in names]
        if write and not kept.holds(*files):
            with kept.writing() as partial:
                _write(partial, vae, data, device, seed + 1)
        if kept.holds(*files):
            train = _kept(kept.path, names)
    return replace(data, train=train, validation=validation, shape=shape, origin=json.dumps(facts))


def latent_shape(vae: ModelMixin, data: ImageData) -> tuple[int, ...]:
    """The `(c, *size)` of the latents of such images; `ValueError` if the autoencoder isn't one of them."""
    image = scale_to_unit(data.validation[0]["images"][None], data.num_levels)
    channels = vae.config.get("in_channels", data.shape[0])
    if channels == data.shape[0]:
        with refused_as(Message("{vae_model_name_or_path} can't encode the images")):
            latents = encode(vae, image)
            decoded = decode(vae, latents)
        if decoded.shape == image.shape:
            return tuple(latents.shape[1:])
    text = (
        "{vae_model_name_or_path} is an autoencoder of images with {} channels whose sides are multiples of its factor, but"
        " {!r} has images of {}."
    )
    raise ValueError(Message(text, channels, data.name, in_words(data.shape)))


def _facts(vae: ModelMixin, data: ImageData, seed: int) -> dict:
    """What latents are those of."""
    weights = sum(parameter.double().abs().sum().item() for parameter in vae.parameters())
    facts = {"images": fingerprint(data), "autoencoder": f"{type(vae).__name__} {weights:.6e}", "seed": seed}
    return facts | {CAPTIONS: fingerprint_of_captions(data)} if data.has_captions else facts


def _write(folder: Path, vae: ModelMixin, data: ImageData, device: torch.device | str, seed: int) -> None:
    """Encode the training images into a folder."""

    def on_disk(name: str, *args: Any) -> np.memmap:
        return np.lib.format.open_memmap(folder / _file(name), "w+", *args)

    latents = _encoded(vae, data, data.train, device, seed, on_disk)
    for column in latents.columns.values():
        column.flush()
    if latents.captions is not None:
        from datasets import Dataset as Rows

        Rows.from_list(latents.captions).save_to_disk(folder / _file(CAPTIONS))


def _kept(folder: Path, names: Iterable[str]) -> LatentDataset:
    """The latents that a folder holds, mapped into memory."""
    from datasets import load_from_disk

    captions = load_from_disk(folder / _file(CAPTIONS)) if CAPTIONS in names else None
    columns = {name: np.load(folder / _file(name), mmap_mode="r") for name in names if name != CAPTIONS}
    return LatentDataset(columns, captions)


def _in_memory(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, dtype)


def _file(name: str) -> str:
    """The file of a column, or the folder of captions."""
    return {"images": "latents.npy", LABELS: "labels.npy", CAPTIONS: "captions"}.get(name, f"{name}.npy")


def _encoded(
    vae: ModelMixin, data: ImageData, images: Dataset, device: torch.device | str, seed: int, new_array: Callable
) -> LatentDataset:
    """The latents of all images, in arrays made by `new_array(name, dtype, shape)`."""
    columns, captions, generator, start = {}, [], torch.Generator().manual_seed(seed), 0
    loader = DataLoader(images, BATCH_SIZE, generator=torch.Generator(), collate_fn=collate)  # leaves the global one alone
    for batch in tqdm(loader, desc="Encoding", leave=False):
        pixels, condition = split_batch(batch)
        captions += captions_of(batch) or []
        x = scale_to_unit(pixels, data.num_levels).to(device)
        for name, tensor in (condition | {"images": encode(vae, x, generator)}).items():
            rows = tensor.cpu().numpy()
            if name not in columns:
                columns[name] = new_array(name, rows.dtype, (len(images), *rows.shape[1:]))
            columns[name][start : start + len(x)] = rows
        start += len(x)
    return LatentDataset(columns, [{CAPTIONS: texts} for texts in captions] or None)
