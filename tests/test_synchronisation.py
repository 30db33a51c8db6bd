"""Nothing in a loop waits for the device. On the meta device there are no numbers, so that reading one is an error."""

from contextlib import nullcontext

import pytest
import torch

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel


@pytest.fixture
def vdm(monkeypatch) -> VDM:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # there is none of the meta device
    unet = VDMUNet2DModel(8, 3, block_channels=8, layers_per_side=1, norm_num_groups=4)
    return VDM(unet, LearnedMonotoneSchedule(num_features=8))


def test_training_reads_one_number_a_step_before_the_denoiser_runs(vdm, monkeypatch):
    done = []
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: done.append("read") or 0.01)
    vdm.unet.register_forward_pre_hook(lambda *_: done.append("denoiser"))
    vdm.to("meta")
    images = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="meta")
    for _ in range(3):
        vdm(images).objective.mean().backward()
    assert done == ["read", "denoiser"] * 3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_reads_none(vdm, eta):
    pipe = vdm.to_pipeline()
    pipe.unet.to("meta")
    images = pipe(4, num_inference_steps=5, eta=eta, output_type="latent").images
    assert images.device.type == "meta"


def test_a_number_can_t_be_read():
    """What the other tests rely on."""
    tensor = torch.ones(1, device="meta")
    for read in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, bool, float, torch.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(tensor)
