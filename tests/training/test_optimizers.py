"""Optimisers: groups, the fused one against the plain, and the one that needs another package."""

import sys
from types import SimpleNamespace

import pytest
import torch
from test_vdm import tiny_vdm

from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.optimizers import OPTIMIZERS, build_optimizer


def test_the_schedule_has_a_learning_rate_of_its_own_and_no_decay():
    vdm = tiny_vdm()
    denoiser, schedule = build_optimizer(TrainingConfig(learning_rate=1e-4, schedule_learning_rate=1e-2), vdm).param_groups
    assert (denoiser["lr"], denoiser["weight_decay"], denoiser["betas"]) == (1e-4, 0.01, (0.9, 0.99))
    assert (schedule["lr"], schedule["weight_decay"]) == (1e-2, 0.0)
    assert len(denoiser["params"]) + len(schedule["params"]) == len(list(vdm.parameters()))


def test_a_schedule_of_which_nothing_is_trained_has_no_group():
    vdm = tiny_vdm().requires_grad_(False)
    vdm.unet.requires_grad_(True)
    (denoiser,) = build_optimizer(TrainingConfig(), vdm).param_groups
    assert len(denoiser["params"]) == len(list(vdm.unet.parameters()))


def test_fused_adamw_makes_the_same_steps():
    images, ends = torch.randint(0, 16, (4, 2, 6, 6)), []
    for name in ("adamw", "adamw_fused"):
        torch.manual_seed(0)
        vdm = tiny_vdm().eval()
        optimizer = build_optimizer(TrainingConfig(optimizer=name, learning_rate=1e-3), vdm)
        for step in range(3):
            vdm(images, generator=torch.Generator().manual_seed(step)).objective.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(vdm.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


def test_eight_bits_are_those_of_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="`optimizer='adamw_8bit'` needs bitsandbytes: `pip install bitsandbytes`"):
        build_optimizer(TrainingConfig(optimizer="adamw_8bit"), tiny_vdm())
    optim = SimpleNamespace(AdamW8bit=torch.optim.AdamW)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=optim))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    assert len(build_optimizer(TrainingConfig(optimizer="adamw_8bit"), tiny_vdm()).param_groups) == 2


def test_every_optimizer_is_an_option(capsys):
    choices = TrainingConfig.__dataclass_fields__["optimizer"].type.__args__
    assert set(choices) == set(OPTIMIZERS)
