"""Shared fixtures: a fixed seed for every test, the parametrised schedules and prediction types, a tiny training run, a Hub."""

import sys
from collections.abc import Iterator

import huggingface_hub
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from cases import PREDICTION_TYPES, SCHEDULES
from hypothesis import settings
from loopback_hub import LoopbackHub
from paths import ROOT

from vdm_diffusers import train as train_command
from vdm_diffusers.noise_schedules import NoiseSchedule
from vdm_diffusers.training import bits_map


TINY = {
    "block_channels": 8,
    "layers_per_side": 1,
    "norm_num_groups": 4,
    "train_batch_size": 8,
    "max_train_steps": 6,
    "logging_steps": 2,
    "validation_steps": 3,
    "validation_repeats": 1,
    "max_validation_images": 20,
    "final_validation_repeats": 1,
    "checkpointing_steps": 3,
    "num_samples": 3,
    "num_inference_steps": 3,
    "lr_scheduler": "constant",
    "report_to": "none",
}

settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Training runs, which take the longest, come first, so that all workers end together."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param()


@pytest.fixture(params=PREDICTION_TYPES)
def prediction_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Runs `train_vdm.py` in this process with tiny options; its folder is `tmp_path / "out"` unless another is given.

    An option that is `None` is left out."""
    monkeypatch.setattr(bits_map, "NUM_IMAGES", 1)
    monkeypatch.setattr(bits_map, "NUM_REPEATS", 2)

    def run(*arguments: str, **options) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state() if hasattr(state, "_reset_state") else None
        options = TINY | {"output_dir": tmp_path / "out"} | options
        given = {name: value for name, value in options.items() if value is not None}
        flags = [part for name, value in given.items() for part in (f"--{name}", *str(value).split())]
        monkeypatch.setattr(sys, "argv", ["train_vdm.py", *flags, *arguments])
        train_command.main()

    return run


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[LoopbackHub]:
    """This process, and those it starts, know this Hub alone, with an empty cache and no token."""
    with LoopbackHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        for name, value in (environment | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        constants = {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
        for name, value in (constants | {"HF_TOKEN_PATH": str(tmp_path / "home" / "token")}).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        if hasattr(huggingface_hub.utils, "reset_sessions"):  # below 1.0, where a session that was made offline stays so
            huggingface_hub.utils.reset_sessions()
        yield hub
