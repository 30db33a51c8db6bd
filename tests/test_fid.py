"""FID and KID of a pipeline: torchmetrics' figures against SciPy's matrix root and plain loops, by a small extractor."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, LDMPipeline
from scipy.linalg import sqrtm
from tiny_pipelines import unet, vqvae
from torch import Tensor, nn

from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel, fid
from vdm_diffusers.fid import FidOptions, measure
from vdm_diffusers.image_quality import distances


pytest.importorskip("torchmetrics")


class Extractor(nn.Module):
    """Four features of an image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.sin(torch.arange(4 * 192.0)).reshape(192, 4) / 192)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.float().flatten(1) / 64 @ self.weight)


def pictures(folder: Path, mode: str = "RGB", size: int = 8) -> Path:
    for split, number in (("train", 2), ("test", 12)):
        (folder / split).mkdir(parents=True)
        for index in range(number):
            PIL.Image.effect_noise((size, size), 40 + index).convert(mode).save(folder / split / f"{index}.png")
    return folder


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def among(z):
        return np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return among(x) + among(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.fixture
def options(tmp_path):
    """Of a stock pipeline with twelve pictures, and what is to be changed of them."""

    def build(mode: str = "RGB", **changes) -> FidOptions:
        DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=10, beta_end=0.4)).save_pretrained(tmp_path / "model")
        data = {"train_data_dir": str(pictures(tmp_path / "images", mode))}
        given = {"pretrained_model_name_or_path": str(tmp_path / "model"), "num_inference_steps": 3, "device": "cpu"}
        return FidOptions(**given | data | {"batch_size": 5, "num_images": 9, "kid_subsets": 1, "seed": 7} | changes)

    return build


@pytest.mark.parametrize("scheduler", [None, "DDIMScheduler"])
def test_figures_are_those_of_scipy_and_of_plain_loops(options, scheduler, tmp_path):
    settings, extractor = options(scheduler=scheduler, kid_subset_size=9, max_images=9), Extractor()
    result = measure(settings, extractor, "small")
    images = sorted((tmp_path / "images" / "test").iterdir())[:9]
    order = [np.asarray(PIL.Image.open(path)) for path in images]
    real = extractor(torch.from_numpy(np.stack(order)).permute(0, 3, 1, 2)).double().detach().numpy()

    pipe = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    made = [image for size in (5, 4) for image in pipe(size, generator, num_inference_steps=3).images]
    made = extractor(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)).double().detach().numpy()

    covariances = np.cov(real.T), np.cov(made.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert result["results"]["fid"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert result["results"]["kid"] == pytest.approx(unbiased_mmd(real, made), rel=1e-3, abs=1e-5)
    assert result["sampler"] == {"scheduler": scheduler or "DDPMScheduler", "num_inference_steps": 3}
    assert (result["num_images"], result["data"]["num_images"], result["seed"]) == (9, 9, 7)
    assert len(result["extractor"]["weights_sha256"]) == 64 and f"{result['results']['fid']:.4f}" in fid.table(result)


def test_classes_take_turns_and_grey_is_repeated(options, tmp_path):
    """An extractor that sees one channel alone sees the grey value."""
    denoiser = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, num_class_embeds=4)
    VDM(denoiser, LinearSchedule(-8.0, 5.0)).save_pretrained(tmp_path / "vdm")
    labels = []
    denoise = VDMUNet2DModel.forward

    def noticed(self, sample, timestep, class_labels=None, **kwargs):
        labels.append(class_labels.tolist())
        return denoise(self, sample, timestep, class_labels, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VDMUNet2DModel, "forward", noticed)
        settings = options("L", pretrained_model_name_or_path=str(tmp_path / "vdm"), num_inference_steps=1, num_images=7)
        result = measure(settings, Extractor(), "small")
    assert labels == [[0, 1, 2, 0, 1], [2, 0]] and result["data"]["shape"] == [1, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kid_subsets": 0}, "`kid_subsets` is 0, but must be at least 1"),
        ({"train_data_dir": None}, "Images to compare with are missing"),
        ({"scheduler": "UNet2DModel"}, "`scheduler` is 'UNet2DModel', which is no scheduler"),
        ({"pretrained_model_name_or_path": "nowhere"}, "'nowhere' could not be loaded"),
        ({"output_path": Path("nowhere", "x.json")}, "There is no folder 'nowhere'"),
    ],
)
def test_wrong_options_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(options(**changes), Extractor())


def test_latents_become_images_and_other_sizes_are_refused(options, tmp_path):
    LDMPipeline(vqvae(), unet(), DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    with pytest.raises(ValueError, match="makes images of 16×16, but those of the data are 8×8"):
        measure(options(pretrained_model_name_or_path=str(tmp_path / "ldm"), num_inference_steps=1), Extractor())


def test_inception_without_its_packages_is_refused(options, monkeypatch):
    monkeypatch.setattr(distances, "find_spec", lambda name: None)
    flags = ["--pretrained_model_name_or_path", "model", "--data_dir", "images"]
    with pytest.raises(SystemExit, match="Inception needs torch-fidelity and torchvision"):
        fid.main(flags)
