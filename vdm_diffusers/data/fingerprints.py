"""What makes two data sets the same, wherever they are."""

import hashlib
from collections.abc import Iterator

from torch.utils.data import Dataset, IterableDataset

from ..conditioning import CAPTIONS, LABELS
from .image_data import ImageData


def fingerprint(data: ImageData, num_images: int = 64) -> str:
    """A hash of the format, the sizes, and `num_images` images of each split, evenly spread; a stream's images are left out.

    Latents have the hash of the images and the autoencoder that they come from, on whatever device they were encoded.
    """
    if data.origin is not None:
        return hashlib.sha256(data.origin.encode()).hexdigest()
    digest = hashlib.sha256(repr((data.shape, data.num_levels, data.num_classes)).encode())
    for split in (data.train, data.validation):
        if isinstance(split, IterableDataset):
            continue
        digest.update(repr(len(split)).encode())
        for item in _spread(split, num_images):
            digest.update(item["images"].numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_labels(data: ImageData, num_images: int = 64) -> str | None:
    """A hash of the labels of those images, `None` if they have none."""
    if data.num_classes is None:
        return None
    labels = [int(item[LABELS]) for item in _items(data, num_images)]
    return hashlib.sha256(repr(labels).encode()).hexdigest()


def fingerprint_of_captions(data: ImageData, num_images: int = 64) -> str | None:
    """A hash of the captions of those images, `None` if they have none."""
    if not data.has_captions:
        return None
    captions = [item[CAPTIONS] for item in _items(data, num_images)]
    return hashlib.sha256(repr(captions).encode()).hexdigest()


def _items(data: ImageData, num_images: int) -> Iterator[dict]:
    """`num_images` items of each split, but of a stream none."""
    for split in (data.train, data.validation):
        if not isinstance(split, IterableDataset):
            yield from _spread(split, num_images)


def _spread(split: Dataset, num_images: int) -> Iterator[dict]:
    count = min(num_images, len(split))
    return (split[index * len(split) // count] for index in range(count))
