"""Images per second of the bound in continuous time, and the time that a full evaluation on CIFAR-10 takes at that rate.

    python benchmarks/evaluation_time.py
    python benchmarks/evaluation_time.py --layers_per_side 4 --batch_size 2 4 16 64 128

By default the paper's model of CIFAR-10 with batches as large as memory allows, on a GPU if there is one.
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from throughput import VARIANTS, Variant, synchronize

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel
from vdm_diffusers.batching import evaluation_batch_size
from vdm_diffusers.likelihood import variational_bound


NUM_IMAGES, NUM_REPEATS = 10_000, 4
"""Of the test split, and what `python -m vdm_diffusers.evaluate` draws by default."""


class Rate(NamedTuple):
    """Images a second, each with one time and noise: median and quartiles over the batches."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def hours(self) -> str:
        """Of the full evaluation."""
        calls = NUM_IMAGES * NUM_REPEATS / 3600
        return f"{calls / self.median:.2f} ({calls / self.high:.2f} to {calls / self.low:.2f})"


def rate(vdm: VDM, images: list[dict[str, torch.Tensor]], variant: Variant, num_batches: int, device: torch.device) -> Rate:
    """Of batches of these images, after a warm-up, with all that an evaluation does."""
    torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
    lower, rates = variant.dtype != torch.float32, []
    for seed in range(1 + num_batches):
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, variant.dtype) if lower else contextlib.nullcontext():
            variational_bound(vdm, images, batch_size=len(images), seed=seed, device=device)
        synchronize(device)
        rates.append(len(images) / (time.perf_counter() - start))
    low, median, high = statistics.quantiles(rates[1:], n=4)
    return Rate(median, low, high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    gpu = torch.cuda.is_available()
    variants = list(VARIANTS) if gpu else ["float32"]
    parser.add_argument("--device", default="cuda" if gpu else "cpu", help="Where to compute.")
    parser.add_argument(
        "--batch_size", type=int, nargs="+", help="Images a batch, two at least. Default: as many as memory allows."
    )
    parser.add_argument("--num_batches", type=int, default=5, help="Batches that are timed, two at least.")
    parser.add_argument("--resolution", type=int, default=32, help="Height and width.")
    parser.add_argument("--block_channels", type=int, default=128, help="Channels of the denoiser.")
    parser.add_argument("--layers_per_side", type=int, default=32, help="Blocks on each side of its middle.")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=variants, help="What to measure.")
    parser.add_argument("--output_path", type=Path, default=Path("benchmarks/results/evaluation_time.json"))
    options = parser.parse_args()

    device = torch.device(options.device)
    unet = VDMUNet2DModel(options.resolution, 3, block_channels=options.block_channels, layers_per_side=options.layers_per_side)
    vdm = VDM(unet, LearnedMonotoneSchedule()).to(device)
    image = {"images": torch.randint(0, 256, (3, options.resolution, options.resolution), dtype=torch.uint8)}
    sizes = options.batch_size or [evaluation_batch_size(unet, [image], device)]
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} CPU thread{'s' * (threads > 1)}"
    print(f"{name}; hours of {NUM_IMAGES:,} images, {NUM_REPEATS} repeats\n")
    print("| precision | batch | images/s | hours |\n| --- | --- | --- | --- |")
    rows = []
    for variant in options.only:
        if VARIANTS[variant].compiled:
            unet.compile()
        for size in sizes:
            found = rate(vdm, [image] * size, VARIANTS[variant], options.num_batches, device)
            print(f"| {variant} | {size} | {found} | {found.hours} |", flush=True)
            rows.append({"precision": variant, "batch_size": size, "images_per_second": found._asdict()})
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    options.output_path.write_text(json.dumps({"device": name, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
