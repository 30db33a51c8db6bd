"""Runs of a few hundred steps on the digits, one of every kind, and on two processes: what they learn."""

import math

import pytest
import torch
from processes import Ranks, train_vdm_with

from benchmarks.training_options import RUNS, distance, prepare, run, sample, write_digits
from vdm_diffusers import VDM
from vdm_diffusers.data import load_digits


HISTOGRAM = 2.4307  # of every pixel, which train_vdm.py prints and test_likelihood.py computes
UNIFORM = math.log2(17)
NORMAL = 0.5 * math.log(2 * math.pi * math.e)
"""The differential entropy of a standard normal variable: what latents of unit variance cost without a model, in nats."""

BOUNDS = dict.fromkeys(("ELBO", "class-conditional", "stream", "paper's augmentation, 2,000 steps"), HISTOGRAM)
BOUNDS |= {"latents": NORMAL, "latents, cached": NORMAL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_model_learns_the_digits(folder, name):
    metrics = run(folder, name, steps=300)
    bound = metrics["nats_per_dim" if "latents" in name else "bits_per_dim"]
    assert bound < BOUNDS.get(name, UNIFORM)
    labels = {"class_labels": [i % 10 for i in range(200)]} if name == "class-conditional" else {}
    images = sample(metrics["output_dir"], 200, **labels)
    digits = load_digits().train
    pixels = torch.stack([digits[i]["images"] for i in range(200)]).flatten(1)
    independent = torch.stack([column[torch.randperm(200)] for column in pixels.T], dim=1).reshape(-1, 1, 8, 8) / 16
    assert distance(images) < 0.7 * distance(independent)  # whose every pixel is distributed as it should be


@pytest.mark.slow
def test_two_processes_read_one_stream_and_go_on_with_it(tmp_path):
    write_digits(tmp_path / "digits")
    options = {"train_data_dir": tmp_path / "digits", "streaming": True, "max_validation_images": 20, "num_levels": 17}
    options |= {"gamma_min": -8.0, "cache_dir": tmp_path / "cache", "shuffle_buffer_size": 10, "validation_steps": 100}

    def train(name: str, **others) -> None:
        log = tmp_path / f"{name}.log"
        codes = Ranks(train_vdm_with, options | {"output_dir": tmp_path / name} | others, num_processes=2, log=log).join()
        assert codes == [0, 0], log.read_text()

    train("whole")
    train("broken", max_train_steps=3)
    train("broken", resume_from_checkpoint="latest")
    whole, broken = (VDM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "broken"))
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
