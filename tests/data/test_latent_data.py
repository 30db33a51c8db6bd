"""Data sets of latents: the autoencoder's own, kept in a folder, and only those of these images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pipelines import vae, vqvae
from torch.utils.data import Dataset

from vdm_diffusers.data import ImageData, ImageDataset
from vdm_diffusers.data.fingerprints import fingerprint
from vdm_diffusers.data.latents import in_latent_space


def data(seed: int = 0, size: int = 16, channels: int = 3) -> ImageData:
    random = np.random.default_rng(seed)
    rows = [{"image": random.integers(0, 256, (size, size, channels)).astype(np.uint8), "label": i % 3} for i in range(12)]
    train, validation = ImageDataset(rows[:8], "image", "label"), ImageDataset(rows[8:], "image", "label")
    return ImageData(train, validation, (channels, size, size), num_levels=256, num_classes=3, name="noise")


def test_latents_are_the_autoencoder_s_own(tmp_path):
    model, images = vqvae().eval(), data()
    latent = in_latent_space(images, model, tmp_path / "latents")
    assert latent.shape == (3, 8, 8) and latent.num_levels == 256
    for ours, theirs in ((latent.train, images.train), (latent.validation, images.validation)):
        assert len(ours) == len(theirs)
        for i in range(len(ours)):
            x = theirs[i]["images"][None] / 127.5 - 1
            with torch.no_grad():
                expected = model.encode(x).latents[0] * model.config.scaling_factor
            torch.testing.assert_close(ours[i]["images"], expected, rtol=1e-4, atol=1e-5)
            assert ours[i]["class_labels"] == theirs[i]["class_labels"]


class Told(Dataset):
    """Images that come with a vector."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return self.images[index] | {"conditioning": torch.tensor([index, 0.5])}


@pytest.mark.parametrize("folder", [None, "latents"])
def test_latents_keep_their_conditions(tmp_path, folder):
    images = data()
    images = replace(images, train=Told(images.train), validation=Told(images.validation))
    latent = in_latent_space(images, vae().eval(), folder and tmp_path / folder)
    for ours, theirs in ((latent.train, images.train), (latent.validation, images.validation)):
        for i in range(len(theirs)):
            assert torch.equal(ours[i]["conditioning"], theirs[i]["conditioning"])
            assert ours[i]["class_labels"] == theirs[i]["class_labels"]


def test_without_a_folder_training_images_stay_images():
    images = data()
    latent = in_latent_space(images, vae().eval())
    assert latent.train is images.train and latent.shape == (4, 8, 8)
    again = in_latent_space(images, vae().eval(), seed=0)
    assert not torch.equal(latent.validation[0]["images"], again.validation[0]["images"])  # another autoencoder


def test_kept_latents_are_read_again_not_encoded(tmp_path, monkeypatch):
    model, images = vae().eval(), data()
    first = in_latent_space(images, model, tmp_path / "latents")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()}
    second = in_latent_space(images, model, tmp_path / "latents")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()}
    for i in range(8):
        assert torch.equal(first.train[i]["images"], second.train[i]["images"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents"]


def test_latents_are_known_by_what_they_come_from(tmp_path):
    """Kept or not, and whatever rounding encoded them; not those of other images or of another autoencoder."""
    model, images = vae().eval(), data()
    known = fingerprint(in_latent_space(images, model, tmp_path / "latents"))
    assert fingerprint(in_latent_space(images, model)) == known != fingerprint(images)
    others = [
        in_latent_space(data(seed=1), model),
        in_latent_space(images, vae().eval()),
        in_latent_space(images, model, seed=1),
    ]
    assert known not in map(fingerprint, others)


def test_an_encoding_that_was_broken_off_begins_anew(tmp_path, monkeypatch):
    model, images = vae().eval(), data()

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dumps", fail)
        in_latent_space(images, model, tmp_path / "latents")
    assert not (tmp_path / "latents").exists()
    assert len(in_latent_space(images, model, tmp_path / "latents").train) == 8


def test_latents_of_something_else_are_refused(tmp_path):
    model = vae().eval()
    in_latent_space(data(), model, tmp_path / "latents")
    for images, autoencoder, seed in ((data(seed=1), model, 0), (data(), vae().eval(), 0), (data(), model, 1)):
        with pytest.raises(ValueError, match="holds latents of other images or captions, or by another"):
            in_latent_space(images, autoencoder, tmp_path / "latents", seed=seed)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="holds something other than latents"):
        in_latent_space(data(), model, tmp_path / "thesis")


@pytest.mark.parametrize("images", [data(channels=1), data(size=15)], ids=["channels", "size"])
def test_images_that_an_autoencoder_can_t_have_are_refused(images):
    with pytest.raises(ValueError, match="is an autoencoder of images with 3 channels whose sides are multiples"):
        in_latent_space(replace(images, name="noise"), vae().eval())
