"""Convert a checkpoint of the authors' code.

python -m vdm_diffusers.convert --checkpoint_path checkpoints-0 --config cifar10 --output_dir vdm-cifar10
"""

import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Literal

from ..command_line import exit_with_message, option, parse_options, without_traceback
from ..guards.secrecy import guarded_output
from .official import OFFICIAL_CONFIGS, WEIGHTS, convert_official_checkpoint


COMMAND = "convert.py"


@dataclass
class ConversionOptions:
    """Every option of `python -m vdm_diffusers.convert`."""

    checkpoint_path: str = option(MISSING, "The msgpack file, or the folder of files ckpt-N.flax.")
    config: str = option(MISSING, f"{', '.join(OFFICIAL_CONFIGS)}, or a JSON file of VDMConfig's fields.")
    output_dir: str = option(MISSING, "Where the pipeline goes; must not exist, or be empty.")
    weights: Literal[tuple(WEIGHTS)] = option("ema", "The moving average, or as trained.")


def main(arguments: Sequence[str] | None = None) -> None:
    with exit_with_message(COMMAND, ValueError, OSError):
        arguments = sys.argv[1:] if arguments is None else arguments
        command = f"python -m {__package__}"
        options = ConversionOptions(**parse_options(ConversionOptions, arguments, command, __doc__.splitlines()[0]))
        convert_official_checkpoint(**asdict(options))
    print(f"The pipeline is in {options.output_dir}/.")


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
