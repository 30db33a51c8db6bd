"""Pictures of any number of channels, grids of them, and plots that follow what they show and say what it is."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from matplotlib.figure import Figure

from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel
from vdm_diffusers.figures import (
    save_bits_maps,
    save_forward_process,
    save_labelled_grid,
    save_loss_profiles,
    save_noise_schedule,
    save_training_curve,
    to_picture,
)
from vdm_diffusers.training.sample_grids import sample_labels, save_samples
from vdm_diffusers.units import BITS_PER_DIM, NATS_PER_DIM


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


def test_captions_that_begin_alike_are_told_apart(tmp_path):
    """A word that fits on no line is cut, and so is what needs more than three of them."""

    def grid(*captions: str) -> np.ndarray:
        save_labelled_grid({caption: [PIL.Image.new("L", (8, 8))] for caption in captions}, tmp_path / "grid.png")
        return np.asarray(PIL.Image.open(tmp_path / "grid.png"))

    one, other = grid("grinning face with tears"), grid("grinning face with smiles")
    assert one.shape == other.shape == (4 + 3 * 14 + 72, 72, 3) and (one != other).any()
    assert grid("cat").shape[0] == 4 + 14 + 72 and grid("cat", "grinning face").shape[0] == 4 + 2 * 14 + 72
    assert grid("m" * 99).shape == grid("cat").shape and grid("").shape == grid("cat").shape
    np.testing.assert_array_equal(grid("one two three four five " * 9), grid("one two three four five " * 10))


def test_frames_of_the_forward_process_have_their_gammas_beneath(tmp_path, monkeypatch):
    written, draw = [], PIL.ImageDraw.ImageDraw.multiline_text
    monkeypatch.setattr(
        PIL.ImageDraw.ImageDraw,
        "multiline_text",
        lambda self, xy, text, **options: written.append(text) or draw(self, xy, text, **options),
    )
    save_forward_process(torch.zeros(2, 1, 8, 8), LinearSchedule(-8.0, 7.96), tmp_path / "forward_process.png", num_times=5)
    gammas = ["γ = −8.0", "γ = −4.0", "γ = 0.0", "γ = 4.0", "γ = 8.0"]
    assert written[:-1] == 2 * gammas and written[-1].startswith("From data to noise.")
    picture = np.asarray(PIL.Image.open(tmp_path / "forward_process.png"))
    title = 4 + 14 * (written[-1].count("\n") + 1)
    assert picture.shape == (title + 2 * (72 + 18), 5 * 72, 3)
    for frame in np.split(picture[title : title + 90], 5, axis=1):
        assert frame[72:].max() > 200 and frame[72:, -1].max() == 0  # there is text, and it isn't cut


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: figures.append(self) or save(self, path, **options))
    return figures


@pytest.mark.parametrize(("unit", "offset"), [(BITS_PER_DIM, 1.8), (NATS_PER_DIM, -1.8)])
def test_the_axis_of_a_training_curve_follows_the_data(unit, offset, tmp_path, drawn):
    """From far above, or not from above at all; with no more room than the curve takes after a tenth of the steps."""
    training = [{"step": step, unit.name: offset + 900 / step**2} for step in range(1, 1001)]
    validation = [{"step": step, unit.name: offset + 0.01, "standard_error": 0.02} for step in (0, 500, 1000)]
    validation[0][unit.name] = 25.0
    save_training_curve(training, validation, tmp_path / "curve.png", unit)
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert offset - 0.03 < low < offset - 0.01 and offset + 0.09 < high < offset + 0.11
    assert axes.get_xlim() == (0, 1000) and axes.get_xlabel() == "training step" and unit.label in axes.get_ylabel()
    assert [text.get_text()[:8] for text in axes.get_legend().get_texts()] == ["training", "held-out"]


def test_a_training_curve_of_a_single_step_is_drawn(tmp_path, drawn):
    bound = {"step": 1, "bits_per_dim": 2.0, "standard_error": 0.0}
    save_training_curve([bound], [bound], tmp_path / "curve.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 2 < high


def test_plots_say_what_they_show(tmp_path, drawn):
    records = [{"step": step, "gammas": torch.linspace(-8 - step / 100, 4, 101).tolist()} for step in (0, 50, 100)]
    save_noise_schedule(records, tmp_path / "schedule.png")
    profile = {"gammas": [-8.0, 0.0, 4.0], "bits_per_dim": [1.0, 0.1], "standard_error": [0.1, 0.01]}
    save_loss_profiles({"T = 5": profile}, tmp_path / "profile.png")
    for axes in (axes for figure in drawn for axes in figure.axes):
        assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert legend == ["before training", "in between", "after 100 steps"]


def test_bits_are_shown_beneath_their_images_on_one_scale(tmp_path, drawn):
    images, bits = torch.rand(3, 3, 4, 5), torch.rand(3, 3, 4, 5)
    save_bits_maps(images, bits, tmp_path / "bits.png")
    panels = drawn[0].axes
    *panels, bar = panels
    for image, of_image, above, below in zip(images, bits, panels[:3], panels[3:]):
        np.testing.assert_array_equal(above.images[0].get_array(), (image.permute(1, 2, 0) * 255).round())
        np.testing.assert_array_equal(below.images[0].get_array(), of_image[0] + of_image[1] + of_image[2])
        assert below.images[0].get_clim() == (0, pytest.approx(bits.sum(1).max().item()))
        assert below.get_xlabel() == f"{of_image.sum().item():.0f} bits\n{of_image.mean().item():.2f} bits/dim"
    assert bar.get_ylabel() == "bits per pixel" and "bits" in drawn[0].get_suptitle()
    save_bits_maps(images[:1], bits[:1] - 3, tmp_path / "nats.png", NATS_PER_DIM)
    assert drawn[1].axes[1].images[0].get_clim()[0] < -3 and "nats/dim" in drawn[1].axes[1].get_xlabel()
    save_bits_maps(images, bits, tmp_path / "rows.png", columns=2)
    above, nothing, below, _, _ = drawn[2].axes[4:]
    np.testing.assert_array_equal(above.images[0].get_array(), (images[2].permute(1, 2, 0) * 255).round())
    np.testing.assert_array_equal(below.images[0].get_array(), bits[2].sum(0))
    assert not nothing.images and not nothing.get_frame_on()
