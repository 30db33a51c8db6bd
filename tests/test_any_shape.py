"""Samples of any number of dimensions: losses, bounds, likelihoods and sampling know no images."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import ModelMixin, UNet1DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.utils.data import Dataset

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMPipeline
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood
from vdm_diffusers.scheduling.beta_chains import chain_gammas
from vdm_diffusers.timestep_maps import AffineTimesteps


class Flat(ModelMixin, ConfigMixin):
    """A denoiser of 2×2×6 numbers that doesn't care how they are laid out."""

    @register_to_config
    def __init__(self, in_channels: int, sample_size: tuple[int, ...]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(24, 24, generator=generator) / 10)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        told = sample.flatten(1) + (timestep / 1000).to(sample).expand(len(sample))[:, None]
        return (torch.tanh(told @ self.weight).reshape(sample.shape),)


class Volumes(ModelMixin, ConfigMixin):
    """A small denoiser of three-dimensional samples."""

    @register_to_config
    def __init__(self, in_channels: int = 2, sample_size: int | tuple[int, int, int] = 4):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv3d(in_channels + 1, 8, 3, padding=1), nn.Conv3d(8, in_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        told = (timestep / 1000).to(sample).expand(len(sample)).reshape(-1, 1, 1, 1, 1).expand_as(sample[:, :1])
        return (self.conv_out(torch.tanh(self.conv_in(torch.cat([sample, told], dim=1)))),)


def waves(time_embedding_type: str) -> UNet1DModel:
    blocks = {"down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"), "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip")}
    channels = {"in_channels": 1, "out_channels": 1, "extra_in_channels": 8, "block_out_channels": (8, 32)}
    return UNet1DModel(16, **channels, **blocks, time_embedding_type=time_embedding_type, time_embedding_dim=8)


MODELS = {
    "one dimension, told up to 1": (partial(waves, "fourier"), AffineTimesteps(-8.0, 5.0, num_train_timesteps=1), (1, 16)),
    "one dimension": (partial(waves, "positional"), None, (1, 16)),
    "three dimensions": (Volumes, None, (2, 4, 4, 4)),
}
"""Fourier features of a time, the default of `UNet1DModel`, are of one in [0, 1]."""


class Samples(Dataset):
    def __init__(self, samples: Tensor):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.samples[index]}


@pytest.mark.parametrize(("make", "timestep_map", "shape"), MODELS.values(), ids=MODELS.keys())
def test_models_of_other_shapes_train_evaluate_and_sample(make, timestep_map, shape, tmp_path):
    vdm = VDM(make(), LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17, timestep_map=timestep_map)
    data = torch.randint(7, 10, (8, *shape))
    optimizer, losses = torch.optim.Adam(vdm.parameters(), lr=3e-3), []
    for step in range(20):
        loss = vdm(data, generator=torch.Generator().manual_seed(step)).objective.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-3:]) < 0.85 * losses[0]
    bound = variational_bound(vdm, Samples(data[:4]), num_repeats=2)
    assert bound.bits_per_dim < losses[0] and bound.interval_95[0] < bound.bits_per_dim
    assert ode_likelihood(vdm, Samples(data[:2]), tolerance=10.0).max_evaluations > 0

    pipe = vdm.to_pipeline()
    if isinstance(vdm.unet, UNet1DModel):
        pipe.save_pretrained(tmp_path)
        pipe = VDMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert not pipe.has_pictures
    call = {"batch_size": 2, "num_inference_steps": 3}
    images = {
        kind: pipe(output_type=kind, generator=torch.Generator().manual_seed(0), **call).images
        for kind in ("np", "pt", "latent")
    }
    assert images["pt"].shape == images["latent"].shape == (2, *shape)
    np.testing.assert_array_equal(np.moveaxis(images["np"], -1, 1), images["pt"].numpy())
    with pytest.raises(ValueError, match=f"PIL has no pictures of {len(shape) - 1} dimensions: take arrays by"):
        pipe(**call)
    levels = (images["np"] * 16).round().astype(np.uint8)
    latents = pipe.encode(levels, tolerance=10.0)
    assert latents.shape == (2, *shape)
    assert pipe.decode(latents, tolerance=10.0, output_type="np").shape == levels.shape
    with pytest.raises(ValueError, match="`latents` have the shape"):
        pipe(latents=torch.zeros(2, 3, 5), output_type="np")


@pytest.mark.parametrize("shape", [(24,), (2, 12), (2, 2, 6), (2, 2, 3, 2)])
def test_numbers_don_t_depend_on_how_a_sample_is_laid_out(shape):
    data = torch.randint(0, 17, (4, 24), generator=torch.Generator().manual_seed(0))

    def numbers(shape: tuple[int, ...]) -> list[float]:
        vdm = VDM(Flat(shape[0], shape[1:]), LinearSchedule(-6.0, 4.0), num_levels=17).eval()
        samples = Samples(data.reshape(4, *shape))
        ddpm = DDPM(vdm.unet, chain_gammas(torch.linspace(0.99, 0.05, 8)), num_levels=17)
        pipe = vdm.to_pipeline()
        pipe.set_progress_bar_config(disable=True)
        call = {"batch_size": 2, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)}
        figures = [
            variational_bound(vdm, samples).per_dim,
            ddpm_bound(ddpm, samples).per_dim,
            ode_likelihood(vdm, samples, trace="exact", tolerance=0.1).per_dim,
        ]
        return figures + pipe(output_type="latent", **call).images.flatten().tolist()

    assert numbers(shape) == pytest.approx(numbers((1, 4, 6)), rel=1e-5, abs=1e-6)
