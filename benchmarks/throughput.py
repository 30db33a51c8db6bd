"""Images per second of training by precision and compilation, as a share of what the device's matrix products reach.

    python benchmarks/throughput.py

By default the paper's model of CIFAR-10 with batches of 128, on a GPU if there is one.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel


class Variant(NamedTuple):
    """One change after the other, so that the effect of each can be read off."""

    dtype: torch.dtype = torch.float32
    tf32: bool = False
    compiled: bool = False


VARIANTS = {
    "float32": Variant(),
    "TF32": Variant(tf32=True),
    "bfloat16": Variant(torch.bfloat16, tf32=True),
    "bfloat16, compiled": Variant(torch.bfloat16, tf32=True, compiled=True),
}


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds_per_call(function: Callable[[], None], device: torch.device, calls: int, repeats: int = 3) -> float:
    """Median over the repeats, after a warm-up."""
    for _ in range(3):
        function()
    results = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        results.append((time.perf_counter() - start) / calls)
    return statistics.median(results)


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / seconds_per_call(lambda: a @ b, device, calls=10)


def training_step(variant: Variant, options: argparse.Namespace, device: torch.device) -> tuple[Callable[[], None], int]:
    """A step with its optimiser, and the floating-point operations of its denoiser."""
    unet = VDMUNet2DModel(options.resolution, 3, block_channels=options.block_channels, layers_per_side=options.layers_per_side)
    vdm = VDM(unet, LearnedMonotoneSchedule()).to(device)
    images = torch.randint(0, 256, (options.batch_size, 3, options.resolution, options.resolution), dtype=torch.uint8)
    images = images.to(device)
    optimizer = torch.optim.AdamW(vdm.parameters(), lr=2e-4, fused=True)

    def forward() -> torch.Tensor:
        lower = variant.dtype != torch.float32
        with torch.autocast(device.type, variant.dtype) if lower else contextlib.nullcontext():
            return vdm(images).bits_per_dim.mean()

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    if variant.compiled:
        unet.compile()
    return step, counter.get_total_flops()


def idle_share(step: Callable[[], None], device: torch.device) -> float | None:
    """Share of the time of ten steps in which the accelerator runs no kernel; `None` without one."""
    if device.type == "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            step()
        synchronize(device)
        elapsed = time.perf_counter() - start
    busy = sum(event.self_device_time_total for event in trace.key_averages()) / 1e6
    return max(0.0, 1 - busy / elapsed)


def peak_memory(step: Callable[[], None], device: torch.device) -> float | None:
    """GiB that a step takes of an accelerator at most; `None` without one."""
    if device.type == "cpu":
        return None
    torch.accelerator.reset_peak_memory_stats(device)
    step()
    return torch.accelerator.max_memory_allocated(device) / 2**30


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each variant."""
    device = torch.device(options.device)
    for name in options.only:
        variant = VARIANTS[name]
        torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
        torch._dynamo.reset()
        step, flops = training_step(variant, options, device)
        seconds = seconds_per_call(step, device, options.steps)
        peak = matmul_flops(variant.dtype, device)
        yield {
            "variant": name,
            "images_per_second": options.batch_size / seconds,
            "share_of_matmul_peak": flops / seconds / peak,
            "matmul_peak_tflops": peak / 1e12,
            "idle_share": idle_share(step, device),
            "peak_memory_gib": peak_memory(step, device),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to compute.")
    parser.add_argument("--batch_size", type=int, default=128, help="Images a step.")
    parser.add_argument("--resolution", type=int, default=32, help="Height and width.")
    parser.add_argument("--block_channels", type=int, default=128, help="Channels of the denoiser.")
    parser.add_argument("--layers_per_side", type=int, default=32, help="Blocks on each side of its middle.")
    parser.add_argument("--steps", type=int, default=20, help="Steps that are timed together.")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="What to measure.")
    parser.add_argument("--output_path", type=Path, default=Path("benchmarks/results/throughput.json"))
    options = parser.parse_args()

    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, batches of {options.batch_size}\n")
    print("| training | images/s | share of matmul peak | idle | memory |\n| --- | --- | --- | --- | --- |")
    rows = []
    for row in measure(options):
        idle = "—" if row["idle_share"] is None else f"{row['idle_share']:.1%}"
        memory = "—" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.1f} GiB"
        speed = f"{row['images_per_second']:.1f} | {row['share_of_matmul_peak']:.1%}"
        print(f"| {row['variant']} | {speed} | {idle} | {memory} |", flush=True)
        rows.append(row)
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    options.output_path.write_text(json.dumps({"device": name, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
