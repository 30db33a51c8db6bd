"""The scheduler files of published models: the images of DDPM and DDIM on the chain of the class that a file names."""

import copy
import json
import random

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from published_schedulers import CHAINS, NO_CHAINS
from torch import Tensor

from vdm_diffusers import VDMScheduler


NO_OPTION = {"UnCLIPScheduler": "linspace", "DPMSolverSinglestepScheduler": "linspace"}
"""The spacing of the classes that have one only."""


def stock(cls: type, config: dict):
    """A scheduler of diffusers with every value that the class named in `config` has, given or by default."""
    named = dict(getattr(diffusers, config["_class_name"]).from_config(config).config)
    named |= {"timestep_spacing": NO_OPTION[config["_class_name"]]} if config["_class_name"] in NO_OPTION else {}
    named |= {"prediction_type": "sample"} if config.get("predict_epsilon") is False else {}
    return cls.from_config(named | {"_use_default_values": []})


def sample(scheduler, learns_variance: bool, num_steps: int = 7, **step_kwargs) -> Tensor:
    """An image in [0, 1], `(2, 3, 4, 4)`, by something bounded, nonlinear and different at each timestep."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 4, generator=generator)
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        output = torch.tanh(2 * z.roll(1, -1)) * (0.7 + 0.3 * torch.cos(t / 100))
        output = torch.cat([output, torch.sin(3 * z)], dim=1) if learns_variance else output
        z = scheduler.step(output, t, z, generator=generator, **step_kwargs).prev_sample
    return (z / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", CHAINS)
def test_images_are_those_of_ddpm_and_ddim(name):
    config = CHAINS[name]
    learns_variance = config.get("variance_type") == "learned_range"
    expected = sample(stock(DDPMScheduler, config), learns_variance)
    assert expected.std() > 0.05
    torch.testing.assert_close(sample(VDMScheduler.from_config(config), learns_variance), expected, rtol=0, atol=1e-5)
    for eta in (0.0, 0.5):
        expected = sample(stock(DDIMScheduler, config), learns_variance=False, eta=eta)
        ours = sample(VDMScheduler.from_config(config), learns_variance=False, eta=eta)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_a_file_and_the_scheduler_that_it_makes_are_one_configuration(name, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(CHAINS[name]))
    from_file = VDMScheduler.from_pretrained(tmp_path)
    from_file.save_pretrained(tmp_path / "again")
    again = VDMScheduler.from_pretrained(tmp_path / "again")
    for scheduler in (from_file, again):
        scheduler.set_timesteps(20)
    assert torch.equal(again.betas, from_file.betas) and torch.equal(again.timesteps, from_file.timesteps)
    assert dict(again.config) == {key: value for key, value in from_file.config.items() if key != "_use_default_values"}


def test_the_prior_of_kandinsky_visits_what_its_own_scheduler_does():
    config = CHAINS["kandinsky-2-1-prior"]
    own, ours = diffusers.UnCLIPScheduler.from_config(config), VDMScheduler.from_config(config)
    for scheduler in (own, ours):
        scheduler.set_timesteps(25)
    assert torch.equal(ours.timesteps, own.timesteps)
    torch.testing.assert_close(ours.alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize("name", NO_CHAINS)
def test_models_of_no_chain_are_refused(name):
    with pytest.raises(ValueError, match="only models of a variance-preserving chain can be sampled here"):
        VDMScheduler.from_config(NO_CHAINS[name])


VALUES = (
    None, True, False, 0, 1, -1, 3, 10**9, 2**31, 10**400, 0.5, -0.5, 1e300, float("nan"), float("inf"), "", "linear", "none",
    [], [0.5], [0.1, 0.2], [0.2, 0.1], [[0.1], [0.2, 0.3]], ["0.1"], [None], [float("nan")] * 2, {}, {"a": 1},
)  # fmt: skip


def mutated(config: dict, draw: random.Random) -> dict:
    """One to three values replaced by something else, or left out."""
    config = copy.deepcopy(config)
    names = sorted(VDMScheduler().config.keys() | config.keys())
    for name in draw.sample(names, draw.randint(1, 3)):
        if draw.random() < 0.2:
            config.pop(name, None)
        else:
            config[name] = draw.choice(VALUES)
    return config


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_work_or_are_refused_in_a_sentence(seed, tmp_path):
    draw = random.Random(seed)
    sources = [*CHAINS.values(), {"_class_name": "VDMScheduler", "gammas": [-8.0, 0.0, 5.0], "times": None}]
    for _ in range(60):
        config = mutated(draw.choice(sources), draw)
        (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
        try:
            scheduler = VDMScheduler.from_pretrained(tmp_path)
            scheduler.set_timesteps(3)
        except ValueError as error:
            assert "`" in str(error) or "chain" in str(error) or "table" in str(error), (config, error)
            assert len(str(error)) < 400
        else:
            z = torch.ones(1, 1, 2, 2)
            assert scheduler.step(z, scheduler.timesteps[0], z, eta=0.0).prev_sample.shape == z.shape


@pytest.mark.parametrize("text", ["[]", "1", "null", '"linear"'])
def test_a_file_without_a_configuration_is_refused(text, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(TypeError, match="must be a dictionary"):
        VDMScheduler.from_pretrained(tmp_path)
