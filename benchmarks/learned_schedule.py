"""What learning the noise schedule brings on the digits: bounds after equal training over several seeds, and its cost.

    python benchmarks/learned_schedule.py

Trains with log-SNR linear and with learned schedules, end points learned in all, in continuous time and for T = 5.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vdm_diffusers import VDM, LearnedLinearSchedule, LearnedMonotoneSchedule, VDMUNet2DModel


SCRIPT = Path(__file__).parents[1] / "train_vdm.py"
RUNS = {
    "continuous, log-SNR linear": {"noise_schedule": "LearnedLinearSchedule"},
    "continuous, learned": {"noise_schedule": "LearnedMonotoneSchedule"},
    "T = 5, log-SNR linear": {"noise_schedule": "LearnedLinearSchedule", "num_timesteps": 5},
    "T = 5, learned α-chain": {"noise_schedule": "LearnedChainSchedule", "num_timesteps": 5},
}


def train(options: dict[str, object], seed: int, steps: int, threads: int) -> float:
    """The bound on the held-out digits, in bits/dim."""
    with tempfile.TemporaryDirectory() as folder:
        options = options | {"seed": seed, "max_train_steps": steps, "validation_steps": steps, "report_to": "none"}
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, str(SCRIPT), "--output_dir", f"{folder}/out", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return json.loads(Path(folder, "out", "metrics.json").read_text())["bits_per_dim"]


def step_time_ratio(repeats: int) -> list[float]:
    """Time of a training step with the learned schedule over one with the linear, measured in turns: median and quartiles."""
    images = torch.randint(0, 17, (64, 1, 8, 8))
    models = [
        VDM(VDMUNet2DModel(8, 1, block_channels=64, layers_per_side=2, fourier_powers=(2, 3)), schedule, num_levels=17)
        for schedule in (LearnedMonotoneSchedule(-8.0, 5.0), LearnedLinearSchedule(-8.0, 5.0))
    ]
    ratios = []
    for _ in range(repeats + 3):
        seconds = []
        for vdm in models:
            start = time.perf_counter()
            vdm(images).bits_per_dim.mean().backward()
            seconds.append(time.perf_counter() - start)
            vdm.zero_grad()
        ratios.append(seconds[0] / seconds[1])
    low, median, high = statistics.quantiles(ratios[3:], n=4)
    return [median, low, high]


def train_all(runs: dict[str, dict], steps: int, seeds: int, parallel: int) -> dict[str, list[float]]:
    """The bounds of all runs, several at a time with one thread each, and a table of them."""
    with ThreadPoolExecutor(parallel) as pool:
        futures = {
            name: [pool.submit(train, options, seed, steps, 1) for seed in range(seeds)] for name, options in runs.items()
        }
        bounds = {name: [future.result() for future in results] for name, results in futures.items()}
    print(f"\nbits/dim on the held-out digits after {steps} steps, {seeds} seeds\n")
    print("| run | mean | spread (standard deviation) | runs |\n| --- | --- | --- | --- |")
    for name, values in bounds.items():
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"| {name} | {statistics.mean(values):.4f} | {statistics.stdev(values):.4f} | {each} |")
    return bounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1700, help="Training steps of every run.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of every kind, at least 2; 0 measures the step time alone.")
    parser.add_argument("--parallel", type=int, default=2, help="Runs at a time, one thread each.")
    parser.add_argument("--repeats", type=int, default=40, help="Measurements of the step time.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/learned_schedule.json"))
    options = parser.parse_args()

    ratio = step_time_ratio(options.repeats)
    print(f"step time, learned over linear: {ratio[0]:.3f} (quartiles {ratio[1]:.3f} to {ratio[2]:.3f})")
    bounds = train_all(RUNS, options.steps, options.seeds, options.parallel) if options.seeds else {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"bounds": bounds, "step_time_ratio": ratio}
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
