"""A page to try a model on: draw images, count the bits of images, encode and decode them.

python -m vdm_diffusers.demo --pretrained_model_name_or_path vdm-digits
"""

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from diffusers import DiffusionPipeline

from ..command_line import exit_with_message, option, parse_options, without_traceback
from ..guards.arguments import Within, check_fields
from ..guards.foreign_models import check_pipeline
from ..guards.loading import refused_as
from ..guards.messages import Message
from ..guards.secrecy import guarded_output
from . import demo


if TYPE_CHECKING:
    import gradio


COMMAND = "demo.py"


@dataclass(kw_only=True)
class DemoOptions:
    """
    Every option of `python -m vdm_diffusers.demo`.

    Raises `ValueError`, naming the option and the remedy, for values that none can have.
    """

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline, folder or Hub name.")
    cache_dir: str | None = option(None, "Where downloaded models are kept.")
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "Where to compute.")
    server_name: str = option("127.0.0.1", "The address to serve at; `0.0.0.0` lets other machines in.")
    server_port: Annotated[int, Within(1, 65_535)] = option(7860, "Its port.")

    def __post_init__(self):
        check_fields(self)

    def load(self) -> DiffusionPipeline:
        """The pipeline, on its device."""
        name = self.pretrained_model_name_or_path
        with refused_as(Message("{pretrained_model_name_or_path} {!r} could not be loaded", name)):
            pipeline = DiffusionPipeline.from_pretrained(check_pipeline(name, self.cache_dir))
        with refused_as(Message("{device} is {!r}", self.device)):
            return pipeline.to(self.device)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with exit_with_message(COMMAND, ValueError, OSError):
        given = parse_options(DemoOptions, arguments, f"python -m {__package__}", __doc__.splitlines()[0])
        options = DemoOptions(**given)
        blocks = demo(options.load(), Path(options.pretrained_model_name_or_path).name)
        serve(blocks, options.server_name, options.server_port)


def serve(blocks: "gradio.Blocks", name: str, port: int) -> None:
    """Serve a page at an address and a port until it is interrupted."""
    with refused_as(Message("{server_name} {!r} and {server_port} {} can't be served", name, port)):
        _, address, _ = blocks.launch(server_name=name, server_port=port, share=False, quiet=True, prevent_thread_lock=True)
    print(f"The demo is at {address} until it is interrupted, as by Ctrl-C.", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
