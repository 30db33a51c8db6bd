"""Pictures of any number of channels, and grids of them."""

import numpy as np
import PIL.Image
import pytest
import torch

from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel
from vdm_diffusers.figures import save_forward_process, save_labelled_grid, to_picture
from vdm_diffusers.training.sample_grids import sample_labels, save_samples


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_every_channel_is_seen(channels):
    """As many different levels as there are channels: those of colours together, all others in panels of their own."""
    levels = np.arange(1, channels + 1) * 15
    picture = to_picture(np.broadcast_to(levels / 255, (4, 6, channels)))
    shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = 3 if channels in (3, 4) else 0
    expected = [tuple(levels[:3])] * bool(colours) + [(level,) * 3 for level in levels[colours:]]
    for colour in expected:
        assert (shown == colour).all(1).sum() == 24
    assert picture.size == (6, 4) if channels in (1, 3) else picture.width > 6


@pytest.mark.parametrize("last", [1, 16, 255, 65535])
def test_levels_are_spread_over_the_range(last):
    picture = to_picture(np.array([[[0.0], [0.5], [1.0]]]) * last / last)
    assert np.asarray(picture).tolist() == [[0, 128, 255]]


def conditional(num_classes: int | None, **kwargs) -> VDM:
    embeds = None if num_classes is None else num_classes + 1
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, num_class_embeds=embeds)
    return VDM(unet, LinearSchedule(), **kwargs)


@pytest.mark.parametrize(("number", "num_samples"), [(1, 5), (3, 3), (10, 64), (7, 20), (100, 200), (1000, 64), (1000, 1)])
def test_samples_are_of_all_classes_or_of_some_all_over(number, num_samples, tmp_path):
    labels = sample_labels(conditional(number), num_samples)
    assert len(set(labels)) == min(number, num_samples) and 0 <= min(labels) <= max(labels) < number
    counts = np.bincount(labels)
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
    if num_samples < number:
        assert set(np.diff(labels)) <= {number // num_samples, number // num_samples + 1}
    pictures = [PIL.Image.new("L", (8, 8), 1 + label % 200) for label in labels]
    save_samples(pictures, conditional(number, class_names=["long name " * 9] * number), tmp_path / "grid.png")
    grid = PIL.Image.open(tmp_path / "grid.png")
    shown, expected = (
        np.bincount(levels, minlength=256) for levels in (np.asarray(grid)[..., 0].flat, np.array(labels) % 200 + 1)
    )
    assert (shown >= 64 * 64 * expected).all()
    assert grid.width < 4 * grid.height < 20 * grid.width


def test_a_class_is_a_row_under_its_name(tmp_path):
    blocks = {str(i): [PIL.Image.new("L", (8, 8), 10 * i + 10)] * 6 for i in range(6)}
    save_labelled_grid(blocks, tmp_path / "grid.png")
    grid = np.asarray(PIL.Image.open(tmp_path / "grid.png"))[..., 0]
    assert grid.shape == (6 * (72 + 18), 6 * 72)
    for i, row in enumerate(np.split(grid, 6)):
        assert (row[18:] == 10 * i + 10).sum() == 6 * 64 * 64 and row[:18].max() > 200


def test_unconditional_samples_are_a_square(tmp_path):
    save_samples([PIL.Image.new("L", (8, 8))] * 7, conditional(None), tmp_path / "grid.png")
    assert PIL.Image.open(tmp_path / "grid.png").size == (3 * 72, 3 * 72)


def test_samples_that_are_no_images_are_written_as_an_array(tmp_path):
    samples = [np.full((8, 1), i / 3, dtype=np.float32) for i in range(4)]
    save_samples(samples, conditional(None), tmp_path / "samples.png")
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), samples)
    save_forward_process(torch.zeros(1, 1, 8), LinearSchedule(), tmp_path / "forward_process.png")
    assert not (tmp_path / "forward_process.png").exists()
