"""Memory and time that it takes to convert a full-size checkpoint of the authors, with random weights.

python benchmarks/convert_memory.py --config cifar10_aug
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter


WRITE = """
import sys
from torch import nn
from vdm_diffusers.convert import build_official_vdm, export_official_checkpoint, read_config

vdm = build_official_vdm(read_config(sys.argv[1]))
vdm.unet.to_empty(device="cpu")
for parameter in vdm.unet.parameters():
    nn.init.normal_(parameter, std=0.02)
export_official_checkpoint(vdm, sys.argv[2])
"""


def run(*arguments: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a Python process; it has a process of its own because a peak never falls."""
    start = perf_counter()
    process = subprocess.Popen([sys.executable, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments[:2])} failed.")
    return perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="cifar10_aug", help="A configuration that vdm_diffusers.convert knows.")
    config = parser.parse_args().config
    with TemporaryDirectory() as folder:
        checkpoint = str(Path(folder, "checkpoint"))
        run("-c", WRITE, config, checkpoint)
        size = os.path.getsize(checkpoint)
        _, imports = run("-c", "import vdm_diffusers.convert")
        options = ("--checkpoint_path", checkpoint, "--config", config, "--output_dir", str(Path(folder, "out")))
        seconds, peak = run("-m", "vdm_diffusers.convert", *options)
    print(f"{config}: a file of {size / 1e6:,.0f} MB, converted in {seconds:.1f} s")
    print(f"peak memory {peak / 1e6:,.0f} MB = {peak / size:.2f} x the file, {imports / 1e6:,.0f} MB of it for imports alone")


if __name__ == "__main__":
    main()
