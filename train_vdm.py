"""Train a variational diffusion model.

    python train_vdm.py                                                      # the embedded digits, minutes on a CPU
    accelerate launch train_vdm.py --dataset_name cifar10 --output_dir vdm-cifar10
    accelerate launch train_vdm.py options.yaml --seed 1                     # options from a YAML or JSON file, then flags

`--help` lists every option; docs/training.md explains them.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, ProjectConfiguration, set_seed
from transformers import HfArgumentParser

from vdm_diffusers.data import ImageData, load_images
from vdm_diffusers.figures import save_forward_process, save_training_curve
from vdm_diffusers.hub import create_repository, save_model_card, upload
from vdm_diffusers.likelihood import histogram_bits_per_dim, variational_bound
from vdm_diffusers.model_building import build_vdm
from vdm_diffusers.training import Trainer, find_checkpoint, save_samples
from vdm_diffusers.training_config import DIGITS, TrainingConfig


CONFIG_NAME = "training_config.json"


def main() -> None:
    seconds: dict[str, float] = {}
    with exit_with_message(ValueError), timed(seconds, "preparation"):
        config = parse_options(sys.argv[1:])
        check_output_dir(config)
        data = load_data(config)
        set_seed(config.seed)
        vdm = build_vdm(config, data)
        accelerator = build_accelerator(config)
        set_seed(config.seed, device_specific=True)
        trainer = Trainer(accelerator, config, vdm, data)
        repository = create_repository(config) if config.push_to_hub and accelerator.is_main_process else None
        if accelerator.is_main_process:
            prepare_output_dir(config)
        accelerator.wait_for_everyone()

    accelerator.init_trackers("train_vdm", {key: value for key, value in asdict(config).items() if is_plain(value)})
    with exit_with_message(FloatingPointError), timed(seconds, "training"):
        vdm = trainer.train()
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    output_dir = Path(config.output_dir)
    vdm.save_pretrained(output_dir)
    with timed(seconds, "evaluation"):
        bound = variational_bound(
            vdm, data.validation, config.final_validation_repeats, seed=config.seed, device=accelerator.device
        )
        histogram = histogram_bits_per_dim(data.train, data.validation, data.num_levels)
    with timed(seconds, "sampling"):
        save_samples(vdm, config, output_dir / "samples.png")
    example = data.validation[0]["images"][None]
    save_forward_process(vdm.scale(example), vdm.noise_schedule, output_dir / "forward_process.png")
    save_training_curve(trainer.history.training, trainer.history.validation, output_dir / "training_curve.png")

    metrics = asdict(bound) | {"histogram_bits_per_dim": histogram, "seconds": seconds}
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    save_model_card(config, data, metrics)
    report(config, data, metrics)
    if repository is not None:
        with exit_with_message(RuntimeError):
            upload(config, repository)


def parse_options(arguments: list[str]) -> TrainingConfig:
    """Options from a file, if the first argument is one, then from flags; without a data set, those of the digits."""
    parser = HfArgumentParser(TrainingConfig, description=__doc__.splitlines()[0])
    if arguments and not arguments[0].startswith("-"):
        arguments = read_options(Path(arguments[0])) + arguments[1:]
    if parser.parse_args(arguments).dataset_name is None and parser.parse_args(arguments).train_data_dir is None:
        parser.set_defaults(**DIGITS)
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)[0]


def read_options(path: Path) -> list[str]:
    """The options of a YAML or JSON file, as flags."""
    if not path.is_file():
        raise ValueError(f"There is no file of options {str(path)!r}; flags begin with `--`.")
    options = yaml.safe_load(path.read_text())
    known = {option.name for option in fields(TrainingConfig)}
    if not isinstance(options, dict) or not set(options) <= known:
        unknown = sorted(set(options) - known) if isinstance(options, dict) else type(options).__name__
        raise ValueError(f"{str(path)!r} must map options to values, but has {unknown}; `--help` lists the options.")
    flags = []
    for name, value in options.items():
        if value is not None:
            flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags


def load_data(config: TrainingConfig) -> ImageData:
    """The images that the options name."""
    names = (
        "dataset_name", "train_data_dir", "dataset_config_name", "cache_dir", "image_column", "label_column",
        "validation_split", "resolution", "num_channels", "num_levels",
    )  # fmt: skip
    return load_images(**{name: getattr(config, name) for name in names})


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate, with batches in an order that a resumed run repeats."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=f"{config.output_dir}/logs"),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
    )


def check_output_dir(config: TrainingConfig) -> None:
    """Refuse a folder with a run in it unless that run is to be resumed or replaced, and any other folder with files."""
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint is not None:
        find_checkpoint(config)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(f"`--output_dir` {config.output_dir!r} holds something other than a run: name another folder.")
        if not config.overwrite_output_dir:
            raise ValueError(
                f"`--output_dir` {config.output_dir!r} holds another run: name another folder, go on with that run by"
                " `--resume_from_checkpoint latest`, or replace it by `--overwrite_output_dir`."
            )


def prepare_output_dir(config: TrainingConfig) -> None:
    """Make the output folder, empty unless a run is resumed, and write the options there."""
    folder = Path(config.output_dir)
    if folder.exists() and config.resume_from_checkpoint is None:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = {key: value for key, value in asdict(config).items() if key != "hub_token"}
    (folder / CONFIG_NAME).write_text(json.dumps(options, indent=2) + "\n")


def is_plain(value: object) -> bool:
    """Whether a tracker can store it."""
    return isinstance(value, (int, float, str, bool))


def report(config: TrainingConfig, data: ImageData, metrics: dict) -> None:
    """Print the result."""
    print(
        f"\n{len(data.validation)} held-out images of {data.name}:"
        f" {metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f} bits/dim"
        f"\n  = prior {metrics['prior']:.4f} + reconstruction {metrics['reconstruction']:.4f}"
        f" + diffusion {metrics['diffusion']:.4f}"
        f"\n  a histogram of every pixel gets {metrics['histogram_bits_per_dim']:.4f}"
        f"\nPipeline, pictures and metrics.json are in {config.output_dir}/."
    )


@contextmanager
def exit_with_message(error_type: type[Exception]) -> Iterator[None]:
    """End the program with the message of an error of that type instead of its traceback."""
    try:
        yield
    except error_type as error:
        raise SystemExit(f"train_vdm.py: {error}") from error


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Note how long a part of the run took."""
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    main()
