"""`--dry_run`: what it says a run takes is what the run takes, and nothing is written."""

import shutil
from collections import namedtuple

import pytest
import torch
from loopback_hub import TOKEN

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel
from vdm_diffusers.data import load_digits
from vdm_diffusers.memory import activation_bytes
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.planning import describe_plan, in_units, needs_of


def files_below(folder) -> set:
    return set(folder.rglob("*"))


def test_a_dry_run_prints_the_plan_and_writes_nothing(train, tmp_path, capsys):
    train("--dry_run", max_train_steps=1870, label_column="label", train_batch_size=16, gradient_accumulation_steps=5)
    printed = capsys.readouterr().out
    for line in (
        "digits: 1,500 images to train on, 297 held out; 1×8×8, 17 levels, 10 classes",
        "LearnedMonotoneSchedule, 3,074 parameters",
        "1,870 of 80 images: 1 processes × batch 16 × 5, 103.9 epochs",
        "free",
    ):
        assert line in printed
    assert not files_below(tmp_path)


def test_a_dry_run_refuses_what_a_run_would(train, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="takes 2000 images a step, but 'digits' has 1500"):
        train("--dry_run", train_batch_size=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100_000))
    for flags in ((), ("--dry_run",)):
        with pytest.raises(SystemExit, match="is on a disk with 97.7 KiB free, but the run keeps .* there: a checkpoint takes"):
            train(*flags)
    assert not files_below(tmp_path)


def test_a_dry_run_finds_a_token_missing_and_creates_no_repository(hub, train, capsys):
    with pytest.raises(SystemExit, match="`--push_to_hub` finds no one to upload for: .*hf auth login"):
        train("--dry_run", "--push_to_hub")
    train("--dry_run", "--push_to_hub", hub_token=TOKEN)
    assert "out, end" in capsys.readouterr().out and not hub.repositories


def test_a_checkpoint_takes_what_was_said(train, tmp_path):
    train(max_train_steps=1, block_channels=64, max_validation_images=2)
    said = needs_of(TrainingConfig(), VDM.from_pretrained(tmp_path / "out")).checkpoint
    written = sum(path.stat().st_size for path in (tmp_path / "out" / "checkpoint-1").iterdir())
    assert said < written < 1.05 * said  # names, history, random states


def test_processes_share_the_memory_of_a_sharded_model():
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4)
    vdm, data = VDM(unet, LearnedMonotoneSchedule(), num_levels=17), load_digits()
    needs = needs_of(TrainingConfig(), vdm)
    whole, shared = (
        describe_plan(TrainingConfig(), data, vdm, 4, torch.device("cpu"), sharded).replace("\n", " ")
        for sharded in (False, True)
    )
    assert f"memory  {in_units(needs.state)} for weights" in whole
    assert f"memory  {in_units(needs.state / 4)} for shards of weights" in shared
    copied = f"; {in_units(needs.checkpoint)} of the CPU's on the main process while a checkpoint is written"
    assert copied in whole and copied not in shared


@pytest.mark.parametrize("options", [{}, {"dropout": 0.0}, {"num_class_embeds": 3}])
def test_activations_take_what_was_said(options):
    """Or a little less: without numbers PyTorch attends by a formula that keeps more, and convolves in another layout."""
    torch.manual_seed(0)
    unet = VDMUNet2DModel(8, 1, block_channels=16, layers_per_side=2, norm_num_groups=4, fourier_powers=(2, 3), **options)
    kept, own = {}, {parameter.data_ptr() for parameter in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        labels = torch.zeros(16, dtype=torch.long) if "num_class_embeds" in options else None
        output = unet(torch.randn(16, 1, 8, 8), torch.rand(16), class_labels=labels, return_dict=False)[0]
    assert output.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
    said = activation_bytes(unet, 16)
    assert measured <= said <= 1.07 * measured


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 * 2**30, "5 GiB"), (3 * 2**40, "3 TiB")])
def test_units(num_bytes, text):
    assert in_units(num_bytes) == text
