"""The net rate of the codec over a data set: the bound of the same chain, whatever the batches."""

import pytest
import torch
from test_bits_back import chain_bound, gaussian_vdm, images, profile_along_axes
from torch.utils.data import Dataset

from vdm_diffusers.likelihood.net_rate import net_rate


class Images(Dataset):
    def __init__(self, size: int):
        self.images = images(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index]}


def test_it_is_the_bound():
    vdm, data = gaussian_vdm(profile_along_axes()), Images(200)
    rate = net_rate(vdm, data, num_repeats=4)
    bounds = torch.stack([chain_bound(vdm, data.images) for _ in range(20)]).mean(0) / 3
    difference = rate.of_images - bounds
    assert difference.mean().abs() < 4 * difference.std() / len(data) ** 0.5
    assert difference.std() / len(data) ** 0.5 < 0.02 * bounds.mean()
    assert 6 < rate.bits_per_dim < 8


def test_batches_make_no_difference():
    vdm, data = gaussian_vdm(None), Images(20)
    expected = net_rate(vdm, data, num_repeats=2).of_images
    for batch_size in (1, 7):
        assert torch.equal(net_rate(vdm, data, num_repeats=2, batch_size=batch_size).of_images, expected)
    assert not torch.equal(net_rate(vdm, data, num_repeats=2, seed=1).of_images, expected)


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match="at least two images"):
        net_rate(gaussian_vdm(None), Images(1))
