"""FID and KID of a pipeline's images against a data set, by torchmetrics.

python -m vdm_diffusers.fid --pretrained_model_name_or_path vdm-cifar10 --dataset_name cifar10 --split train
python -m vdm_diffusers.fid --pretrained_model_name_or_path google/ddpm-cifar10-32 --dataset_name cifar10 --split train \
    --scheduler DDIMScheduler --num_inference_steps 100 --extractor_weights_path weights-inception-2015-12-05-6726825d.pth
"""

import hashlib
import inspect
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from .command_line import check_file_to_write, exit_with_message, option, parse_options, without_traceback
from .data.images import ImageData, load_images
from .guards.foreign_models import check_pipeline
from .guards.loading import reason_of, refused_as
from .guards.secrecy import guarded_output
from .pictures import in_words


COMMAND = "fid.py"
NUM_LEVELS = 256
INCEPTION = "inception-v3-compat, 2048"


@dataclass
class FidOptions:
    """
    Every option of `python -m vdm_diffusers.fid`.

    Raises `ValueError`, naming the option and the remedy, for values that no measurement can have.
    """

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline without text, folder or Hub name.")
    dataset_name: str | None = option(None, "A data set on the Hub.")
    dataset_config_name: str | None = option(None, "Its configuration, if it has several.")
    data_dir: str | None = option(None, "A folder of images or parquet files.", aliases=("train_data_dir",))
    image_column: str | None = option(None, "The column of images. Default: the only one, or image.")
    split: str | None = option(None, "The split to compare with. Default: validation or test.", aliases=("validation_split",))
    max_images: int | None = option(None, "Only so many of its images, the first. Default: all.")
    num_images: int | None = option(None, "Images to generate. Default: as many.")
    scheduler: str | None = option(None, "A scheduler of diffusers, by its name. Default: the pipeline's.")
    num_inference_steps: int | None = option(None, "Its steps. Default: the pipeline's.")
    seed: int = option(0, "Of the images and of KID's subsets.")
    batch_size: int = option(64, "Images a batch. Others give other images.")
    kid_subsets: int = option(100, "Subsets that KID is a mean over.")
    kid_subset_size: int = option(1000, "Images of a subset; all, where there are fewer.")
    extractor_weights_path: Path | None = option(None, "Inception's, as torch-fidelity has them. Default: downloaded by it.")
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "Where to generate.")
    output_path: Path | None = option(None, "A JSON file for the result.")

    def __post_init__(self):
        least = {"max_images": 2, "num_images": 2, "kid_subset_size": 2}
        least |= {"num_inference_steps": 1, "batch_size": 1, "kid_subsets": 1, "seed": 0}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None and value < lowest:
                raise ValueError(f"`--{name}` is {value}, but must be at least {lowest}.")
        if self.seed >= 2**32:
            raise ValueError(f"`--seed` is {self.seed}, but must be below 2^32.")
        if self.dataset_name is None and self.data_dir is None:
            raise ValueError("Images to compare with are missing: give `--dataset_name` or `--data_dir`.")
        if self.output_path is not None:
            check_file_to_write(self.output_path)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with exit_with_message(COMMAND, ValueError, OSError):
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
        raise ValueError(f"{reason_of(error)} `pip install '.[fid]'` installs what FID and KID need.") from error

    pipeline = load_pipeline(options)
    data = load_images(
        dataset_name=options.dataset_name,
        dataset_config_name=options.dataset_config_name,
        train_data_dir=options.data_dir,
        image_column=options.image_column,
        validation_split=options.split,
    )
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
    if not all(math.isfinite(value) for value in figures.values()):
        raise ValueError("The distances are not finite: the extractor's features are NaN or infinite for some images.")
    return {
        "model": options.pretrained_model_name_or_path,
        "data": {"name": data.name, "split": options.split, "shape": list(data.shape), "num_images": len(real)},
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
    with refused_as(f"`--pretrained_model_name_or_path` {name!r} could not be loaded"):
        pipeline = DiffusionPipeline.from_pretrained(check_pipeline(name)).to(options.device)
    parameters = inspect.signature(pipeline.__call__).parameters
    if "num_inference_steps" not in parameters or not {"batch_size", "class_labels"} & parameters.keys():
        raise ValueError(f"{type(pipeline).__name__} makes no images from noise alone or from classes: give one that does.")
    if options.scheduler is not None:
        scheduler = getattr(diffusers, options.scheduler, None)
        if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
            raise ValueError(f"`--scheduler` is {options.scheduler!r}, which is no scheduler of diffusers.")
        with refused_as(f"`--scheduler` {options.scheduler!r} can't sample this pipeline"):
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


def real_images(images: Dataset, batch_size: int) -> Iterator[Tensor]:
    """Batches `(B, 3, H, W)` of uint8."""
    for batch in DataLoader(images, batch_size):
        yield rgb(batch["images"])


def generated_images(
    pipeline: DiffusionPipeline, num_images: int, num_inference_steps: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Batches `(B, 3, H, W)` of uint8, of a class-conditional pipeline all classes in turn; they depend on the batch size."""
    set_seed(seed)  # some pipelines don't pass their generator on
    generator = torch.Generator().manual_seed(seed)
    classes = num_classes(pipeline)
    for start in range(0, num_images, batch_size):
        indices = range(start, min(start + batch_size, num_images))
        call = {"batch_size": len(indices)} if classes is None else {"class_labels": [index % classes for index in indices]}
        with refused_as("The pipeline could not make images"):
            output = pipeline(generator=generator, num_inference_steps=num_inference_steps, output_type="np", **call)
        yield rgb(torch.from_numpy(output.images).mul(255).round().byte().permute(0, 3, 1, 2))


def num_classes(pipeline: DiffusionPipeline) -> int | None:
    """The classes of a pipeline that is called with their labels, the null class left out."""
    if "class_labels" not in inspect.signature(pipeline.__call__).parameters:
        return None
    denoiser = pipeline.components.get("unet") or pipeline.components.get("transformer")
    if embeddings := denoiser.config.get("num_class_embeds"):
        return embeddings - 1
    return denoiser.config.get("num_embeds_ada_norm")


def rgb(images: Tensor) -> Tensor:
    """Grey images repeated as RGB."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def distances(
    real: Iterator[Tensor],
    generated: Iterator[Tensor],
    extractor: nn.Module,
    shape: Sequence[int],
    kid_subset_size: int,
    kid_subsets: int,
    device: str,
) -> dict[str, float]:
    """FID, KID and KID's standard deviation over its subsets, by torchmetrics, of batches `(B, 3, H, W)` of uint8."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.wrappers import FeatureShare

    fid = FrechetInceptionDistance(extractor, input_img_size=(3, *shape[1:]))
    kid = KernelInceptionDistance(extractor, subsets=kid_subsets, subset_size=kid_subset_size)
    metrics = FeatureShare([fid, kid]).to(device)
    for images, are_real in ((real, True), (generated, False)):
        for batch in images:
            if tuple(batch.shape[2:]) != tuple(shape[1:]):
                raise ValueError(
                    f"The pipeline makes images of {batch.shape[2]}×{batch.shape[3]}, but those of the data are"
                    f" {shape[1]}×{shape[2]}: compare it with data of its size."
                )
            metrics.update(batch.to(device), real=are_real)
    figures = metrics.compute()
    mean, deviation = figures["KernelInceptionDistance"]
    return {"fid": figures["FrechetInceptionDistance"].item(), "kid": mean.item(), "kid_standard_deviation": deviation.item()}


def inception(weights_path: Path | None) -> nn.Module:
    """Inception as FID is defined by, with 2048 features; its weights are given, or downloaded and compared with their hash.

    torch-fidelity would unpickle whatever a file holds, so that it gets a copy of what was loaded as weights alone.
    """
    if find_spec("torch_fidelity") is None or find_spec("torchvision") is None:
        raise ValueError("Inception needs torch-fidelity and torchvision: `pip install '.[fid]'` installs them.")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import NoTrainInceptionV3

    what = "Inception could not be downloaded" if weights_path is None else f"`--extractor_weights_path` {str(weights_path)!r}"
    with refused_as(what), TemporaryDirectory() as folder:
        if weights_path is None:
            weights = torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
        else:
            weights = torch.load(weights_path, "cpu", weights_only=True)
        copy = Path(folder, "weights.pth")
        torch.save(weights, copy)
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], str(copy))


def digest(extractor: nn.Module) -> str:
    """SHA-256 of the names and values of all weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


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
