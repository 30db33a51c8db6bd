"""Energy distance to held-out images of what few steps sample: with a sampler's own timesteps, and with those found for it.

python benchmarks/few_steps.py --model vdm-digits --num_inference_steps 5 10
python benchmarks/few_steps.py --model ddpm-mnist --data_dir shared/data/mnist --num_inference_steps 5 10
python benchmarks/few_steps.py --model vdm-digits --num_inference_steps 25 50 100 250 --spacings
python benchmarks/few_steps.py --model vdm-digits --bound_dir few-steps
"""

import argparse
import copy
import json

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.data import load_images
from vdm_diffusers.few_steps.distances import energy_distance
from vdm_diffusers.few_steps.sampling import Sampler
from vdm_diffusers.few_steps.timesteps import Scale, Search, plan, probed


SAMPLERS = ("VDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
MANY = 50
"""Steps that few are compared with."""


def sample(pipe: VDMPipeline, timesteps: list[float] | int, num_images: int, seed: int) -> Tensor:
    """Images in [0, 1], `(num_images, D)`."""
    number, given = (timesteps, None) if isinstance(timesteps, int) else (len(timesteps), timesteps)
    generator, parts = torch.Generator().manual_seed(seed), []
    for start in range(0, num_images, 256):
        size = min(256, num_images - start)
        call = pipe(size, num_inference_steps=number, timesteps=given, generator=generator, output_type="pt")
        parts.append(call.images.flatten(1))
    return torch.cat(parts)


def even_in_gamma(scale: Scale, gammas: list[float], number: int) -> list[float]:
    return scale.fit(scale.timestep_map(torch.linspace(*gammas, number + 1, dtype=torch.float64)[:-1]))


def of_samplers(pipe: VDMPipeline, options: argparse.Namespace) -> dict[str, tuple]:
    """By the name of the row: scheduler, number of steps or timesteps."""
    config, rows = pipe.scheduler.config, {}
    for name in options.schedulers:
        scheduler = (VDMScheduler if name == "VDMScheduler" else getattr(diffusers, name)).from_config(config)
        scale, sampler = Scale(scheduler), Sampler(pipe, scheduler, batch_size=256)
        search = Search(sampler, plan(probed(sampler), options.num_inference_steps, options.num_draws))
        ends = [scale.gamma([timestep]).item() for timestep in (scale.high, scale.low)]
        rows[f"{name}, {MANY} evenly in gamma"] = scheduler, even_in_gamma(scale, ends, MANY)
        for number in options.num_inference_steps:
            own, best = search.best(number)
            if name == "VDMScheduler" and scheduler.noise_schedule is not None:
                rows[f"{name}, {number} evenly in time"] = VDMScheduler.from_config(config, spacing="time"), number
            rows[f"{name}, {number} of its own"] = scheduler, own.timesteps
            rows[f"{name}, {number} that were found"] = scheduler, best.timesteps
    return rows


def of_spacings(pipe: VDMPipeline, options: argparse.Namespace) -> dict[str, tuple]:
    """Ancestral sampling with many spacings, in gamma, of a VDM."""
    scheduler, rows = VDMScheduler.from_config(pipe.scheduler.config), {}
    low, high = scheduler.timestep_range
    timely = VDMScheduler.from_config(scheduler.config, spacing="time")
    for number in options.num_inference_steps:
        u = torch.linspace(1, 0, number + 1, dtype=torch.float64)[:-1]
        rows[f"{number}, the default"] = scheduler, number
        rows[f"{number}, evenly in time"] = timely, number
        for power in options.powers:
            rows[f"{number}, u^{power:g}"] = scheduler, (low + (high - low) * u**power).tolist()
            rows[f"{number}, 1 - (1 - u)^{power:g}"] = scheduler, (high - (high - low) * (1 - u) ** power).tolist()
    return rows


def of_variances(pipe: VDMPipeline, options: argparse.Namespace) -> dict[str, tuple]:
    """Ancestral sampling with the chains that are best for the bound, and with their optimal variances or q's."""
    optimal = VDMScheduler.from_pretrained(options.bound_dir, subfolder="scheduler")
    with_q = copy.deepcopy(optimal)
    with_q.set_error_profile(None)
    kept, scale = optimal.config.few_step_timesteps["VDMScheduler"].values(), Scale(optimal)
    ends = [scale.gamma([timestep]).item() for timestep in (scale.high, scale.low)]
    rows = {}
    for best in kept:
        for name, scheduler in (("optimal", optimal), ("q's", with_q)):
            rows[f"{len(best)} of the best chain for the bound, {name} variance"] = scheduler, best
            even = even_in_gamma(scale, ends, len(best))
            rows[f"{len(best)} evenly in gamma, {name} variance"] = scheduler, even
    return rows


def measure(options: argparse.Namespace) -> list[dict]:
    pipe = VDMPipeline.from_pipe(DiffusionPipeline.from_pretrained(options.model))
    pipe.set_progress_bar_config(disable=True)
    data = load_images(train_data_dir=options.data_dir)
    order = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(0))[: options.num_held_out]
    held_out = torch.stack([data.validation[i]["images"] for i in order.tolist()]).flatten(1) / (data.num_levels - 1)
    rows, rows_of = [], of_spacings if options.spacings else of_variances if options.bound_dir else of_samplers
    for name, (scheduler, timesteps) in rows_of(pipe, options).items():
        pipe.scheduler = scheduler
        distance = energy_distance(sample(pipe, timesteps, options.num_images, options.seed), held_out)
        shown = timesteps if isinstance(timesteps, list) else None
        rows.append({"sampler": name, "energy_distance": distance.value, "standard_error": distance.standard_error})
        print(f"| {name} | {distance.value:.4f} ± {distance.standard_error:.4f} |", flush=True)
        rows[-1]["timesteps"] = shown
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="vdm-digits", help="Folder of a pipeline of pixels.")
    parser.add_argument("--data_dir", help="Images that it was trained on. Default: the digits.")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--schedulers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--spacings", action="store_true", help="Compare spacings of ancestral sampling of a VDM instead.")
    parser.add_argument("--bound_dir", help="Compare the variances of what the command found for the bound, in this folder.")
    parser.add_argument(
        "--powers", type=float, nargs="+", default=[0.5, 0.7, 1.4, 2.0],
        help="Spacings u^p and 1 - (1 - u)^p of the way from least to most noise, u even.",
    )  # fmt: skip
    parser.add_argument("--num_images", type=int, default=1000, help="Of each row.")
    parser.add_argument("--num_held_out", type=int, default=2000, help="At most.")
    parser.add_argument("--num_draws", type=int, default=30_000, help="Denoiser calls of a search.")
    parser.add_argument("--seed", type=int, default=10_000, help="Of the images.")
    options = parser.parse_args()
    logging.set_verbosity_error()
    print("| sampler, steps | energy distance |\n| --- | --- |")
    print("\n" + json.dumps({"options": vars(options), "rows": measure(options)}))


if __name__ == "__main__":
    main()
