"""A training step and a sampling loop over those of an earlier commit, in turns in one run, and how far their results differ.

python benchmarks/speedup.py --baseline 475bf76
python benchmarks/speedup.py --baseline 475bf76 --layers_per_side 32 --batch_size 8 --repeats 2 --gradient_checkpointing
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from ratios import ratio


ROOT = Path(__file__).resolve().parents[1]


class Version:
    """A process that runs the package as it lies in a folder."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        sizes = (options.block_channels, options.layers_per_side, options.batch_size, options.steps)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *map(str, (*sizes, int(options.gradient_checkpointing)))],
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str) -> list[float]:
        """Do it once; some numbers of its result."""
        print(what, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def serve(block_channels: int, layers_per_side: int, batch_size: int, steps: int, gradient_checkpointing: int) -> None:
    """Do what is asked for, line by line."""
    import torch

    from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel

    torch.manual_seed(0)
    unet = VDMUNet2DModel(32, 3, block_channels=block_channels, layers_per_side=layers_per_side)
    for parameter in unet.parameters():  # none of which may be zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    vdm = VDM(unet, LearnedMonotoneSchedule())
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8)

    def loss() -> list[float]:
        with torch.no_grad():
            return vdm.eval()(images, generator=torch.Generator().manual_seed(1)).bits_per_dim.tolist()

    def training() -> list[float]:
        vdm.train().zero_grad()
        vdm(images).bits_per_dim.mean().backward()
        return []

    def sampling() -> list[float]:
        pipe = vdm.eval().to_pipeline()
        pipe.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(1), "output_type": "latent"}
        return pipe(batch_size, **call).images.flatten()[:1000].tolist()

    def memory() -> list[float]:
        return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]  # of KiB

    tasks = {"loss": loss, "training": training, "sampling": sampling, "memory": memory}
    for line in sys.stdin:
        print(json.dumps(tasks[line.strip()]()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--baseline", help="The earlier commit.")
    parser.add_argument("--block_channels", type=int, default=128)
    parser.add_argument("--layers_per_side", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="Of the sampling loop.")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--serve", type=int, nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if options.baseline is None:
        parser.error("--baseline is needed: the commit to compare with")

    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", options.baseline], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        before, now = Version(Path(folder), options), Version(ROOT, options)
        for what in ("loss", "sampling"):
            difference = max(abs(a - b) for a, b in zip(now.run(what), before.run(what)))
            print(f"{what}: a difference of {difference:.1e} at most", flush=True)
        print("\n| ratio | median (quartiles) |\n| --- | --- |")
        for what in ("training", "sampling"):
            measured = ratio(lambda what=what: now.run(what), lambda what=what: before.run(what), options.repeats)
            print(f"| {what} / {what} of {options.baseline} | {measured} |", flush=True)
        (memory,), (memory_before,) = now.run("memory"), before.run("memory")
        print(f"| peak memory / that of {options.baseline} | {memory / memory_before:.3f} ({memory:.2f} GiB) |")
        for version in (before, now):
            version.process.stdin.close()
            version.process.wait()


if __name__ == "__main__":
    main()
