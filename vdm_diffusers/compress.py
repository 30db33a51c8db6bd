"""Images without loss in one file, at the bound of a model.

python -m vdm_diffusers.compress photos/ --pretrained_model_name_or_path vdm-cifar10 --output photos.vdm
python -m vdm_diffusers.compress a.png b.png --pretrained_model_name_or_path vdm-digits --few_steps_dir found --output ab.vdm
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from diffusers import DiffusionPipeline
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from .command_line import check_file_to_write, exit_with_message, option, parse_options, split_paths, without_traceback
from .compression import Compressor, Item, Rates, coding_model
from .compression.blocks import condition_of
from .compression.codec import BIN_PRECISION, IMAGES_PER_BLOCK
from .compression.other_codecs import rates_of_others
from .conditioning import mapped
from .data.decoding import CONVERSIONS, Preparation
from .data.image_files import ImageFiles, find_image_files
from .few_steps.options import SCHEDULER
from .guards.arguments import Count, Within, check_fields
from .guards.loading import refused_as
from .guards.messages import Message
from .guards.secrecy import guarded_output
from .likelihood import variational_bound
from .pixel_space import can_be_evaluated, load_pixel_pipeline
from .scheduling_vdm import VDMScheduler
from .vdm import VDM


COMMAND = "compress.py"
MAX_COMPARED = 4096
"""Images that other codecs and the bound are measured on, the first."""


@dataclass(kw_only=True)
class ModelOptions:
    """What says which model codes."""

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline of pixels, folder or Hub name.")
    few_steps_dir: str | None = option(
        None, "Folder of `python -m vdm_diffusers.few_steps`, whose chains and variances are taken. Default: the pipeline's."
    )
    cache_dir: str | None = option(None, "Where downloaded models are kept.")
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "Where the denoiser is. A file is read on its like.")

    def __post_init__(self):
        check_fields(self)

    def load(self) -> DiffusionPipeline:
        """The pipeline; `ValueError` for one that can't code."""
        pipeline = load_pixel_pipeline(self.pretrained_model_name_or_path, self.cache_dir)
        if self.few_steps_dir is not None:
            with refused_as(Message("{few_steps_dir} {!r} has no scheduler of few steps", self.few_steps_dir)):
                pipeline.scheduler = VDMScheduler.from_pretrained(self.few_steps_dir, subfolder=SCHEDULER)
        with refused_as(Message("{device} is {!r}", self.device)):
            return pipeline.to(self.device)


@dataclass(kw_only=True)
class CompressionOptions(ModelOptions):
    """
    Every option of `python -m vdm_diffusers.compress`.

    Raises `ValueError`, naming the option and the remedy, for values that none can have.
    """

    output: Path = option(MISSING, "The file to write.")
    num_inference_steps: Count | None = option(
        None, "Denoiser calls an image. Default: the most that the pipeline keeps a chain for, or else 20."
    )
    bin_precision: Annotated[int, Within(0, 8)] = option(
        BIN_PRECISION, "Latents are rounded to 2^-bin_precision of a standard deviation."
    )
    images_per_block: Count = option(IMAGES_PER_BLOCK, "Images that share initial bits, and can be read only together.")
    convert: Literal[CONVERSIONS] | None = option(None, "Convert images to this PIL mode; the converted ones are kept.")
    compare: bool = option(True, "Also measure the bound of the images, and what other codecs make of them.")

    def __post_init__(self):
        super().__post_init__()
        check_file_to_write(self.output)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with exit_with_message(COMMAND, ValueError, OSError, FloatingPointError):
        paths, flags = split_paths(arguments)
        command = f"python -m {__package__}.compress IMAGES ..."
        given = parse_options(CompressionOptions, flags, command, __doc__.splitlines()[0])
        options = CompressionOptions(**given)
        if not paths:
            raise ValueError("Name image files or folders of them first, then the options.")
        print(run(paths, options))


def run(paths: Sequence[Path], options: CompressionOptions) -> str:
    """Write the file, and return the closing table."""
    pipeline = options.load()
    with can_be_evaluated(options.pretrained_model_name_or_path):
        vdm = coding_model(pipeline, options.num_inference_steps)
    images = ImageFiles(find_image_files(paths), vdm.num_levels, Preparation(convert=options.convert))
    started = time.perf_counter()
    rates = compress_files(images, vdm, options)
    seconds = time.perf_counter() - started
    lines = [rates_in_words(rates, options.output, seconds), ""]
    compared = rates_of_all(images, vdm) if options.compare else {}
    return "\n".join([*lines, *table(rates, compared)])


def compress_files(images: ImageFiles, vdm: VDM, options: CompressionOptions) -> Rates:
    """Write all images into the file, which has its name once it is whole."""
    unfinished = options.output.with_name(options.output.name + ".unfinished")
    progress = tqdm(total=len(images), desc="compressing", unit="image")
    settings = {"bin_precision": options.bin_precision, "images_per_block": options.images_per_block}
    try:
        with unfinished.open("wb") as file, progress:
            with Compressor(file, vdm, **settings, on_image=progress.update) as compressor:
                for index, (_, name) in enumerate(images.files):
                    compressor.append(Item(images[index]["images"], name))
                    if compressor.rates.num_images:
                        progress.set_postfix_str(f"{compressor.rates.gross:.4f} bits/dim")
        unfinished.replace(options.output)
    finally:
        unfinished.unlink(missing_ok=True)
    return compressor.rates


class Untold(Dataset):
    """Images with what the codec tells the denoiser of them: no class and no text."""

    def __init__(self, images: Dataset, vdm: VDM):
        self.images = images
        self.condition = mapped(lambda _, tensor: tensor[0].cpu(), condition_of(vdm, vdm.prompt_encoder))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"images": self.images[index]["images"], **self.condition}


def rates_of_all(images: ImageFiles, vdm: VDM) -> dict[str, float]:
    """Bits per dimension of the bound of the same steps, and of other codecs, for at most `MAX_COMPARED` of the images."""
    number = min(len(images), MAX_COMPARED)
    part = Untold(Subset(images, range(number)), vdm)
    compared = {}
    if number >= 2:
        bound = variational_bound(vdm, part, num_repeats=4, device=vdm.noise_schedule.device, description="bound")
        compared["bound of the chain"] = bound.bits_per_dim
    return compared | rates_of_others(torch.stack([part[index]["images"] for index in range(number)]), vdm.num_levels)


def rates_in_words(rates: Rates, path: Path, seconds: float) -> str:
    """What was written, in a sentence."""
    megabytes = rates.num_images * rates.num_dims / 1e6
    return (
        f"{path}: {rates.num_images:,} images in {rates.gross_bits / 8:,.0f} bytes, {rates.num_images / seconds:.2f} images/s,"
        f" {megabytes / seconds:.4f} million numbers/s."
    )


def table(rates: Rates, compared: dict[str, float]) -> list[str]:
    """The rates in Markdown, in bits per dimension."""
    own = {"gross, all of the file": rates.gross, "net, of images coded by the model": rates.net}
    initial = f"{rates.num_plain:,} images without the model, {rates.initial_bits:,.0f} bits"
    rows = [f"| {name} | {rate:.4f} |" for name, rate in (own | compared).items()]
    return ["| | bits/dim |", "| --- | --- |", *rows, "", f"Initial bits: {initial}."]


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
