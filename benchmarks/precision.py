"""Bounds on the digits after equal training in float32, in bfloat16 and compiled, over several seeds.

python benchmarks/precision.py
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from learned_schedule import train


RUNS = {
    "float32": {},
    "bfloat16": {"mixed_precision": "bf16"},
    "compiled": {"torch_compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, help="Training steps of every run.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of every kind, at least 2.")
    parser.add_argument("--parallel", type=int, default=2, help="Runs at a time, one thread each.")
    parser.add_argument("--output_path", type=Path, default=Path("benchmarks/results/precision.json"))
    options = parser.parse_args()

    with ThreadPoolExecutor(options.parallel) as pool:
        bounds = {
            run: [pool.submit(train, flags, seed, options.steps, 1) for seed in range(options.seeds)]
            for run, flags in RUNS.items()
        }
        bounds = {run: [future.result() for future in futures] for run, futures in bounds.items()}
    print(f"bits/dim on the held-out digits after {options.steps} steps, {options.seeds} seeds\n")
    print("| | mean | spread (standard deviation) | runs |\n| --- | --- | --- | --- |")
    for run, values in bounds.items():
        runs = ", ".join(f"{value:.4f}" for value in values)
        print(f"| {run} | {statistics.mean(values):.4f} | {statistics.stdev(values):.4f} | {runs} |")
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    options.output_path.write_text(json.dumps(bounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
