"""Energy distance of each sampler's images to the held-out digits, against that of ancestral sampling in 1000 steps.

python benchmarks/samplers.py --model vdm-digits
"""

import argparse
import json
import statistics
from typing import NamedTuple

import diffusers
import torch
from diffusers.utils import is_torchsde_available
from torch import Tensor
from torch.utils.data import Dataset

from vdm_diffusers import VDMPipeline, VDMScheduler
from vdm_diffusers.data import load_digits
from vdm_diffusers.few_steps.distances import energy_distance


class Sampler(NamedTuple):
    """A scheduler, its usual number of steps, its options, and whether it visits the gammas at equal distances of the learned
    schedule's time instead of its own.
    """

    scheduler: str
    num_steps: int
    options: dict[str, object] = {}
    evenly_in_time: bool = False


REFERENCE = "VDMScheduler, 1000 steps, evenly in time"
SAMPLERS = {
    REFERENCE: Sampler("VDMScheduler", 1000, {"spacing": "time"}),
    "VDMScheduler, 100 steps, evenly in time": Sampler("VDMScheduler", 100, {"spacing": "time"}),
    "VDMScheduler, 100 steps": Sampler("VDMScheduler", 100),
    "VDMScheduler, eta 0, evenly in time": Sampler("VDMScheduler", 50, {"eta": 0.0, "spacing": "time"}),
    "VDMScheduler, eta 0": Sampler("VDMScheduler", 50, {"eta": 0.0}),
    "DDPM": Sampler("DDPMScheduler", 1000),
    "DDIM": Sampler("DDIMScheduler", 50),
    "PNDM": Sampler("PNDMScheduler", 50),
    "LMS": Sampler("LMSDiscreteScheduler", 50),
    "Euler": Sampler("EulerDiscreteScheduler", 50),
    "Euler, evenly in time": Sampler("EulerDiscreteScheduler", 50, evenly_in_time=True),
    "Euler ancestral": Sampler("EulerAncestralDiscreteScheduler", 50),
    "Heun": Sampler("HeunDiscreteScheduler", 25),
    "DPM-Solver++ multi-step": Sampler("DPMSolverMultistepScheduler", 20),
    "DPM-Solver++ multi-step, evenly in time": Sampler("DPMSolverMultistepScheduler", 20, evenly_in_time=True),
    "DPM-Solver++ single-step": Sampler("DPMSolverSinglestepScheduler", 20),
    "DPM-Solver++ SDE": Sampler("DPMSolverMultistepScheduler", 50, {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver SDE (torchsde)": Sampler("DPMSolverSDEScheduler", 25),
    "KDPM2": Sampler("KDPM2DiscreteScheduler", 25),
    "KDPM2 ancestral": Sampler("KDPM2AncestralDiscreteScheduler", 50),
    "DEIS": Sampler("DEISMultistepScheduler", 20),
    "UniPC": Sampler("UniPCMultistepScheduler", 20),
}


def sample(pipe: VDMPipeline, config: dict, sampler: Sampler, num_images: int, seed: int) -> Tensor:
    """Images in [0, 1], `(num_images, D)`, of the model whose VDMScheduler has that configuration."""
    timesteps = None
    if sampler.evenly_in_time:
        scheduler = VDMScheduler.from_config(config, spacing="time")
        scheduler.set_timesteps(sampler.num_steps)
        timesteps = scheduler.timesteps
    pipe.scheduler = getattr(diffusers, sampler.scheduler).from_config(config, **sampler.options)
    torch.manual_seed(seed)  # for samplers that take no generator
    generator = torch.Generator().manual_seed(seed)
    kwargs = {"num_inference_steps": sampler.num_steps, "timesteps": timesteps, "generator": generator}
    return pipe(num_images, output_type="pt", **kwargs).images.double().flatten(1)


def pixels(dataset: Dataset, num_levels: int) -> Tensor:
    """The images of a data set in [0, 1], `(n, D)`."""
    return torch.stack([item["images"] for item in dataset]).double().flatten(1) / (num_levels - 1)


def measure(options: argparse.Namespace) -> dict:
    """The energy distances of all samplers that are asked for, the reference first."""
    data = load_digits()
    train, held_out = (pixels(dataset, data.num_levels) for dataset in (data.train, data.validation))
    pipe = VDMPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    config, rows = pipe.scheduler.config, []
    for name in [REFERENCE, *(options.only or list(SAMPLERS)[1:])]:
        sampler = SAMPLERS[name]
        if sampler.scheduler == "DPMSolverSDEScheduler" and not is_torchsde_available():
            continue
        sampler = sampler._replace(num_steps=min(sampler.num_steps, options.max_steps))
        images = [sample(pipe, config, sampler, options.num_images, seed) for seed in range(options.repeats)]
        values = [energy_distance(repeat, held_out).value for repeat in images]
        row = {"sampler": name, "steps": sampler.num_steps, "energy_distance": statistics.mean(values)}
        row["standard_error"] = statistics.stdev(values) / len(values) ** 0.5
        row["ratio"] = row["energy_distance"] / (rows or [row])[0]["energy_distance"]
        rows.append(row)
    return {"options": vars(options), "training_images": energy_distance(train, held_out).value, "samplers": rows}


def table(result: dict) -> str:
    lines = ["| sampler | steps | energy distance | relative to ancestral |", "| --- | --- | --- | --- |"]
    for row in result["samplers"]:
        distance = f"{row['energy_distance']:.4f} ± {row['standard_error']:.4f}"
        lines.append(f"| {row['sampler']} | {row['steps']} | {distance} | {row['ratio']:.2f} |")
    return "\n".join([*lines, f"| the training images | — | {result['training_images']:.4f} | |"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="vdm-digits", help="Folder of a model of the digits.")
    parser.add_argument("--num_images", type=int, default=1000, help="Images of each sampler and seed.")
    parser.add_argument("--repeats", type=int, default=3, help="Seeds of each sampler, at least 2.")
    parser.add_argument("--max_steps", type=int, default=1000, help="Cut numbers of steps to this, for a quick look.")
    parser.add_argument("--only", nargs="+", choices=list(SAMPLERS)[1:], help="Samplers beside the reference. Default: all.")
    options = parser.parse_args()

    result = measure(options)
    print(table(result) + "\n\n" + json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
