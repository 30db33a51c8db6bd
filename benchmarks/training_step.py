"""Time of a training step over that of its denoiser's forward and backward pass alone, both measured in turns in one run."""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16, help="Images a step.")
    parser.add_argument("--resolution", type=int, default=32, help="Height and width.")
    parser.add_argument("--block_channels", type=int, default=64, help="Channels of the denoiser.")
    parser.add_argument("--layers_per_side", type=int, default=2, help="Blocks on each side of its middle.")
    parser.add_argument("--repeats", type=int, default=10, help="Measurements of each.")
    options = parser.parse_args()

    unet = VDMUNet2DModel(options.resolution, 3, block_channels=options.block_channels, layers_per_side=options.layers_per_side)
    vdm = VDM(unet, LearnedMonotoneSchedule())
    images = torch.randint(0, 256, (options.batch_size, 3, options.resolution, options.resolution))
    z_t, timesteps = torch.randn(images.shape, requires_grad=True), 1000 * torch.rand(options.batch_size)

    def training_step() -> None:
        vdm.zero_grad()
        vdm(images).bits_per_dim.mean().backward()

    def denoiser_alone() -> None:
        vdm.zero_grad()
        unet(z_t, timesteps).sample.square().mean().backward()

    steps = {"training_step": training_step, "denoiser_alone": denoiser_alone}
    times = {name: [] for name in steps}
    for repeat in range(options.repeats + 2):
        for name, step in steps.items():
            elapsed = seconds(step)
            if repeat >= 2:
                times[name].append(elapsed)
    ratios = [step / alone for step, alone in zip(times["training_step"], times["denoiser_alone"])]
    spread = statistics.quantiles(ratios, n=4)
    print(json.dumps({"options": vars(options), "median_ratio": spread[1], "quartiles": [spread[0], spread[2]]}, indent=2))


if __name__ == "__main__":
    main()
