"""The best few steps of a frozen model, for its bound or for its images.

python -m vdm_diffusers.few_steps --pretrained_model_name_or_path vdm-digits --basis principal --output_dir few-steps
python -m vdm_diffusers.few_steps --pretrained_model_name_or_path vdm-digits --objective images --output_dir few-steps
"""

import sys
from collections.abc import Sequence

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .. import command_line
from ..command_line import exit_with_message, without_traceback
from ..data.options import SHORT_NAMES
from ..guards.secrecy import guarded_output
from .for_bound import ForBound
from .for_images import ForImages
from .options import FewStepsOptions


COMMAND = "few_steps.py"
OBJECTIVES = {"bound": ForBound, "images": ForImages}


def main(arguments: Sequence[str] | None = None) -> None:
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    silent = not processes.is_main_process
    with exit_with_message(COMMAND, ValueError, OSError, FloatingPointError, silent=silent, own_names=SHORT_NAMES):
        arguments = sys.argv[1:] if arguments is None else arguments
        command = f"python -m {__package__}"
        options = FewStepsOptions(**command_line.parse_options(FewStepsOptions, arguments, command, __doc__.splitlines()[0]))
        task = OBJECTIVES[options.objective](options, processes)
        if processes.is_main_process:
            print(task.describe_calls())
        if options.dry_run:
            return
        task.run()
    if processes.is_main_process:
        task.save()
        print(task.table())


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
