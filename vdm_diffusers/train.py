"""Train a variational diffusion model.

    python train_vdm.py                                                      # the embedded digits, minutes on a CPU
    accelerate launch train_vdm.py --dataset_name cifar10 --output_dir vdm-cifar10
    accelerate launch train_vdm.py options.yaml --seed 1                     # options from a YAML or JSON file, then flags

`--help` lists every option; docs/training.md explains them.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
    set_seed,
)
from diffusers import ModelMixin
from PIL.Image import Image

from . import command_line
from .autoencoders import load_autoencoder
from .command_line import exit_with_message, without_traceback
from .data import DataError, ImageData, load_images
from .data.histogram import histogram_bits_per_dim
from .data.latents import in_latent_space, latent_shape
from .data.streaming import load_image_stream
from .figures import save_forward_process, save_training_curve
from .guards.secrecy import forget_arguments, guarded_output, redacted
from .likelihood import VariationalBound, variational_bound
from .training import History, Trainer
from .training.checkpoints.folders import (
    CheckpointError,
    clear_the_way,
    find_checkpoint,
    find_checkpoints,
    read_manifest,
    remove,
)
from .training.config import DIGITS, TrainingConfig
from .training.hub import Uploads, check_token, create_repository, save_model_card
from .training.model_building import build_vdm
from .training.placement.choice import check_placement, describe_placement
from .training.planning import check_disk_space, describe_plan, needs_of
from .training.resuming import compare_runs, describe_run
from .training.run_lock import RunLock, in_use, is_in_use, is_lock
from .training.sample_grids import draw_samples, save_samples
from .training.stopping import TrainingStopped
from .units import BITS_PER_DIM, Unit
from .vdm import VDM


COMMAND = "train_vdm.py"
CONFIG_NAME = "training_config.json"


def main() -> None:
    with guarded_output(), ExitStack() as until_the_end:
        run(until_the_end)


def run(until_the_end: ExitStack) -> None:
    """Train a model by the options of the command line, in a folder that is locked until the end."""
    seconds: dict[str, float] = {}
    with exit_with_message(COMMAND, ValueError, OSError), timed(seconds, "preparation"):
        config = parse_options(sys.argv[1:])
        forget_arguments()
        check_packages(config)
        accelerator = build_accelerator(config)
        config.mixed_precision = accelerator.mixed_precision
        on_main_process(accelerator, check_placement, accelerator, config)
        seen = on_main_process(accelerator, find_checkpoints, Path(config.output_dir))
        checkpoint = on_main_process(accelerator, check_output_dir, config)
        if accelerator.num_processes > 1:
            on_main_process(accelerator, check_data, config)
        data, vae = load_data(config), load_vae(config)
        shape = data.shape if vae is None else latent_shape(vae, data)
        set_seed(config.seed)
        vdm = build_vdm(config, replace(data, shape=shape), vae)
        if vae is not None:
            with accelerator.main_process_first():
                data = in_latent_space(
                    data, vae, config.cache_latents, accelerator.device, config.seed, write=not config.dry_run
                )
        if checkpoint is not None:
            on_main_process(accelerator, check_resumption, config, data, checkpoint, accelerator)
        torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
        on_main_process(accelerator, check_needs, config, data, vdm, accelerator)
        set_seed(config.seed, device_specific=True)
        trainer = Trainer(accelerator, config, vdm, data, checkpoint)
        if config.dry_run:
            trainer.progress.close()
            return
        if config.push_to_hub:
            config.hub_model_id = on_main_process(accelerator, create_repository, config)
        lock = RunLock(Path(config.output_dir), accelerator.process_index)
        on_main_process(accelerator, take_output_dir, config, checkpoint, seen, lock, until_the_end)
        check_that_folder_is_shared(config)
        if not accelerator.is_main_process:
            until_the_end.enter_context(lock)
        uploads = Uploads(config) if config.push_to_hub else None
        if uploads is not None and config.hub_strategy == "every_validation":
            trainer.publish = partial(upload_in_background, uploads, config, data)

    accelerator.init_trackers(
        "train_vdm",
        {key: value for key, value in config.public().items() if is_plain(value)},
        {"tensorboard": {"purge_step": trainer.history.step + 1}},
    )
    silent = not accelerator.is_main_process  # for all processes see these errors
    with (
        exit_with_message(COMMAND, FloatingPointError, CheckpointError, DataError, silent=silent),
        timed(seconds, "training"),
    ):
        try:
            vdm = trainer.train()
        except TrainingStopped as stopped:
            accelerator.end_training()
            accelerator.print(f"train_vdm.py: {stopped}")
            return
    with timed(seconds, "sampling"):
        samples = draw_samples(accelerator, vdm, config)
    with exit_with_message(COMMAND, DataError, silent=silent), timed(seconds, "evaluation"):
        bound = variational_bound(
            VDM.from_pipeline(vdm.to_pipeline(), num_timesteps=config.num_timesteps),
            data.validation,
            config.final_validation_repeats,
            seed=config.seed,
            device=accelerator.device,
            processes=PartialState(),
        )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    try:
        metrics = finish(config, data, vdm, trainer.history, samples, bound, seconds)
    except (OSError, DataError) as error:
        remedy = ". Make room" if isinstance(error, OSError) else " Repair it"
        raise SystemExit(
            f"train_vdm.py: The model is trained, but {config.output_dir!r} lacks something: {redacted(str(error))}{remedy},"
            " and finish it by `--resume_from_checkpoint latest`."
        ) from error
    report(config, data, metrics, vdm.unit)
    if uploads is not None:
        with exit_with_message(COMMAND, RuntimeError):
            uploads.finish()


def finish(
    config: TrainingConfig,
    data: ImageData,
    vdm: VDM,
    history: History,
    samples: list[Image],
    bound: VariationalBound,
    seconds: dict[str, float],
) -> dict:
    """Write the trained model, its pictures, what was measured, and its card; return the measurements."""
    folder = Path(config.output_dir)
    vdm.save_pretrained(folder)
    save_samples(samples, vdm, folder / "samples.png")
    save_forward_process(vdm.scale(data.validation[0]["images"][None]), vdm.noise_schedule, folder / "forward_process.png")
    save_training_curve(history.training, history.validation, folder / "training_curve.png", vdm.unit)
    metrics = measurements(bound.record(), config.max_train_steps, len(data.validation), config.final_validation_repeats)
    if vdm.unit is BITS_PER_DIM:
        metrics["histogram_bits_per_dim"] = histogram_bits_per_dim(data.train, data.validation, data.num_levels)
    metrics["seconds"] = seconds
    describe_model(folder, config, data, vdm, metrics)
    return metrics


def check_needs(config: TrainingConfig, data: ImageData, vdm: VDM, accelerator: Accelerator) -> None:
    """Refuse a run that the disk has no room for; of a dry run, print the plan."""
    if config.dry_run:
        if config.push_to_hub:
            check_token(config)
        print(describe_plan(config, data, vdm, accelerator.num_processes, accelerator.device, accelerator.is_fsdp2))
    check_disk_space(config, needs_of(config, vdm))


def measurements(bound: dict, step: int, num_images: int, num_repeats: int) -> dict:
    """What `metrics.json` says of a bound."""
    return bound | {"step": step, "num_images": num_images, "num_repeats": num_repeats}


def describe_model(folder: Path, config: TrainingConfig, data: ImageData, vdm: VDM, metrics: dict) -> None:
    """Write what was measured, and the card made from it."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    save_model_card(folder, config, data, vdm, metrics)


def upload_in_background(uploads: Uploads, config: TrainingConfig, data: ImageData, vdm: VDM, history: History) -> str | None:
    """Upload the model as it is, with its last validation; return what there is to warn of."""
    failure = uploads.failure()
    folder = uploads.stage()
    if folder is None:
        return "the last upload is still under way: this one is left out."
    record = history.validation[-1]
    num_images = min(len(data.validation), config.max_validation_images or len(data.validation))
    vdm.save_pretrained(folder)
    for drawn in (folder / "samples").glob(f"step-{record['step']}.*"):
        shutil.copy(drawn, folder / f"samples{drawn.suffix}")
    describe_model(folder, config, data, vdm, measurements(record, record["step"], num_images, config.validation_repeats))
    uploads.start(record["step"])
    return None if failure is None else f"the last upload failed: {failure} This one takes it up."


def parse_options(arguments: list[str]) -> TrainingConfig:
    """Options from a file, if the first argument is one, then from flags; without a data set, those of the digits."""
    given = command_line.parse_options(TrainingConfig, arguments, COMMAND, __doc__.splitlines()[0])
    defaults = DIGITS if given.get("dataset_name") is None and given.get("train_data_dir") is None else {}
    return TrainingConfig(**defaults | given)


def check_packages(config: TrainingConfig) -> None:
    """Refuse to begin without what a run would miss at its first picture, for its tracker, or for the digits."""
    packages = {"matplotlib": "matplotlib"}
    if config.dataset_name is None and config.train_data_dir is None:
        packages["sklearn"] = "scikit-learn"
    for module, package in packages.items():
        if find_spec(module) is None:
            raise ValueError(f"{package} is not installed: `pip install '.[quickstart]'` installs what training runs need.")
    if config.report_to in LOGGER_TYPE_TO_CLASS and config.report_to not in map(str, get_available_trackers()):
        raise ValueError(f"{config.report_to} is not installed: install it, or leave the tracker out by `--report_to none`.")


def load_data(config: TrainingConfig) -> ImageData:
    """The images that the options name."""
    names = (
        "dataset_name", "train_data_dir", "dataset_config_name", "cache_dir", "image_column", "label_column",
        "validation_split", "resolution", "num_channels", "num_levels", "num_spatial_dims",
    )  # fmt: skip
    options = {name: getattr(config, name) for name in names}
    options |= {"preparation": config.preparation, "skip_unreadable_images": config.skip_unreadable_images}
    if config.streaming:
        return load_image_stream(
            config.max_validation_images, buffer_size=config.shuffle_buffer_size, seed=config.seed, **options
        )
    return load_images(num_workers=config.dataloader_num_workers, **options)


def check_data(config: TrainingConfig) -> None:
    """Refuse images that can't be trained on; what is found is kept by the cache of `datasets`, for the other processes too."""
    load_data(config)


def load_vae(config: TrainingConfig) -> ModelMixin | None:
    """The autoencoder that the options name, if any."""
    return config.vae_model_name_or_path and load_autoencoder(config.vae_model_name_or_path, config.cache_dir)


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


def check_output_dir(config: TrainingConfig) -> Path | None:
    """Refuse a folder that can't be written, that a run is using, or that holds something other than the run to resume or to
    replace; find, verify and return the checkpoint that is to be resumed."""
    folder, checkpoint = Path(config.output_dir), None
    check_links(folder)
    if is_in_use(folder):
        if not config.dry_run:
            raise ValueError(in_use(folder))
        print(in_use(folder))
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, folder)
    if not lies_in(folder, checkpoint):
        check_that_folder_is_free(config, folder)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        Path(mkdtemp(dir=parent)).rmdir()
    except OSError as error:
        raise unwritable(config, error) from error
    return checkpoint


def lies_in(folder: Path, checkpoint: Path | None) -> bool:
    """Whether a run that goes on from this checkpoint is that of this folder."""
    if checkpoint is None:
        return False
    return folder.resolve() in {checkpoint.absolute().parent.resolve(), *checkpoint.resolve().parents}


def check_links(folder: Path) -> None:
    """Refuse a path with a symbolic link that leads nowhere."""
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"`--output_dir`: {str(path)!r} is a symbolic link to {os.readlink(path)!r}, which leads nowhere: make that"
                " folder, or name another."
            )


def check_that_folder_is_free(config: TrainingConfig, folder: Path) -> None:
    """Refuse a folder with another run unless it is to be replaced, and any other with files."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_lock, folder.iterdir()))):
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(f"`--output_dir` {config.output_dir!r} holds something other than a run: name another folder.")
        if not config.overwrite_output_dir:
            raise ValueError(
                f"`--output_dir` {config.output_dir!r} holds another run: name another folder, go on with that run by"
                " `--resume_from_checkpoint latest`, or replace it by `--overwrite_output_dir`."
            )


def unwritable(config: TrainingConfig, error: OSError) -> ValueError:
    """What to say of an output folder that gave this error."""
    return ValueError(f"`--output_dir` {config.output_dir!r} can't be written: {error.strerror}. Name a folder that can be.")


def check_resumption(config: TrainingConfig, data: ImageData, checkpoint: Path, accelerator: Accelerator) -> None:
    """Refuse to go on from the checkpoint of another run, and print what else changes."""
    now = describe_run(config, data, accelerator.num_processes, describe_placement(accelerator))
    for sentence in compare_runs(read_manifest(checkpoint), now, config.allow_config_change):
        print(sentence)


def take_output_dir(
    config: TrainingConfig, checkpoint: Path | None, seen: list[Path], lock: RunLock, until_the_end: ExitStack
) -> None:
    """Lock the output folder and prepare it, unless another run has written there since it was checked."""
    folder = Path(config.output_dir)
    until_the_end.enter_context(lock)
    if not lies_in(folder, checkpoint):
        check_that_folder_is_free(config, folder)
    elif find_checkpoints(folder) != seen:
        raise ValueError(f"Another run has written checkpoints to `--output_dir` {config.output_dir!r} just now: start again.")
    prepare_output_dir(config, checkpoint)


def prepare_output_dir(config: TrainingConfig, checkpoint: Path | None) -> None:
    """Make the output folder, empty but for its lock unless the run in it is resumed, and write the options there."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not lies_in(folder, checkpoint):
            for path in folder.iterdir():
                if not is_lock(path):
                    remove(path)
        if checkpoint is not None:
            clear_the_way(folder, checkpoint)
        (folder / CONFIG_NAME).write_text(json.dumps(config.public(), indent=2) + "\n")
    except OSError as error:
        raise unwritable(config, error) from error


def check_that_folder_is_shared(config: TrainingConfig) -> None:
    """Every process writes its part of a checkpoint."""
    if not Path(config.output_dir, CONFIG_NAME).is_file():
        raise ValueError(
            f"`--output_dir` {config.output_dir!r} is not the same folder on all machines: name one that they share, since each"
            " writes its part of a checkpoint there."
        )


def is_plain(value: object) -> bool:
    """Whether a tracker can store it."""
    return isinstance(value, (int, float, str, bool))


def report(config: TrainingConfig, data: ImageData, metrics: dict, unit: Unit) -> None:
    """Print the result."""
    print(
        f"\n{len(data.validation)} held-out {'images' if unit is BITS_PER_DIM else 'latents'} of {data.name}:"
        f" {metrics[unit.name]:.4f} ± {metrics['standard_error']:.4f} {unit.label}"
        f"\n  = prior {metrics['prior']:.4f} + reconstruction {metrics['reconstruction']:.4f}"
        f" + diffusion {metrics['diffusion']:.4f}"
    )
    if unit is BITS_PER_DIM:
        print(f"  a histogram of every pixel gets {metrics['histogram_bits_per_dim']:.4f}")
    print("95 % interval of the figure: {:.4f} to {:.4f}.".format(*metrics["interval_95"]))
    print(f"Pipeline, pictures and metrics.json are in {config.output_dir}/.")


def on_main_process(accelerator: Accelerator, function: Callable, *arguments: object) -> Any:
    """What a function returns on the main process, on all of them; its `ValueError` ends them all, and that process says it."""
    result, message = None, None
    if accelerator.is_main_process:
        try:
            result = function(*arguments)
        except ValueError as error:
            message = error.args[0] if len(error.args) == 1 else str(error)
    result, message = broadcast_object_list([result, message])
    if message is not None:
        raise ValueError(message) if accelerator.is_main_process else SystemExit(1)
    return result


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Note how long a part of the run took."""
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 2)


def run_command() -> None:
    """The command, as a program runs it."""
    with without_traceback(COMMAND):
        main()


if __name__ == "__main__":
    run_command()
