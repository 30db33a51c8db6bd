"""Data sets of latents: images that an autoencoder has encoded beforehand, once."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..autoencoders import decode, encode, scale_to_unit
from ..conditioning import LABELS
from ..guards.loading import refused_as
from ..guards.messages import Message
from ..pictures import in_words
from .fingerprints import fingerprint
from .images import ImageData


BATCH_SIZE = 64
DESCRIPTION = "latents.json"
"""Says which images and which autoencoder a folder's latents come from. It is written last: without it they are incomplete."""


class LatentDataset(Dataset):
    """Latents `(c, *size)`, float32, as `{"images": ..., LABELS: int}`, the label only if there are any.

    Args:
        latents: An array `(N, c, *size)`, which may lie on disk.
        labels (`Sequence[int]`, *optional*): Those of their classes.
    """

    def __init__(self, latents: np.ndarray, labels: Sequence[int] | None):
        self.latents, self.labels = latents, labels

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        item = {"images": torch.from_numpy(np.array(self.latents[index]))}
        return item if self.labels is None else item | {LABELS: int(self.labels[index])}


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
    labels = np.zeros(len(data.validation), dtype=np.int64)
    latents = np.empty((len(data.validation), *shape), dtype=np.float32)
    _encode_all(vae, data, data.validation, latents, labels, device, seed)
    labelled = data.num_classes is not None
    validation = LatentDataset(latents, labels if labelled else None)
    train = data.train
    facts = _facts(vae, data, seed)
    if folder is not None:
        if write and not _holds(Path(folder), facts):
            _write(Path(folder), facts, vae, data, shape, device, seed + 1)
        if _holds(Path(folder), facts):
            train = _read(Path(folder), labelled)
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
    return {"images": fingerprint(data), "autoencoder": f"{type(vae).__name__} {weights:.6e}", "seed": seed}


def _holds(folder: Path, facts: dict) -> bool:
    """Whether a folder holds these latents; `ValueError` if it holds anything else."""
    if not (folder / DESCRIPTION).exists():
        if folder.exists() and any(folder.iterdir()):
            text = "{cache_latents} {!r} holds something other than latents: name another folder."
            raise ValueError(Message(text, str(folder)))
        return False
    if json.loads((folder / DESCRIPTION).read_text()) != facts:
        text = (
            "{cache_latents} {!r} holds latents of other images, or by another autoencoder or seed: name another folder, or"
            " delete this one."
        )
        raise ValueError(Message(text, str(folder)))
    return True


def _write(
    folder: Path, facts: dict, vae: ModelMixin, data: ImageData, shape: tuple, device: torch.device | str, seed: int
) -> None:
    """Encode the training images into a folder, which is there once all of them are."""
    partial = folder.with_name(f".{folder.name}-partial")
    partial.mkdir(parents=True, exist_ok=True)
    count = len(data.train)
    labels = np.lib.format.open_memmap(partial / "labels.npy", "w+", np.int64, (count,))
    latents = np.lib.format.open_memmap(partial / "latents.npy", "w+", np.float32, (count, *shape))
    _encode_all(vae, data, data.train, latents, labels, device, seed)
    latents.flush(), labels.flush()
    (partial / DESCRIPTION).write_text(json.dumps(facts))
    folder.exists() and folder.rmdir()
    partial.rename(folder)


def _read(folder: Path, labelled: bool) -> LatentDataset:
    latents, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "labels"))
    return LatentDataset(latents, labels if labelled else None)


def _encode_all(
    vae: ModelMixin,
    data: ImageData,
    images: Dataset,
    latents: np.ndarray,
    labels: np.ndarray,
    device: torch.device | str,
    seed: int,
) -> None:
    """Fill the arrays of latents and labels."""
    generator, start = torch.Generator().manual_seed(seed), 0
    loader = DataLoader(images, BATCH_SIZE, generator=torch.Generator())  # leaves the global generator alone
    for batch in tqdm(loader, desc="Encoding", leave=False):
        x = scale_to_unit(batch["images"], data.num_levels).to(device)
        end = start + len(x)
        latents[start:end] = encode(vae, x, generator).cpu().numpy()
        if LABELS in batch:
            labels[start:end] = batch[LABELS].numpy()
        start = end
