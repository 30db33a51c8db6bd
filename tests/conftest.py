"""Shared fixtures: a fixed seed for every test, and the parametrised schedules and prediction types."""

import pytest
import torch
from cases import PREDICTION_TYPES, SCHEDULES
from hypothesis import settings

from vdm_diffusers.noise_schedules import NoiseSchedule


settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param()


@pytest.fixture(params=PREDICTION_TYPES)
def prediction_type(request: pytest.FixtureRequest) -> str:
    return request.param
