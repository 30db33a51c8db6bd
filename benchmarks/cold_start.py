"""From nothing to a first image of the paper's CIFAR-10 model: eager, compiled as a whole, and compiled by its repeated block.

python benchmarks/cold_start.py
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMPipeline, VDMUNet2DModel


VARIANTS = {
    "eager": lambda unet: None,
    "compiled as a whole": lambda unet: unet.compile(),
    "compiled by block": lambda unet: unet.compile_repeated_blocks(),
}


def start(model: str, variant: str, num_inference_steps: int) -> None:
    """Print the seconds to load the model, to the first image, and to another one when all is warm."""
    times = [time.perf_counter()]
    pipe = VDMPipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    VARIANTS[variant](pipe.unet)
    times.append(time.perf_counter())
    for _ in range(2):
        pipe(num_inference_steps=num_inference_steps, generator=torch.Generator().manual_seed(0))
        times.append(time.perf_counter())
    print(" | ".join(f"{end - begin:.1f}" for begin, end in zip(times, times[1:])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--block_channels", type=int, default=128)
    parser.add_argument("--layers_per_side", type=int, default=32)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*options.start, options.num_inference_steps)
        return

    print("| seconds | loading | first image | another |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        unet = VDMUNet2DModel(block_channels=options.block_channels, layers_per_side=options.layers_per_side)
        VDM(unet, LearnedMonotoneSchedule()).save_pretrained(folder)
        for variant in options.variants:
            with tempfile.TemporaryDirectory() as cache:  # what was compiled before must not help
                command = [sys.executable, __file__, "--start", folder, variant]
                command += ["--num_inference_steps", str(options.num_inference_steps)]
                environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            print(f"| {variant} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
