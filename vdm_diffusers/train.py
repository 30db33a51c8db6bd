"""Train a variational diffusion model.

    python train_vdm.py                                                      # the embedded digits, minutes on a CPU
    accelerate launch train_vdm.py --dataset_name cifar10 --output_dir vdm-cifar10
    accelerate launch train_vdm.py options.yaml --seed 1                     # options from a YAML or JSON file, then flags

`--help` lists every option; docs/training.md explains them.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    set_seed,
)
from diffusers import ModelMixin

from . import command_line
from .autoencoders import load_autoencoder
from .command_line import exit_with_message, without_traceback
from .data import DataError, ImageData, load_images
from .data.images import EMBEDDED
from .data.latents import in_latent_space, latent_shape
from .data.streaming import load_image_stream
from .data.texts import all_captions, cache_text_embeddings, with_encoded_captions
from .guards.messages import as_flag, refuse_if, spelled
from .guards.secrecy import forget_arguments, guarded_output, redacted
from .likelihood import variational_bound
from .text_encoders import PromptEncoder, load_prompt_encoder
from .training import Trainer
from .training.captions import validation_prompts
from .training.checkpoints.folders import find_checkpoints
from .training.checkpoints.manifests import read_manifest
from .training.checkpoints.writing import CheckpointError
from .training.config import DESCRIBED_BY_CONFIG, DIGITS, TrainingConfig
from .training.hub import Uploads, check_token, create_repository
from .training.model_building import build_vdm
from .training.output_dir import check_output_dir, take_output_dir
from .training.output_files import LOGS
from .training.placement.choice import check_launch, check_placement, placement_of
from .training.planning import check_disk_space, describe_plan, needs_of
from .training.processes import on_main_process
from .training.results import finish, summary, upload_in_background
from .training.resuming import Run
from .training.run_lock import in_use, is_in_use
from .training.sample_grids import draw_samples
from .training.stopping import TrainingStopped
from .vdm import VDM


COMMAND = "train_vdm.py"


def main(config_class: type[TrainingConfig] = TrainingConfig) -> None:
    """Train a model by the options of the command line, which are the fields of a configuration."""
    with guarded_output(), ExitStack() as until_the_end:
        run(config_class, until_the_end)


def run(config_class: type[TrainingConfig], until_the_end: ExitStack) -> None:
    """Train a model in a folder that is locked until the end."""
    seconds: dict[str, float] = {}
    with exit_with_message(COMMAND, ValueError, OSError), timed(seconds, "preparation"):
        config = parse_options(sys.argv[1:], config_class)
        forget_arguments()
        check_packages(config)
        check_launch()
        accelerator = build_accelerator(config)
        config.mixed_precision = accelerator.mixed_precision
        on_main_process(accelerator, check_placement, accelerator, config)
        seen = on_main_process(accelerator, find_checkpoints, Path(config.output_dir))
        checkpoint = on_main_process(accelerator, check_output_dir, config)
        if accelerator.num_processes > 1:
            on_main_process(accelerator, check_data, config)
        data, vae, prompt_encoder = load_data(config), load_vae(config), load_text_encoder(config)
        shape = data.shape if vae is None else latent_shape(vae, data)
        set_seed(config.seed)
        vdm = build_vdm(config, replace(data, shape=shape), vae, prompt_encoder)
        if data.has_captions:
            config.validation_prompts = config.validation_prompts or validation_prompts(data, config.num_samples)
            with accelerator.main_process_first():
                prepare_text(config, data, vdm.prompt_encoder, accelerator)
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
        take_output_dir(accelerator, config, checkpoint, seen, until_the_end)
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
            accelerator.print(f"{COMMAND}: {spelled(stopped, as_flag())}")
            return
    with timed(seconds, "sampling"):
        samples = draw_samples(accelerator, vdm, config)
    with exit_with_message(COMMAND, DataError, silent=silent), timed(seconds, "evaluation"):
        trained = VDM.from_pipeline(vdm.to_pipeline(), num_timesteps=config.num_timesteps)
        bounds = [
            variational_bound(
                trained,
                with_encoded_captions(data.validation, vdm.prompt_encoder, vdm.unet, captions),
                config.final_validation_repeats,
                seed=config.seed,
                device=accelerator.device,
                processes=PartialState(),
            )
            for captions in ([None, [""] * len(data.validation)] if data.has_captions else [None])
        ]
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    try:
        metrics = finish(config, data, vdm, trainer.history, samples, bounds, seconds)
    except (OSError, DataError) as error:
        remedy = ". Make room" if isinstance(error, OSError) else " Repair it"
        raise SystemExit(
            f"{COMMAND}: The model is trained, but {config.output_dir!r} lacks something:"
            f" {redacted(spelled(error, as_flag()))}{remedy}, and finish it by `--resume_from_checkpoint latest`."
        ) from error
    print(summary(config, data, metrics, vdm.unit))
    if uploads is not None:
        with exit_with_message(COMMAND, RuntimeError):
            uploads.finish()


def check_needs(config: TrainingConfig, data: ImageData, vdm: VDM, accelerator: Accelerator) -> None:
    """Refuse a run that the disk has no room for; of a dry run, print the plan."""
    if config.dry_run:
        if config.push_to_hub:
            check_token(config)
        if is_in_use(folder := Path(config.output_dir)):
            print(in_use(folder).spelled(as_flag()))
        print(describe_plan(config, data, vdm, accelerator.num_processes, accelerator.device, accelerator.is_fsdp2))
    check_disk_space(config, needs_of(config, vdm))


def parse_options(arguments: list[str], config_class: type[TrainingConfig] = TrainingConfig) -> TrainingConfig:
    """Options from a file, if the first argument is one, then from flags; without a data set, those of the digits."""
    given = command_line.parse_options(config_class, arguments, COMMAND, __doc__.splitlines()[0])
    defaults = DIGITS if is_embedded(given.get("dataset_name"), given.get("train_data_dir")) else {}
    if "model_config_name_or_path" in given:
        defaults = {name: value for name, value in defaults.items() if name not in DESCRIBED_BY_CONFIG}
    return config_class(**defaults | given)


def is_embedded(dataset_name: str | None, train_data_dir: str | None) -> bool:
    """Whether these options mean the digits."""
    return train_data_dir is None and dataset_name in (None, EMBEDDED)


def check_packages(config: TrainingConfig) -> None:
    """Refuse to begin without what a run would miss at its first picture, for its tracker, or for the digits."""
    packages = {"matplotlib": "matplotlib"}
    if is_embedded(config.dataset_name, config.train_data_dir):
        packages["sklearn"] = "scikit-learn"
    for module, package in packages.items():
        if find_spec(module) is None:
            raise ValueError(f"{package} is not installed: `pip install 'vdm-diffusers[train]'` installs what training needs.")
    trackers = [*LOGGER_TYPE_TO_CLASS, "all", "none"]
    refuse_if(
        config.report_to not in trackers,
        "{report_to} is {!r}, which is no tracker: choose one of {}.",
        *(config.report_to, ", ".join(trackers)),
    )
    refuse_if(
        config.report_to in LOGGER_TYPE_TO_CLASS and config.report_to not in map(str, get_available_trackers()),
        "{} is not installed: install it, or leave the tracker out by {report_to:none}.",
        config.report_to,
    )


def load_data(config: TrainingConfig) -> ImageData:
    """The images that the options name."""
    options = {name: getattr(config, name) for name in ("resolution", "num_channels", "num_levels")} | config.loading()
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


def load_text_encoder(config: TrainingConfig) -> PromptEncoder | None:
    """The text encoder that the options name, if any."""
    name = config.text_encoder_name_or_path
    return name and load_prompt_encoder(name, config.cache_dir, config.max_sequence_length)


def prepare_text(config: TrainingConfig, data: ImageData, encoder: PromptEncoder, accelerator: Accelerator) -> None:
    """Move the text encoders to their device, have the captions encoded if they are to be kept, and say how many are cut."""
    encoder.to(accelerator.device)
    if config.cache_text_embeddings is not None:
        cache_text_embeddings(encoder, data.train, config.cache_text_embeddings, write=not config.dry_run)
    if accelerator.is_main_process and not config.streaming:
        captions = all_captions(data.train)
        if cut := encoder.num_cut(captions):
            length = encoder.max_sequence_length
            print(f"{COMMAND}: {cut:,} of {len(captions):,} captions have more than {length} tokens and are cut.")


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate, with batches in an order that a resumed run repeats."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=f"{config.output_dir}/{LOGS}"),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed, non_blocking=True),
    )


def check_resumption(config: TrainingConfig, data: ImageData, checkpoint: Path, accelerator: Accelerator) -> None:
    """Refuse to go on from the checkpoint of another run, and print what else changes."""
    now = Run.of(config, data, accelerator.num_processes, placement_of(accelerator))
    for sentence in now.changes_since(read_manifest(checkpoint).run, config.allow_config_change):
        print(sentence)


def is_plain(value: object) -> bool:
    """Whether a tracker can store it."""
    return isinstance(value, (int, float, str, bool))


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
