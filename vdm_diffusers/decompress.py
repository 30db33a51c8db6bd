"""The images of a file that `python -m vdm_diffusers.compress` wrote.

python -m vdm_diffusers.decompress photos.vdm --pretrained_model_name_or_path vdm-cifar10 --output_dir photos
"""

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .command_line import check_file_to_write, exit_with_message, option, parse_options, split_paths, without_traceback
from .compress import ModelOptions
from .compression import Decompressor
from .data.image_files import write_image
from .guards.loading import reason_of
from .guards.messages import Message
from .guards.secrecy import guarded_output


COMMAND = "decompress.py"


@dataclass(kw_only=True)
class DecompressionOptions(ModelOptions):
    """
    Every option of `python -m vdm_diffusers.decompress`.

    Raises `ValueError`, naming the option and the remedy, for values that none can have.
    """

    output_dir: Path = option(MISSING, "The folder that the images are written to; must not exist, or be empty.")
    force: bool = option(False, "Try also where libraries or devices are other ones. Every image is checked.")

    def __post_init__(self):
        super().__post_init__()
        if self.output_dir.exists() and (not self.output_dir.is_dir() or any(self.output_dir.iterdir())):
            raise ValueError(Message("{output_dir} {!r} is there already: name another folder.", str(self.output_dir)))
        check_file_to_write(self.output_dir.absolute() / "image" if self.output_dir.exists() else self.output_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with exit_with_message(COMMAND, ValueError, OSError, FloatingPointError):
        paths, flags = split_paths(arguments)
        command = f"python -m {__package__}.decompress FILE"
        given = parse_options(DecompressionOptions, flags, command, __doc__.splitlines()[0])
        options = DecompressionOptions(**given)
        if len(paths) != 1:
            raise ValueError(f"Name one compressed file first, then the options; there are {len(paths)} names.")
        number = decompress_file(paths[0], options)
    print(f"{number:,} images are in {options.output_dir}/.")


def decompress_file(path: Path, options: DecompressionOptions) -> int:
    """Write all images, and return how many; `ValueError` where that fails, after those of all whole blocks before."""
    number, pipeline = 0, options.load()
    try:
        with path.open("rb") as file, tqdm(desc="decompressing", unit="image") as progress:
            with Decompressor(file, pipeline, options.force, on_image=progress.update) as decompressor:
                for block in decompressor:
                    for name, image in zip(block.names, block.images):
                        name = f"{number:06}" if name is None else name
                        write_image(options.output_dir, name, image, decompressor.header.num_levels)
                        number += 1
    except (ValueError, OSError) as error:
        kept = f"The {number:,} images before that are in {str(options.output_dir)!r}." if number else "Nothing was written."
        raise ValueError(Message("{} {}", reason_of(error), kept)) from error
    return number


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
