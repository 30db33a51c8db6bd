"""Nothing in a loop waits for the device. On the meta device there are no numbers, so that reading one is an error."""

from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel
from vdm_diffusers.data import load_digits
from vdm_diffusers.data.decoding import AS_STORED, Decoder
from vdm_diffusers.data.streaming import ImageStream, StreamLoader
from vdm_diffusers.train import build_accelerator
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.checkpoints.copying import copy_to_cpu
from vdm_diffusers.training.config import TrainingConfig


ARRAY = datasets.Array2D((4, 4), "uint8")


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


def waits(monkeypatch) -> list[bool]:
    """Whether each copy to a device from now on is waited for."""
    copied, to = [], torch.Tensor.to

    def noted(tensor, *args, **kwargs):
        copied.append(not kwargs.get("non_blocking", False))
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    return copied


@pytest.fixture
def on_meta(monkeypatch) -> Accelerator:
    accelerator = build_accelerator(TrainingConfig())
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", torch.device("meta"))
    return accelerator


def test_images_are_sent_from_pinned_memory_as_integers(vdm, on_meta, tmp_path, monkeypatch):
    vdm = VDM(VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4), vdm.noise_schedule, num_levels=17)
    loader = Trainer(on_meta, TrainingConfig(output_dir=str(tmp_path)), vdm, load_digits()).loader
    copied = waits(monkeypatch)
    images = next(iter(loader))["images"]
    assert images.device.type == "meta" and images.dtype == torch.uint8
    assert loader.pin_memory and copied and not any(copied)


def test_images_of_a_stream_are_too(on_meta, monkeypatch):
    rows = datasets.Dataset.from_dict({"image": np.zeros((8, 4, 4), np.uint8)}, features=datasets.Features(image=ARRAY))
    stream = ImageStream(rows.to_iterable_dataset(), "image", None, ((1, 4, 4), 256), 8, 0, Decoder(AS_STORED, "uint8"))
    loader, copied = StreamLoader(on_meta, stream, 4, 0), waits(monkeypatch)
    (batch,) = loader.take(1)
    assert batch["images"].device.type == "meta" and batch["images"].dtype == torch.uint8
    assert loader.loader.pin_memory and copied and not any(copied)


def test_copying_a_state_waits_once_at_the_end(monkeypatch):
    state, copied, waited = {"a": torch.ones(3), "b": [torch.zeros(2), {"lr": 1e-3}]}, waits(monkeypatch), []
    device = SimpleNamespace(synchronize=lambda: waited.append(len(copied)))
    monkeypatch.setattr(torch, "get_device_module", lambda device_type: device)
    copy_to_cpu(state, torch.device("cuda"))
    assert copied == [False, False] and waited == [2]


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
