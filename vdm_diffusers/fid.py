"""FID and KID of a pipeline's images against a data set, by torchmetrics.

python -m vdm_diffusers.fid --pretrained_model_name_or_path vdm-cifar10 --dataset_name cifar10 --split train
python -m vdm_diffusers.fid --pretrained_model_name_or_path google/ddpm-cifar10-32 --dataset_name cifar10 --split train \
    --scheduler DDIMScheduler --num_inference_steps 100 --extractor_weights_path weights-inception-2015-12-05-6726825d.pth
"""

import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn
from torch.utils.data import Subset

from .command_line import check_file_to_write, exit_with_message, option, parse_options, without_traceback
from .data.images import ImageData, load_images
from .data.options import SHORT_NAMES, SourceOptions
from .guards.arguments import Count, Seed, at_least
from .guards.foreign_models import check_pipeline
from .guards.loading import reason_of, refused_as
from .guards.messages import Message, refuse_if
from .guards.secrecy import guarded_output
from .image_quality.batches import check_makes_images, generated_images, real_images
from .image_quality.distances import digest, distances, inception
from .pictures import in_words


COMMAND = "fid.py"
NUM_LEVELS = 256
INCEPTION = "inception-v3-compat, 2048"
AtLeastTwo = Annotated[int, at_least(2)]


@dataclass(kw_only=True)
class FidOptions(SourceOptions):
    """
    Every option of `python -m vdm_diffusers.fid`.

    Raises `ValueError`, naming the option and the remedy, for values that no measurement can have.
    """

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline without text, folder or Hub name.")
    max_images: AtLeastTwo | None = option(None, "Only so many images of the data set, the first. Default: all.")
    num_images: AtLeastTwo | None = option(None, "Images to generate. Default: as many.")
    scheduler: str | None = option(None, "A scheduler of diffusers, by its name. Default: the pipeline's.")
    num_inference_steps: Count | None = option(None, "Its steps. Default: the pipeline's.")
    seed: Seed = option(0, "Of the images and of KID's subsets.")
    batch_size: Count = option(64, "Images a batch. Others give other images.")
    kid_subsets: Count = option(100, "Subsets that KID is a mean over.")
    kid_subset_size: AtLeastTwo = option(1000, "Images of a subset; all, where there are fewer.")
    extractor_weights_path: Path | None = option(None, "Inception's, as torch-fidelity has them. Default: downloaded by it.")
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "Where to generate.")
    output_path: Path | None = option(None, "A JSON file for the result.")

    def __post_init__(self):
        super().__post_init__()
        refuse_if(
            self.dataset_name is None and self.train_data_dir is None,
            "Images to compare with are missing: give {dataset_name} or {train_data_dir}.",
        )
        if self.output_path is not None:
            check_file_to_write(self.output_path)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with exit_with_message(COMMAND, ValueError, OSError, own_names=SHORT_NAMES):
        given = parse_options(FidOptions, arguments, f"python -m {__package__}.fid", __doc__.splitlines()[0])
        options = FidOptions(**given)
        extractor = inception(options.extractor_weights_path)
        result = measure(options, extractor)
    if options.output_path is not None:
        options.output_path.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def measure(options: FidOptions, extractor: nn.Module, extractor_name: str = INCEPTION) -> dict:
    """
    All that was asked for, as it goes into the JSON.

    Args:
        options ([`FidOptions`]): What is compared.
        extractor (`nn.Module`): Images `(B, 3, H, W)`, uint8, to features `(B, D)`.
        extractor_name (`str`): For the record.

    Raises:
        `ValueError`: for pipelines and images that have no such distance.
    """
    try:
        import torchmetrics
    except ImportError as error:
        raise ValueError(f"{reason_of(error)} `pip install 'vdm-diffusers[fid]'` installs what FID and KID need.") from error

    pipeline = load_pipeline(options)
    data = load_images(**options.loading())
    check_format(pipeline, data)
    real = Subset(data.validation, range(min(len(data.validation), options.max_images or len(data.validation))))
    num_images = options.num_images or len(real)
    if min(len(real), num_images) < 2:
        raise ValueError(f"{len(real)} images are compared with {num_images}, but a distance needs two of either.")
    steps = options.num_inference_steps or inspect.signature(pipeline.__call__).parameters["num_inference_steps"].default
    figures = distances(
        real_images(real, options.batch_size),
        generated_images(pipeline, num_images, steps, options.batch_size, options.seed),
        extractor.to(options.device),
        data.shape,
        min(options.kid_subset_size, len(real), num_images),
        options.kid_subsets,
        options.device,
    )
    return {
        "model": options.pretrained_model_name_or_path,
        "data": {"name": data.name, "split": options.validation_split, "shape": list(data.shape), "num_images": len(real)},
        "num_images": num_images,
        "sampler": {"scheduler": type(pipeline.scheduler).__name__, "num_inference_steps": steps},
        "seed": options.seed,
        "batch_size": options.batch_size,
        "extractor": {"name": extractor_name, "weights_sha256": digest(extractor)},
        "versions": {module.__name__: module.__version__ for module in (diffusers, torch, torchmetrics)},
        "results": figures,
    }


def load_pipeline(options: FidOptions) -> DiffusionPipeline:
    """The pipeline of a folder or of the Hub, with the scheduler that is asked for, if it needs no text."""
    name = options.pretrained_model_name_or_path
    with refused_as(Message("{pretrained_model_name_or_path} {!r} could not be loaded", name)):
        pipeline = DiffusionPipeline.from_pretrained(check_pipeline(name, options.cache_dir)).to(options.device)
    check_makes_images(pipeline)
    if options.scheduler is not None:
        scheduler = getattr(diffusers, options.scheduler, None)
        if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
            raise ValueError(Message("{scheduler} is {!r}, which is no scheduler of diffusers.", options.scheduler))
        with refused_as(Message("{scheduler} {!r} can't sample this pipeline", options.scheduler)):
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_format(pipeline: DiffusionPipeline, data: ImageData) -> None:
    """Raise `ValueError` unless images of both have 256 levels, and one channel or three."""
    for whose, levels in (("the model", pipeline.config.get("num_levels", NUM_LEVELS)), (repr(data.name), data.num_levels)):
        if levels != NUM_LEVELS:
            raise ValueError(f"The images of {whose} have {levels} levels, but feature extractors take 8-bit images.")
    if len(data.shape) != 3:
        raise ValueError(f"{data.name!r} has no images, but samples of {in_words(data.shape)}, which Inception can't see.")
    if data.shape[0] not in (1, 3):
        raise ValueError(f"{data.name!r} has {data.shape[0]} channels, but feature extractors take RGB, or grey repeated.")


def table(result: dict) -> str:
    """The result in Markdown."""
    sampler, data, figures = result["sampler"], result["data"], result["results"]
    return "\n".join(
        (
            f"{result['num_images']} images in {sampler['num_inference_steps']} steps of {sampler['scheduler']}, seed"
            f" {result['seed']}, and {data['num_images']} of {data['name']}, by {result['extractor']['name']}\n",
            "| FID | KID |",
            "| --- | --- |",
            f"| {figures['fid']:.4f} | {figures['kid']:.6f} ± {figures['kid_standard_deviation']:.6f} |",
        )
    )


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
