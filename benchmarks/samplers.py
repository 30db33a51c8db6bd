"""Energy distance of each sampler's images to the held-out digits, against that of ancestral sampling in 1000 steps.

python benchmarks/samplers.py --model vdm-digits
"""

import argparse
import json
import statistics

import diffusers
import torch
from diffusers.utils import is_torchsde_available
from torch import Tensor
from torch.utils.data import Dataset

from vdm_diffusers import VDMPipeline
from vdm_diffusers.data import load_digits


REFERENCE = "VDMScheduler"
SAMPLERS = {
    REFERENCE: ("VDMScheduler", 1000, {}),
    "VDMScheduler, 100 steps": ("VDMScheduler", 100, {}),
    "VDMScheduler, eta 0": ("VDMScheduler", 100, {"eta": 0.0}),
    "DDPM": ("DDPMScheduler", 1000, {}),
    "DDIM": ("DDIMScheduler", 50, {}),
    "PNDM": ("PNDMScheduler", 50, {}),
    "LMS": ("LMSDiscreteScheduler", 50, {}),
    "Euler": ("EulerDiscreteScheduler", 50, {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", 50, {}),
    "Heun": ("HeunDiscreteScheduler", 25, {}),
    "DPM-Solver++ multi-step": ("DPMSolverMultistepScheduler", 20, {}),
    "DPM-Solver++ single-step": ("DPMSolverSinglestepScheduler", 20, {}),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", 50, {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver SDE (torchsde)": ("DPMSolverSDEScheduler", 25, {}),
    "KDPM2": ("KDPM2DiscreteScheduler", 25, {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", 50, {}),
    "DEIS": ("DEISMultistepScheduler", 20, {}),
    "UniPC": ("UniPCMultistepScheduler", 20, {}),
}
"""Class, its usual number of steps, and options."""


def energy_distance(x: Tensor, y: Tensor) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|` without bias, for samples `(n, D)` and `(m, D)`: 0 for one distribution."""

    def within(points: Tensor) -> Tensor:
        return torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def distances(pipe: VDMPipeline, num_steps: int, num_images: int, repeats: int, held_out: Tensor) -> list[float]:
    """Of `num_images` images to the held-out ones, for each of `repeats` seeds."""
    results = []
    for seed in range(repeats):
        torch.manual_seed(seed)  # for samplers that take no generator
        generator = torch.Generator().manual_seed(seed)
        images = pipe(num_images, num_inference_steps=num_steps, output_type="pt", generator=generator).images
        results.append(energy_distance(images.double().flatten(1), held_out))
    return results


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
        class_name, num_steps, extra = SAMPLERS[name]
        if class_name == "DPMSolverSDEScheduler" and not is_torchsde_available():
            continue
        pipe.scheduler = getattr(diffusers, class_name).from_config(config, **extra)
        num_steps = min(num_steps, options.max_steps)
        values = distances(pipe, num_steps, options.num_images, options.repeats, held_out)
        row = {"sampler": name, "steps": num_steps, "energy_distance": statistics.mean(values)}
        row["standard_error"] = statistics.stdev(values) / len(values) ** 0.5
        row["ratio"] = row["energy_distance"] / (rows or [row])[0]["energy_distance"]
        rows.append(row)
    return {"options": vars(options), "training_images": energy_distance(train, held_out), "samplers": rows}


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
