"""The same model whatever the number of processes and batches that the images of a step come from."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from conftest import TINY
from paths import SCRIPT
from processes import Ranks, configuration, shard_models, train_vdm_with
from torch.distributed.tensor import DTensor

from vdm_diffusers import VDM, LearnedMonotoneSchedule
from vdm_diffusers import train as train_command
from vdm_diffusers.data import load_digits
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.model_building import build_vdm


STEPS = 20


class GivenDraws(VDM):
    """Times and noise of an image are functions of the image, whichever process it comes to."""

    def forward(self, images, condition=None, times=None):
        generators = [torch.Generator().manual_seed(_hash(image)) for image in images]
        times = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
        noise = torch.stack([torch.randn(2, *images.shape[1:], generator=g, dtype=torch.float64) for g in generators], dim=1)
        draws = (times.to(self._dtype), noise.to(self._dtype))
        return super().forward(images, condition, *draws)


class RecordedDraws(VDM):
    """Keeps what it is given and draws itself."""

    def forward(self, images, condition=None, times=None):
        self.times, self.noise = times, torch.randn(2, *images.shape, generator=torch.default_generator)
        return super().forward(images, condition, times, self.noise)


def _hash(image: torch.Tensor) -> int:
    return int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:6])


def _options(folder: Path, **options) -> dict:
    fixed = {
        "output_dir": str(folder),
        "dropout": 0.0,
        "max_train_steps": STEPS,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 5,
    }
    never = dict.fromkeys(("logging_steps", "validation_steps", "checkpointing_steps"), 10**6)
    return TINY | fixed | never | {"learning_rate": 1e-3, "schedule_learning_rate": 1e-2, "gamma_min": -8.0} | options


def _trainer(kind: type[VDM], options: dict, dtype: torch.dtype = torch.float32) -> Trainer:
    config = TrainingConfig(**options)
    accelerator = train_command.build_accelerator(config)
    torch.manual_seed(0)
    data = load_digits()
    vdm = build_vdm(config, data).to(dtype)
    vdm.__class__ = kind
    train_command.set_seed(0, device_specific=True)
    return Trainer(accelerator, config, vdm, data)


def train_with_given_draws(
    folder: Path,
    batch_size: int,
    accumulation: int,
    prepare: Callable | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Leaves parameters, moving average, learning rate and gradient norms of every process.

    In float64, so that parameters without effect, such as the bias of an attention's keys, are not rounding errors alone.
    """
    if prepare is not None:
        prepare()
    options = _options(folder, train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    trainer = _trainer(GivenDraws, options, dtype)
    batches = trainer._batches()
    for _ in range(STEPS):
        trainer._optimizer_step(islice(batches, accumulation))
    result = {"learning_rate": trainer.lr_scheduler.get_last_lr(), "held": _num_elements(trainer.vdm)}
    result["gradient_norms"] = [moments[-1].item() for moments in trainer.not_reduced]
    result["parameters"] = trainer.placement.whole_model().state_dict()
    with trainer._averaged_weights() as vdm:
        result["average"] = copy.deepcopy(vdm.state_dict())
    torch.save(result, folder.parent / f"{folder.name}-{trainer.accelerator.process_index}.pt")


def _num_elements(vdm: VDM) -> int:
    """What this process holds of the denoiser's parameters."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in vdm.unet.parameters())


def train_with_own_draws(folder: Path) -> None:
    """Leaves the times and noise of one step of every process."""
    trainer = _trainer(RecordedDraws, _options(folder, train_batch_size=16))
    trainer._optimizer_step(islice(trainer._batches(), 1))
    draws = {"times": trainer.vdm.times, "noise": trainer.vdm.noise}
    torch.save(draws, folder.parent / f"draws-{trainer.accelerator.process_index}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """One process, one batch of 32."""
    ranks = Ranks(train_with_given_draws, folder / "alone", 32, 1, log=folder / "log")
    assert ranks.join() == [0], (folder / "log").read_text()
    return torch.load(folder / "alone-0.pt")


@pytest.mark.parametrize(
    ("num_processes", "batch_size", "accumulation", "prepare"),
    [(2, 16, 1, None), (1, 16, 2, None), (2, 8, 2, None), (2, 8, 2, shard_models)],
    ids=["processes", "batches", "both", "both, sharded"],
)
def test_processes_and_batches_add_up_to_the_same_model(folder, alone, num_processes, batch_size, accumulation, prepare):
    name, log = f"{num_processes}x{batch_size}x{accumulation}{prepare is not None}", folder / "log"
    arguments = (folder / name, batch_size, accumulation, prepare)
    ranks = Ranks(train_with_given_draws, *arguments, num_processes=num_processes, log=log)
    assert ranks.join() == [0] * num_processes, (folder / "log").read_text()
    before = LearnedMonotoneSchedule(-8.0, 5.0).state_dict()
    for rank in range(num_processes):
        result = torch.load(folder / f"{name}-{rank}.pt")
        assert result["learning_rate"] == alone["learning_rate"]
        assert (result["held"] < 0.6 * alone["held"]) == (prepare is shard_models)
        for kind in ("parameters", "average"):
            assert result[kind].keys() == alone[kind].keys()
            for key, expected in alone[kind].items():
                torch.testing.assert_close(result[kind][key], expected, rtol=1e-5, atol=1e-9, msg=f"{kind}/{key}")
        for key, value in before.items():
            assert not torch.equal(result["parameters"][f"noise_schedule.{key}"], value)


def test_two_processes_share_stratified_times_and_draw_noises_of_their_own(folder):
    ranks = Ranks(train_with_own_draws, folder / "own", num_processes=2, log=folder / "log")
    assert ranks.join() == [0, 0], (folder / "log").read_text()
    first, second = (torch.load(folder / f"draws-{rank}.pt") for rank in range(2))
    for draws in (first, second):
        assert sorted((draws["times"] * 16).floor().int().tolist()) == list(range(16))
    assert sorted((torch.cat([first["times"], second["times"]]) * 32).floor().int().tolist()) == list(range(32))
    assert not torch.isclose(first["noise"], second["noise"]).any(dim=(0, 2, 3, 4)).all()
    correlation = torch.corrcoef(torch.stack([first["noise"].flatten(), second["noise"].flatten()]))[0, 1]
    assert abs(correlation) < 5 / first["noise"].numel() ** 0.5


def test_gradients_of_both_objectives_scale_with_the_loss():
    """Dividing by accumulated batches, and scaling for half precision, multiply the loss."""
    config = TrainingConfig(**_options(Path("out")))
    gradients = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        vdm = build_vdm(config, load_digits())
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.AdamW(vdm.parameters())
        images = torch.stack([load_digits().train[i]["images"] for i in range(8)])
        scaler.scale(vdm(images).objective.mean()).backward()
        scaler.unscale_(optimizer)
        gradients.append({name: parameter.grad for name, parameter in vdm.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "num_machines", "num_processes"),
    [
        ("one_machine", "MULTI_GPU", 1, 8),
        ("several_machines", "MULTI_GPU", 8, 64),
        ("fsdp", "FSDP", 1, 8),
    ],
)
def test_configurations_of_the_documentation_are_ones_of_accelerate(name, kind, num_machines, num_processes):
    config = load_config_from_file(configuration(name))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (num_machines, num_processes, "bf16")
    assert config.distributed_type == kind


@pytest.mark.parametrize("library", ["DeepSpeed", "Megatron-LM"])
def test_other_libraries_are_refused_before_accelerate_imports_them(train, tmp_path, monkeypatch, library):
    monkeypatch.setenv(f"ACCELERATE_USE_{library.upper().replace('-', '_')}", "true")
    refused = f"accelerate is configured for {library}, but only FSDP version 2 divides .* `docs/accelerate/fsdp.yaml`"
    with pytest.raises(SystemExit, match=refused):
        train()
    assert not (tmp_path / "out").exists()


def test_version_1_of_fsdp_is_refused_before_anything_happens(train, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(SystemExit, match="accelerate is configured for FSDP version 1, but only FSDP version 2 divides"):
        train()
    assert not (tmp_path / "out").exists()


def test_options_that_shards_can_not_follow_are_refused_before_anything_happens(tmp_path):
    options = {"output_dir": tmp_path / "out", "optimizer": "adamw_8bit", "torch_compile": True}
    ranks = Ranks(train_vdm_with, options, shard_models, num_processes=2, log=tmp_path / "log")
    assert ranks.join() == [1, 1]
    assert "can't be trained with `--optimizer adamw_8bit`, `--torch_compile`: leave it out." in ranks.log.read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_trains_on_two_processes(tmp_path):
    options = TINY | {"output_dir": tmp_path / "out", "train_batch_size": 16, "checkpointing_steps": 6}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launch = [*torchrun, "--nproc_per_node", "2", SCRIPT, *flags]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, capture_output=True, env=environment)
    states = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/random_states_*.json"))]
    assert len(states) == 2 and states[0]["torch"] != states[1]["torch"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["bits_per_dim"] > 0
