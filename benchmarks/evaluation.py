"""Processor time of an evaluation over that of its denoiser calls alone, both measured in turns in one run.

    python benchmarks/evaluation.py

The evaluation is that of the variational bound and of DDPM's, from a data set of images to the figure with its error bars.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from vdm_diffusers import VDM
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood import variational_bound


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def recorded_calls(unet: UNet2DModel, function: Callable[[], object]) -> list[tuple]:
    """The arguments of the denoiser's calls in a run of the function."""
    calls = []
    hook = unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    function()
    hook.remove()
    return calls


def ratios(unet: UNet2DModel, evaluation: Callable[[], object], repeats: int) -> list[float]:
    calls = recorded_calls(unet, evaluation)

    @torch.no_grad()
    def denoiser_alone() -> None:
        for args, kwargs in calls:
            unet(*args, **kwargs)

    denoiser_alone()
    return [seconds(evaluation) / seconds(denoiser_alone) for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num_images", type=int, default=16, help="Images of the data set.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images a batch.")
    parser.add_argument("--resolution", type=int, default=32, help="Height and width.")
    parser.add_argument("--num_repeats", type=int, default=4, help="Times an image.")
    parser.add_argument("--channels", type=int, default=128, help="Channels of the denoiser's finest blocks; DDPM's has 128.")
    parser.add_argument("--repeats", type=int, default=9, help="Measurements of each.")
    parser.add_argument("--output_path", type=Path, help="A JSON file for the result.")
    options = parser.parse_args()

    unet = UNet2DModel(
        options.resolution,
        block_out_channels=(options.channels, 2 * options.channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
    ).eval()
    pipeline = DDPMPipeline(unet, DDPMScheduler())
    vdm, ddpm = VDM.from_pipeline(pipeline), DDPM.from_pipeline(pipeline)
    shape = (options.num_images, options.resolution, options.resolution, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = ImageDataset([{"image": image.numpy()} for image in images])
    shared = {"num_repeats": options.num_repeats, "batch_size": options.batch_size}
    evaluations = {
        "variational bound": lambda: variational_bound(vdm, dataset, **shared),
        "DDPM's bound": lambda: ddpm_bound(ddpm, dataset, num_indices=3, **shared),
    }
    results = {}
    print("| evaluation | processor time / that of its denoiser calls (median) | quartiles |\n| --- | --- | --- |")
    for name, evaluation in evaluations.items():
        measured = ratios(unet, evaluation, options.repeats)
        low, median, high = statistics.quantiles(measured, n=4)
        results[name] = {"median": median, "quartiles": [low, high], "ratios": measured}
        print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} |")
    if options.output_path is not None:
        settings = {key: value for key, value in vars(options).items() if key != "output_path"}
        options.output_path.write_text(json.dumps({"options": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
