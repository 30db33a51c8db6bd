"""Timesteps for samplers: local errors and distances in closed form, the search with its budget, and any pipeline."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from gaussian_model import COVARIANCE, GaussianDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from prompted_pipelines import SIZE, pixart_alpha, sd, sdxl
from tiny_pipelines import build

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.few_steps import for_images, timesteps
from vdm_diffusers.few_steps.__main__ import main
from vdm_diffusers.few_steps.distances import energy_distance, squared_distance
from vdm_diffusers.few_steps.sampling import Sampler, Trajectories
from vdm_diffusers.few_steps.timesteps import Scale, Search, plan, probed
from vdm_diffusers.few_steps.trajectories import local_errors
from vdm_diffusers.scheduling.any_timesteps import with_timesteps
from vdm_diffusers.timestep_maps import AffineTimesteps


def trajectories(latents: torch.Tensor, outputs: torch.Tensor, ends: torch.Tensor) -> Trajectories:
    return Trajectories(ends, len(latents), torch.empty(0), list(range(len(latents), 0, -1)), latents, outputs)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_local_errors_of_gaussian_data_are_their_closed_form(prediction_type):
    """x ~ N(0, s²): z_t = z_1 √(v_t / v_1) with v = α² s² + σ², and x̂ = α s² z / v."""
    gammas, end = torch.tensor([4.0, 1.0, -2.0]).double(), torch.tensor(-6.0).double()
    every, s2 = torch.cat([gammas, end[None]]), 0.3
    alpha, sigma = torch.sigmoid(-every).sqrt(), torch.sigmoid(every).sqrt()
    variance = alpha**2 * s2 + sigma**2
    start = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    z = (variance / variance[0]).sqrt().reshape(4, 1, 1, 1, 1) * start
    ratios = {"sample": alpha * s2 / variance, "epsilon": sigma / variance}
    ratios["v_prediction"] = alpha * ratios["epsilon"] - sigma * ratios["sample"]
    outputs = ratios[prediction_type].reshape(4, 1, 1, 1, 1) * z
    found = local_errors(trajectories(z[:3], outputs[:3], z[3]), gammas, end, prediction_type)
    for i in range(3):
        for j in range(i + 1, 4):
            reached = alpha[j] * ratios["sample"][i] + sigma[j] * ratios["epsilon"][i]
            exact = (variance[j] / variance[i]).sqrt()
            expected = (reached - exact).abs() * z[i].square().mean().sqrt()
            assert found[3 - j, 3 - i] == pytest.approx(expected.item(), rel=1e-10)
    assert found.tril().isinf().logical_or(torch.ones(4, 4).triu(1).bool()).all()


def test_distances_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 1, 3, generator=generator), torch.randn(9, 1, 3, generator=generator) + 1
    pairs = {(a, b): sum((p - q).norm().item() for p in a for q in b) for a, b in ((x, y), (x, x), (y, y))}
    expected = 2 * pairs[x, y] / 63 - pairs[x, x] / 42 - pairs[y, y] / 72
    assert energy_distance(x, y).value == pytest.approx(expected, rel=1e-6)
    squares = [(p - q).square().mean().item() for p, q in zip(x, y)]
    assert squared_distance(x, y[:7]).value == pytest.approx(sum(squares) / 7, rel=1e-6)
    repeats = [energy_distance(torch.randn(50, 2, generator=generator), torch.zeros(2, 2)) for _ in range(400)]
    values = torch.tensor([repeat.value for repeat in repeats])
    error = sum(repeat.standard_error for repeat in repeats) / 400
    assert error == pytest.approx(values.std().item(), rel=0.15)


class GaussianUNet(GaussianDenoiser):
    """The optimal denoiser of Gaussian data, as a pipeline has it; it counts the images that it is called with."""

    config = diffusers.configuration_utils.FrozenDict(sample_size=1, in_channels=3)
    device, dtype = torch.device("cpu"), torch.float64
    calls = 0

    def forward(self, sample, timestep, **kwargs):
        self.calls += len(sample)
        return super().forward(sample, timestep)


def gaussian_pipeline() -> VDMPipeline:
    unet = GaussianUNet(AffineTimesteps(-9.0, 8.0), "epsilon")
    pipe = VDMPipeline(unet, VDMScheduler(gamma_min=-9.0, gamma_max=8.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "VDMScheduler"])
def test_what_is_found_is_nearer_to_many_steps_and_costs_what_was_said(name):
    """For one sampler with fresh noise, and for deterministic ones also against the exact flow of Gaussian data."""
    pipe = gaussian_pipeline()
    make = VDMScheduler if name == "VDMScheduler" else getattr(diffusers, name)
    sampler = Sampler(pipe, make.from_config(pipe.scheduler.config))
    numbers, limit = [3, 5], 30_000
    planned = plan(probed(sampler), numbers, limit)
    assert planned.is_random == (name == "VDMScheduler")
    pipe.unet.calls = 0
    search = Search(sampler, planned)
    found = [search.best(number) for number in numbers]
    probes = 2 * sum(2 * number for number in numbers)
    assert pipe.unet.calls <= planned.calls + probes <= limit + probes
    for number, (own, best) in zip(numbers, found):
        assert len(own.timesteps) == len(best.timesteps) == number
        assert best.distance.value < 0.9 * own.distance.value
        if not planned.is_random:
            seeds = range(1000, 1200)
            ends = [sampler(choice.timesteps, seeds).ends.flatten(1).double() for choice in (own, best)]
            errors = [(x.T.cov() - COVARIANCE).norm() for x in ends]
            assert errors[1] < errors[0]


def test_too_few_calls_are_refused_with_the_number_that_is_needed():
    pipe = gaussian_pipeline()
    sampler = Sampler(pipe, EulerDiscreteScheduler.from_config(pipe.scheduler.config))
    with pytest.raises(ValueError, match=r"`num_draws` is 100, but timesteps for \[5\] steps need (\d|,)+\."):
        plan(probed(sampler), [5], 100)
    with pytest.raises(ValueError, match="`num_inference_steps` is 60, but few steps are compared with 60"):
        plan(probed(sampler), [5, 60], 10**9)


SCALES = {
    "whole": Scale(DDPMScheduler()),
    "fractional": Scale(VDMScheduler(gamma_min=-9.0, gamma_max=8.0)),
    "pure noise": Scale(DPMSolverMultistepScheduler(rescale_betas_zero_snr=True)),
}


@pytest.mark.parametrize("name", SCALES)
@given(
    places=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    shape=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_timesteps_fit_whatever_is_asked_for(name, places, shape):
    scale = SCALES[name]
    wanted = torch.tensor(sorted(places, reverse=True)).double() * (scale.high - scale.low) + scale.low
    fitted = scale.fit(wanted)
    if scale.is_whole:
        assert all(timestep == int(timestep) for timestep in fitted)
        assert all(later < timestep for timestep, later in zip(fitted, fitted[1:]))
    assert len(fitted) == len(places) and scale.low <= fitted[-1] <= fitted[0] <= scale.high
    reshaped = scale.reshape(fitted, shape)
    assert len(reshaped) == len(fitted) and reshaped[0] == pytest.approx(fitted[0], abs=1e-3)
    assert scale.low - 1e-6 <= reshaped[-1] and scale.reshape(fitted, [0.0, 0.0, 0.0]) == pytest.approx(fitted, abs=1e-3)


def with_prompts(name: str) -> diffusers.DiffusionPipeline:
    """A tiny pipeline that takes prompts, or labels."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    if name == "DiT":
        pipe = build(name, scheduler)
        pipe.transformer.eval()  # in training it drops labels
        return pipe
    return {"SD": sd, "SDXL": sdxl, "PixArt": pixart_alpha}[name](scheduler)


PROMPTS = ["a red cat", "a blue dog", "a dog"]
CALLS = {
    "SD": ({"prompt": PROMPTS}, SIZE | {"guidance_scale": 3.0}),
    "SDXL": ({"prompt": PROMPTS}, SIZE | {"guidance_scale": 3.0}),
    "DiT": ({"class_labels": [1, 7]}, {}),
    "PixArt": ({"prompt": PROMPTS}, SIZE | {"use_resolution_binning": False, "clean_caption": False}),
}
WITHOUT_US = """
import sys, torch
from diffusers import DPMSolverMultistepScheduler
scheduler = DPMSolverMultistepScheduler.from_pretrained(sys.argv[1], subfolder="scheduler")
scheduler.set_timesteps(timesteps=scheduler.config["few_step_timesteps"]["DPMSolverMultistepScheduler"]["3"])
print(*scheduler.timesteps.tolist())
assert "vdm_diffusers" not in sys.modules
"""


@pytest.fixture
def small(monkeypatch):
    """A search of few images against few steps."""
    for name, value in (("SEEDS", 6), ("SEARCHED", range(6)), ("HELD_OUT", range(6, 12)), ("TEACHER_STEPS", 12)):
        monkeypatch.setattr(timesteps, name, value)
    monkeypatch.setattr(for_images, "TEACHER_STEPS", 12)


@pytest.mark.parametrize("name", CALLS)
def test_any_pipeline_with_guidance(name, tmp_path, capsys, small):
    """The command runs, its lists load without us, and images are bit for bit those of the stock scheduler with them."""
    pipe, out = with_prompts(name), tmp_path / "out"
    pipe.save_pretrained(tmp_path / "model")
    (key, values), arguments = next(iter(CALLS[name][0].items())), CALLS[name][1]
    main(
        ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--output_dir", str(out), "--objective", "images"]
        + ["--scheduler", "DPMSolverMultistepScheduler", "--num_inference_steps", "3", "--num_draws", "300"]
        + ["--call_arguments", json.dumps({key: values} | arguments)]
    )
    printed = capsys.readouterr().out
    result = json.loads((out / "few_steps.json").read_text())
    own, found = result["results"]
    assert found["distance"]["value"] <= own["distance"]["value"] and f"{found['distance']['value']:.4g}" in printed
    assert (out / "few_steps.png").exists() and (out / "samples.png").exists()
    if name == "SD":  # the file of the others is the same but for its numbers
        done = subprocess.run([sys.executable, "-c", WITHOUT_US, str(out)], capture_output=True, text=True, check=True)
        assert list(map(int, done.stdout.split())) == found["timesteps"]

    def images(scheduler, **kwargs) -> torch.Tensor:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        kwargs |= {key: values[:2], "generator": torch.Generator().manual_seed(0), "output_type": "np"} | arguments
        return torch.as_tensor(pipe(**kwargs).images)

    kept = DPMSolverMultistepScheduler.from_pretrained(out, subfolder="scheduler")
    stock = DPMSolverMultistepScheduler.from_config(kept.config)
    stock.set_timesteps = lambda number, device=None: DPMSolverMultistepScheduler.set_timesteps(
        stock, device=device, timesteps=found["timesteps"]
    )
    assert torch.equal(images(with_timesteps(kept), num_inference_steps=3), images(stock, num_inference_steps=3))


def test_what_is_found_for_a_vdm_is_taken_by_its_pipeline(tmp_path, capsys):
    """Ancestral sampling, and a sampler that needs its latents scaled, which the pipeline of a denoiser alone would not do."""
    pipe = build("DDPM", DDPMScheduler())
    pipe.save_pretrained(tmp_path / "model")
    flags = ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--objective", "images", "--num_inference_steps", "2"]
    main([*flags, "--num_draws", "9500", "--output_dir", str(tmp_path / "ancestral"), "--dry_run"])
    assert "called at most 9,462 times for one image" in capsys.readouterr().out and not (tmp_path / "ancestral").exists()
    main([*flags, "--num_draws", "3400", "--scheduler", "EulerDiscreteScheduler", "--output_dir", str(tmp_path / "euler")])
    found = json.loads((tmp_path / "euler" / "few_steps.json").read_text())["results"][1]
    vdm = VDMPipeline.from_pipe(pipe)
    vdm.scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "euler", subfolder="scheduler")
    seen = []
    vdm.unet.register_forward_pre_hook(lambda unet, args, told: seen.append(float(told["timestep"][0])), with_kwargs=True)
    vdm(2, num_inference_steps=2)
    assert seen == found["timesteps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scheduler", "NoScheduler"],
            "`--scheduler` is 'NoScheduler', but must be VDMScheduler or a scheduler of diffusers",
        ),
        (["--scheduler", "UNet2DModel"], "must be VDMScheduler or a scheduler of diffusers"),
        (["--scheduler", "PNDMScheduler"], "can't be sampled: PNDMScheduler takes no `timesteps`"),
        (["--num_draws", "10"], "`num_draws` is 10, but timesteps for"),
        (["--call_arguments", "[1]"], "`--call_arguments` must be JSON of names and values"),
        (["--call_arguments", "{"], "`--call_arguments` must be JSON of names and values"),
        (["--call_arguments", '{"colour": 1}'], "can't be sampled.*colour"),
        (["--objective", "bound", "--scheduler", "DDIMScheduler"], "add `--objective images` for others"),
        (["--pretrained_model_name_or_path", "nowhere"], "'nowhere' could not be loaded"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(options, message, tmp_path):
    build("DDPM", DDPMScheduler()).save_pretrained(tmp_path / "model")
    flags = ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--objective", "images"]
    with pytest.raises(SystemExit, match=message):
        main([*flags, "--output_dir", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"num_hidden_layers": 100}, {"hidden_size": 10**6}, {"hidden_size": "x"}])
def test_text_encoders_are_measured_before_they_are_built(change, tmp_path):
    with_prompts("SD").save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    flags = ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="could not be loaded: .*(has more than|hidden_size)"):
        main([*flags, "--objective", "images"])


def test_a_pipeline_that_does_not_scale_its_latents_is_refused_for_schedulers_that_need_it():
    sampler = Sampler(build("DiT", DDPMScheduler()), EulerDiscreteScheduler(), rows={"class_labels": [1]})
    with pytest.raises(ValueError, match="does not scale its first latents by .* as EulerDiscreteScheduler needs"):
        sampler(2, [0])
