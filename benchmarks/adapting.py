"""A model before and after it was adapted: its bound, the variance of the bound's estimate, its samples' distance from data.

python benchmarks/stock_ddpm.py --data_dir shared/data/mnist --output_dir ddpm-mnist
python train_vdm.py --pretrained_model_name_or_path ddpm-mnist --noise_schedule LearnedMonotoneSchedule ...  # see docs
python benchmarks/adapting.py --before ddpm-mnist --after adapted-mnist --data_dir shared/data/mnist
"""

import argparse

import torch
from diffusers import DiffusionPipeline
from torch.utils.data import Subset

from vdm_diffusers import VDM, VDMPipeline
from vdm_diffusers.data import load_images
from vdm_diffusers.few_steps.distances import energy_distance
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.estimates import Difference


def sampled(pipe: VDMPipeline, number: int, num_inference_steps: int) -> torch.Tensor:
    """Images in [0, 1], `(number, D)`, by DDIM."""
    generator, parts = torch.Generator().manual_seed(0), []
    for start in range(0, number, 100):
        call = {"num_inference_steps": num_inference_steps, "generator": generator, "output_type": "pt", "eta": 0.0}
        parts.append(pipe(min(100, number - start), **call).images.flatten(1))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--before", required=True, help="Folder of a pipeline.")
    parser.add_argument("--after", required=True, help="Folder of what training made of it.")
    parser.add_argument("--data_dir", required=True, help="Images, as the evaluation takes them.")
    parser.add_argument("--max_images", type=int, default=1000, help="Held-out images for the bounds, drawn at random.")
    parser.add_argument("--num_repeats", type=int, default=2)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    options = parser.parse_args()

    data = load_images(train_data_dir=options.data_dir, check_train=False)
    order = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = Subset(data.validation, order[: options.max_images])
    real = torch.stack([data.validation[i]["images"] for i in order[-2000:]]).flatten(1) / (data.num_levels - 1)
    bounds = []
    print("| | bits/dim | variance of an estimate | energy distance |\n| --- | --- | --- | --- |")
    for name in (options.before, options.after):
        vdm = VDM.from_pipeline(DiffusionPipeline.from_pretrained(name))
        bounds.append(variational_bound(vdm, held_out, options.num_repeats))
        pipe = vdm.to_pipeline()
        pipe.set_progress_bar_config(disable=True)
        distance = energy_distance(sampled(pipe, options.num_samples, options.num_inference_steps), real)
        figures = f"{bounds[-1].bits_per_dim:.4f} ± {bounds[-1].standard_error:.4f} | {bounds[-1].variance:.3f}"
        print(f"| {name} | {figures} | {distance.value:.4f} ± {distance.standard_error:.4f} |", flush=True)
    gained = Difference.between(*bounds)
    print(f"\nGained: {gained.per_dim:.4f} ± {gained.standard_error:.4f} bits/dim, the images and draws being the same.")


if __name__ == "__main__":
    main()
