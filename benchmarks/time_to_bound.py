"""Steps and seconds of training until given bounds are reached on held-out images, for several recipes and seeds.

python benchmarks/time_to_bound.py --max_train_steps 1000 --bounds 2.2 2.1 2.0 --every 50
python benchmarks/time_to_bound.py docs/examples/mnist.yaml --train_data_dir mnist --max_train_steps 600 --bounds 6 4 3 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


SCRIPT = Path(__file__).parents[1] / "train_vdm.py"
INDEPENDENT_TIMES = "independent times"
RUNS = {
    "as it is": {},
    "log-SNR linear in time": {"noise_schedule": "LearnedLinearSchedule"},
    INDEPENDENT_TIMES: {},
    "ε-prediction": {"prediction_type": "epsilon"},
    "v-prediction": {"prediction_type": "v_prediction"},
    "half the learning rate": {"learning_rate": 2e-3},
    "no warm-up": {"lr_warmup_steps": 0},
    "average of power 2/3": {"ema_power": 0.667},
    "average of power 0.9": {"ema_power": 0.9},
    "before": {"block_channels": 64, "dropout": 0.1, "train_batch_size": 64, "max_train_steps": 1700},
    "the paper's": {
        "dropout": 0.1,
        "noise_schedule": "LearnedLinearSchedule",
        "gamma_min": -13.3,
        "learning_rate": 2e-4,
        "schedule_learning_rate": 2e-4,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 1000,
        "ema_decay": 0.9999,
    },
}
"""What differs from the recipe. The paper's is its continuous-time one for CIFAR-10, as code in plain PyTorch takes it over."""

WITH_INDEPENDENT_TIMES = """
import torch
from vdm_diffusers.train import run_command
from vdm_diffusers.training import draws
draws.stratified_times = lambda offset, number: torch.rand(number, generator=torch.Generator().manual_seed(int(2**24 * offset)))
run_command()
"""
"""`train_vdm.py`, but for times that are drawn each by itself."""


class Run(NamedTuple):
    """Steps of its validations with their bounds, those of the end last, and the seconds that a step took without them."""

    bounds: dict[int, float]
    seconds_per_step: float

    def reached(self, bound: float) -> int | None:
        """The step at which it was at or below a bound, at the latest."""
        return next((step for step, value in self.bounds.items() if value <= bound), None)


def train(recipe: Sequence[str], name: str, seed: int, every: int) -> Run:
    """One run of `train_vdm.py` with one thread."""
    program = ["-c", WITH_INDEPENDENT_TIMES] if name == INDEPENDENT_TIMES else [SCRIPT]
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder, "out")
        options = RUNS[name] | {"seed": seed, "validation_steps": every, "output_dir": output_dir}
        options |= {"num_samples": 1, "num_inference_steps": 1}
        flags = [part for option, value in options.items() for part in (f"--{option}", str(value))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *program, *recipe, *flags]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment)
        if finished.returncode:
            raise RuntimeError(f"`{name}` failed:\n{finished.stderr}")
        metrics = json.loads((output_dir / "metrics.json").read_text())
        (state,) = output_dir.glob(f"checkpoint-{metrics['step']}/run_state.json")
        records = json.loads(state.read_text())["history"]["validation"]
        bounds = {record["step"]: record["bits_per_dim"] for record in records if record["step"]}
        bounds[metrics["step"]] = metrics["bits_per_dim"]
        return Run(bounds, seconds_per_step(output_dir))


def seconds_per_step(output_dir: Path) -> float:
    """The median between two entries of the log, so that validations don't count."""
    (log,) = output_dir.glob("logs/*/events.*")
    entries = EventAccumulator(str(log)).Reload().Scalars("train/bits_per_dim")
    return statistics.median((b.wall_time - a.wall_time) / (b.step - a.step) for a, b in pairwise(entries))


def cell(runs: Sequence[Run], bound: float) -> str:
    """Mean steps and seconds to a bound, or how many of the runs reached it."""
    steps = [run.reached(bound) for run in runs]
    if None in steps:
        return f"{len(steps) - steps.count(None)} of {len(steps)}"
    seconds = [step * run.seconds_per_step for step, run in zip(steps, runs)]
    return f"{statistics.mean(steps):,.0f} ({statistics.mean(seconds):.0f} s)"


def row(name: str, runs: Sequence[Run], bounds: Sequence[float]) -> str:
    """Of the table: every bound, and the mean at the end with its spread over the seeds."""
    last = [list(run.bounds.values())[-1] for run in runs]
    spread = f" ± {statistics.stdev(last):.4f}" if len(last) > 1 else ""
    cells = [cell(runs, bound) for bound in bounds]
    return f"| {name} | {' | '.join(cells)} | {statistics.mean(last):.4f}{spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Anything else is handed to train_vdm.py: the recipe that all runs share, by default that of the digits.",
    )
    parser.add_argument("--bounds", type=float, nargs="+", default=[2.0, 1.9, 1.85, 1.8], help="In bits/dim.")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=200, help="Steps between validations.")
    parser.add_argument("--parallel", type=int, default=2, help="Runs at a time, one thread each.")
    options, recipe = parser.parse_known_args()

    heads = [f"≤ {bound:g}" for bound in options.bounds]
    print(f"| recipe | {' | '.join(heads)} | at the end |\n| --- |{' --- |' * (len(heads) + 1)}", flush=True)
    with ThreadPoolExecutor(options.parallel) as pool:
        futures = {
            name: [pool.submit(train, recipe, name, seed, options.every) for seed in range(options.num_seeds)]
            for name in options.runs
        }
        for name, results in futures.items():
            print(row(name, [result.result() for result in results], options.bounds), flush=True)


if __name__ == "__main__":
    main()
