"""Bounds on the digits after equal training in float32, in bfloat16 and compiled, over several seeds.

python benchmarks/precision.py
"""

import argparse
import json
from pathlib import Path

from learned_schedule import train_all


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

    bounds = train_all(RUNS, options.steps, options.seeds, options.parallel)
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    options.output_path.write_text(json.dumps(bounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
