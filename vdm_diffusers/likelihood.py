"""Bits per dimension of a data set."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .vdm import LOG_2, VDM, evaluating, stratified_times


@dataclass
class VariationalBound:
    """The negative variational bound of a data set, everything in bits per dimension.

    Attributes:
        bits_per_dim (`float`): Mean over the images.
        standard_error (`float`): Of that mean, from the spread of the images' averages over the repeats.
        prior, reconstruction, diffusion (`float`): Its three terms.
    """

    bits_per_dim: float
    standard_error: float
    prior: float
    reconstruction: float
    diffusion: float


@torch.no_grad()
def variational_bound(
    vdm: VDM,
    dataset: Dataset,
    num_repeats: int = 1,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> VariationalBound:
    """
    Estimate the bound (section 3.5) with every image used exactly `num_repeats` times.

    Times are stratified over all images and repeats. An image's draws depend on `seed` and its index alone, not on the batches.

    Args:
        vdm ([`VDM`]): On `device`; it is evaluated without dropout and left in the mode in which it was.
        dataset (`Dataset`): Items as [`ImageDataset`] has them, of which there are at least two.
        num_repeats (`int`, defaults to 1): Times and noises an image.
        batch_size (`int`, defaults to 128): Images a batch.
        seed (`int`, defaults to 0): Of the draws.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the model is.
    """
    times = _shuffled_times(num_repeats, len(dataset), seed)
    bits = torch.zeros(3, len(dataset), dtype=torch.float64)
    for rows, images, labels in _batches(dataset, batch_size, device):
        noise = _noise(rows, num_repeats, images.shape[1:], seed)
        for repeat in range(num_repeats):
            with evaluating(vdm):
                loss = vdm(images, labels, times[repeat, rows].to(device), noise[:, repeat].to(device))
            terms = torch.stack([loss.prior, loss.reconstruction, loss.diffusion])
            bits[:, rows] += terms.double().cpu() / (num_repeats * loss.num_dims * LOG_2)
    prior, reconstruction, diffusion = bits.mean(1).tolist()
    return VariationalBound(
        bits_per_dim=bits.sum(0).mean().item(),
        standard_error=bits.sum(0).std().item() / math.sqrt(len(dataset)),
        prior=prior,
        reconstruction=reconstruction,
        diffusion=diffusion,
    )


def _shuffled_times(num_repeats: int, num_images: int, seed: int) -> Tensor:
    """Stratified times in random order, `(num_repeats, num_images)`."""
    generator = torch.Generator().manual_seed(seed)
    times = stratified_times(torch.rand((), generator=generator), num_repeats * num_images)
    return times[torch.randperm(len(times), generator=generator)].reshape(num_repeats, num_images)


def _batches(dataset: Dataset, batch_size: int, device: str | torch.device) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    start = 0
    for batch in DataLoader(dataset, batch_size, generator=torch.Generator()):  # leaves the global generator alone
        images, labels = batch["images"].to(device), batch.get("class_labels")
        yield slice(start, start + len(images)), images, None if labels is None else labels.to(device)
        start += len(images)


def _noise(rows: slice, num_repeats: int, shape: torch.Size, seed: int) -> Tensor:
    """`(2, num_repeats, B, *shape)`, drawn image by image so that it does not depend on the batch."""
    generators = [torch.Generator().manual_seed((seed << 32) + index) for index in range(rows.start, rows.stop)]
    return torch.stack([torch.randn(2, num_repeats, *shape, generator=generator) for generator in generators], dim=2)


def histogram_bits_per_dim(train: Dataset, test: Dataset, num_levels: int, max_images: int = 60_000) -> float:
    """Bits per dimension of `test` under one histogram for every pixel and channel: what a bound must beat.

    The histograms are those of the first `max_images` of `train`, with one count added to each of their `num_levels` bins.
    """
    images = torch.stack([train[i]["images"] for i in range(min(len(train), max_images))]).flatten(1).long()
    counts = torch.ones(images.shape[1], num_levels, dtype=torch.float64)
    counts.scatter_add_(1, images.T, torch.ones(images.T.shape, dtype=torch.float64))
    bits = -torch.log2(counts / counts.sum(1, keepdim=True))
    total = sum(bits.gather(1, batch["images"].flatten(1).T.long()).mean(0).sum().item() for batch in DataLoader(test, 256))
    return total / len(test)
