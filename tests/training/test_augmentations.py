"""Augmentations: what happens to the pixels, how often, and what the denoiser is told."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from vdm_diffusers.training.augmentations import AUGMENTATIONS, check_augmentation


IMAGES = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(1, 2, 3, 3)


def which(image: torch.Tensor, original: torch.Tensor) -> tuple[bool, int]:
    """Mirrored or not, and by how many quarters it was turned, according to NumPy."""
    for mirrored in (False, True):
        for quarters in range(4):
            candidate = np.flip(original.numpy(), -1) if mirrored else original.numpy()
            if np.array_equal(np.rot90(candidate, quarters, (-2, -1)), image.numpy()):
                return mirrored, quarters
    raise AssertionError("neither mirrored nor turned")


def as_likely_as(count: int, total: int, probability: float) -> bool:
    return binomtest(count, total, probability).pvalue > 1e-3


def test_flip_mirrors_half_the_images():
    images, condition = AUGMENTATIONS["flip"](IMAGES.expand(1000, -1, -1, -1))
    changes = [which(image, IMAGES[0]) for image in images]
    assert condition is None and {quarters for _, quarters in changes} == {0}
    assert as_likely_as(sum(mirrored for mirrored, _ in changes), 1000, 0.5)


def test_paper_s_augmentation_is_flagged():
    images, condition = AUGMENTATIONS["paper"](IMAGES.expand(2000, -1, -1, -1))
    changes = [which(image, IMAGES[0]) for image in images]
    assert images.dtype == torch.uint8 and condition["conditioning"].shape == (2000, 1)
    assert condition["conditioning"].flatten().tolist() == [float(change != (False, 0)) for change in changes]
    for mirrored in (False, True):
        assert as_likely_as(changes.count((mirrored, 0)), 2000, 1 / 4)
        for quarters in (1, 2, 3):
            assert as_likely_as(changes.count((mirrored, quarters)), 2000, 1 / 12)


def test_nothing_is_done_by_default():
    images, condition = AUGMENTATIONS["none"](IMAGES)
    assert images is IMAGES and condition is None


def test_images_that_are_not_square_can_t_be_turned():
    with pytest.raises(ValueError, match="must be square, but they are 6×10"):
        check_augmentation("paper", (3, 6, 10))
    check_augmentation("flip", (3, 6, 10))
    check_augmentation("none", (1, 16))
    with pytest.raises(ValueError, match="`augmentation` is 'flip', which is for images, but the data are 1×16"):
        check_augmentation("flip", (1, 16))
