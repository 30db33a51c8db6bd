"""What a bound must beat: a histogram of every pixel."""

from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset

from ..conditioning import collate
from .streaming import ImageStream


def histogram_bits_per_dim(train: Dataset, test: Dataset, num_levels: int, max_images: int = 60_000) -> float:
    """Bits per dimension of `test` under one histogram for every pixel and channel: what a bound must beat.

    The histograms are those of the first `max_images` of `train`, which may be a stream, with one count added to each of their
    `num_levels` bins.
    """
    counts = torch.ones(test[0]["images"].numel(), num_levels, dtype=torch.float64)
    rows = train.suitable_items() if isinstance(train, ImageStream) else (train[i] for i in range(len(train)))
    for row in islice(rows, max_images):
        counts[torch.arange(len(counts)), row["images"].flatten().long()] += 1
    bits = -torch.log2(counts / counts.sum(1, keepdim=True))
    batches = DataLoader(test, 256, collate_fn=collate)
    total = sum(bits.gather(1, batch["images"].flatten(1).T.long()).mean(0).sum().item() for batch in batches)
    return total / len(test)
