"""TrainingConfig: every option of a training run."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..command_line import option
from ..data.decoding import CONVERSIONS, Preparation
from ..gaussian import PREDICTIONS
from ..guards.secrecy import SHORTEST_OF_THE_ENVIRONMENT, check_secret, keep_secret
from ..noise_schedules import NOISE_SCHEDULES, LearnedChainSchedule, TableSchedule
from ..weightings import WEIGHTINGS
from .augmentations import AUGMENTATIONS


LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
"""Those of diffusers that need nothing but the number of steps."""


@dataclass
class TrainingConfig:
    """
    Every option of `train_vdm.py`. The defaults are the paper's for CIFAR-10; without a data set, [`DIGITS`] replaces some.

    Raises `ValueError`, naming the option and the remedy, for values that no run can have.

    Attributes:
        preparation ([`Preparation`]): What is done to images beyond reading them.
    """

    # Data
    dataset_name: str | None = option(None, "A data set on the Hub.")
    dataset_config_name: str | None = option(None, "Its configuration.")
    train_data_dir: str | None = option(
        None, "A folder of images or parquet files. Without either: the embedded digits.", aliases=("data_dir",)
    )
    cache_dir: str | None = option(None, "Where downloaded data sets and models are kept.")
    image_column: str | None = option(None, "The column of images. Default: the only one, or image.")
    label_column: str | None = option(None, "A column of class labels: trains a class-conditional model.")
    validation_split: str | None = option(
        None, "Held-out split. Default: validation or test, else a twentieth of the training set."
    )
    resolution: int | None = option(None, "Height and width that the images must have. Default: whatever they have.")
    num_channels: int | None = option(None, "Channels that the images must have. Default: whatever they have.")
    num_levels: int | None = option(None, "Images are integers in [0, num_levels). Default: what their type can hold.")
    num_spatial_dims: int | None = option(
        None, "Dimensions of a sample beside its channels. Default: 1 of arrays (L), 3 of (D, H, W, C), 2 of all others."
    )
    resize: int | None = option(
        None, "Resize images so that their shorter side has so many pixels, which makes them another data set."
    )
    center_crop: bool = option(False, "Cut out the middle square of resized images.")
    convert: Literal[CONVERSIONS] | None = option(
        None, "Convert images to this PIL mode: palettes and CMYK become colours, transparency is dropped."
    )
    skip_unreadable_images: bool = option(
        False, "Leave out images that can't be read, and list them in unreadable_images.txt, instead of refusing them."
    )
    streaming: bool = option(False, "Read the training set as training goes on, instead of downloading it first.")
    shuffle_buffer_size: int = option(10_000, "Images of a stream, undecoded, that are shuffled among each other.")
    augmentation: Literal[tuple(AUGMENTATIONS)] = option(
        "none", "Random flips, or the paper's flips and quarter turns, which the denoiser is told of."
    )
    dataloader_num_workers: int = option(0, "Processes that check and decode images.")

    # Model
    vae_model_name_or_path: str | None = option(
        None, "An autoencoder of diffusers, or a pipeline with one, folder or Hub name: trains in its latents."
    )
    cache_latents: str | None = option(
        None, "A folder to keep the latents of the training images in, encoded once. Default: encode them as they come."
    )
    pretrained_model_name_or_path: str | None = option(None, "A saved VDM, folder or Hub name, to train on.")
    block_channels: int = option(128, "Channels of the denoiser.")
    layers_per_side: int = option(32, "ResNet blocks of the denoiser on each side of its middle.")
    attention_everywhere: bool = option(False, "Attention after every block, not only in the middle.")
    norm_num_groups: int = option(32, "Groups of the group normalisations.")
    dropout: float = option(0.1, "Dropout in the ResNet blocks.")
    fourier_powers: list[int] | None = option(
        None, "Exponents n of the Fourier features sin(2^n 2 pi z). Default: periods of one level and of two; none for latents."
    )
    prediction_type: Literal[tuple(PREDICTIONS)] = option("epsilon", "What the denoiser estimates.")
    noise_schedule: Literal[tuple(name for name in NOISE_SCHEDULES if name != TableSchedule.__name__)] = option(
        "LearnedMonotoneSchedule", "The noise schedule."
    )
    gamma_min: float = option(-13.3, "-log SNR at t = 0; a learned schedule starts here.")
    gamma_max: float = option(5.0, "-log SNR at t = 1; a learned schedule starts here.")
    num_timesteps: int | None = option(None, "T of the discrete-time bound. Default: continuous time.")
    weighting: Literal[tuple(WEIGHTINGS)] = option(
        "elbo", "What noise levels count for in the loss; all but elbo, the bound, fix the schedule's end points."
    )
    class_dropout: float = option(0.1, "Share of labels replaced by the null class, for classifier-free guidance.")

    # Optimisation
    max_train_steps: int = option(1_000_000, "Optimiser steps.")
    train_batch_size: int = option(128, "Images a step and process.")
    gradient_accumulation_steps: int = option(1, "Batches a step.")
    learning_rate: float = option(2e-4, "Peak learning rate of the denoiser.")
    schedule_learning_rate: float = option(1e-3, "Peak learning rate of the noise schedule.")
    lr_scheduler: Literal[LR_SCHEDULERS] = option("constant_with_warmup", "Learning-rate schedule, by its name in diffusers.")
    lr_warmup_steps: int = option(1000, "Steps of linear warm-up.")
    adam_beta1: float = option(0.9, "AdamW's beta1.")
    adam_beta2: float = option(0.99, "AdamW's beta2.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    adam_weight_decay: float = option(0.01, "AdamW's weight decay, for the denoiser.")
    max_grad_norm: float = option(1.0, "Norm to which the denoiser's gradient is clipped.")
    ema_decay: float = option(0.9999, "Decay of the moving average of the weights, approached as steps go on.")
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = option(
        "adamw", "AdamW, its fused implementation, or that of bitsandbytes with its state in eight bits."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Autocast of the denoiser. Default: that of accelerate's configuration."
    )
    allow_tf32: bool = option(False, "Multiply float32 matrices in TF32, on GPUs that have it.")
    gradient_checkpointing: bool = option(False, "Recompute the denoiser's activations in the backward pass, to save memory.")
    torch_compile: bool = option(False, "Compile the denoiser with torch.compile.")
    seed: int = option(0, "Of everything random.")

    # Run
    output_dir: str = option("vdm-model", "Where everything is written.")
    overwrite_output_dir: bool = option(False, "Replace the run that output_dir holds.")
    resume_from_checkpoint: str | None = option(None, "'latest', or a checkpoint folder, to go on from.")
    allow_config_change: bool = option(False, "Go on from a checkpoint with other options than its own.")
    checkpointing_steps: int = option(5000, "Steps between checkpoints.")
    checkpoints_total_limit: int = option(2, "Checkpoints to keep; older ones are deleted.")
    logging_steps: int = option(20, "Steps between log entries.")
    validation_steps: int = option(5000, "Steps between validations and sample grids.")
    validation_repeats: int = option(1, "Times and noises an image when validating.")
    max_validation_images: int | None = option(None, "Held-out images of a validation; the final one takes all.")
    final_validation_repeats: int = option(4, "Times and noises an image in the final evaluation.")
    num_samples: int = option(64, "Images in a sample grid.")
    num_inference_steps: int = option(250, "Sampling steps of a grid.")
    report_to: str = option("tensorboard", "Tracker, by its name in Accelerate, 'all' or 'none'.")
    dry_run: bool = option(False, "Check everything, print the plan and what it needs, and exit without writing anything.")
    push_to_hub: bool = option(False, "Upload the pipeline, its card, pictures and logs.")
    hub_strategy: Literal["end", "every_validation"] = option(
        "end", "When to upload: once trained, or in the background after every validation too."
    )
    hub_license: str = option("apache-2.0", "Licence of the model, by its identifier on the Hub.")
    hub_model_id: str | None = option(None, "Repository to upload to. Default: the name of output_dir.")
    hub_private_repo: bool = option(False, "Create it as a private one.")
    hub_token: str | None = option(
        None, "Access token, which is written and shown nowhere. Default: the one that you are logged in with.", secret=True
    )

    def public(self) -> dict[str, Any]:
        """All options but secret ones, by name: the only form in which a configuration is written, shown or sent."""
        return {option.name: getattr(self, option.name) for option in fields(self) if not option.metadata.get("secret")}

    def __post_init__(self):
        for name in SECRET_OPTIONS:
            if (value := getattr(self, name)) is not None:
                keep_secret(value)
                check_secret(name, value)
                for other, text in self.public().items():
                    if len(value) >= SHORTEST_OF_THE_ENVIRONMENT and value in str(text):
                        raise ValueError(f"`--{other}` contains `--{name}`, but is written and shown: give it another value.")
        for (condition, holds), names in RANGES.items():
            for name in names:
                if (value := getattr(self, name)) is not None and not holds(value):
                    raise ValueError(f"`--{name}` is {value}, but must be {condition}.")
        if len(self.fourier_powers or []) > 64 or not all(-64 <= power <= 64 for power in self.fourier_powers or []):
            raise ValueError("`--fourier_powers` must be at most 64 exponents from -64 to 64.")
        if self.validation_split == "train":
            raise ValueError("`--validation_split` is 'train', whose images are trained on: name another, or leave it out.")
        self.preparation = Preparation(self.resize, self.center_crop, self.convert)
        if self.streaming and self.dataset_name is None and self.train_data_dir is None:
            raise ValueError("`--streaming` needs `--dataset_name` or `--train_data_dir`: the digits are embedded.")
        if self.streaming and self.max_validation_images is None:
            raise ValueError(
                "`--streaming` keeps the held-out images in memory, undecoded: say how many by `--max_validation_images`."
            )
        if self.cache_latents is not None and self.vae_model_name_or_path is None:
            raise ValueError("`--cache_latents` needs `--vae_model_name_or_path`: pixels have no latents.")
        if self.cache_latents is not None and (self.streaming or self.augmentation != "none"):
            raise ValueError(
                "`--cache_latents` encodes every training image once: leave out `--streaming` and `--augmentation`, or it."
            )
        if not self.gamma_min < self.gamma_max:
            raise ValueError(
                f"`--gamma_min` is {self.gamma_min} and `--gamma_max` {self.gamma_max}: gamma is -log SNR, so the first must be"
                " below the second."
            )
        if self.noise_schedule == LearnedChainSchedule.__name__ and self.num_timesteps is None:
            raise ValueError("`--noise_schedule LearnedChainSchedule` is a chain of T steps: give T as `--num_timesteps`.")


def misfitting_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those that [`TrainingConfig`] doesn't have, or not with values of that type."""
    hints = get_type_hints(TrainingConfig)
    return {name: value for name, value in options.items() if name not in hints or not _fits(value, hints[name])}


def _fits(value: object, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return value in parts
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    return type(value) is hint or (hint is float and type(value) is int)


SECRET_OPTIONS = tuple(option.name for option in fields(TrainingConfig) if option.metadata.get("secret"))

RANGES = {
    ("at least 0", lambda value: 0 <= value < math.inf): (
        "dataloader_num_workers", "learning_rate", "schedule_learning_rate", "lr_warmup_steps", "adam_weight_decay", "seed",
    ),
    ("below 2^32", lambda value: value < 2**32): ("seed",),
    ("at most 1,000", lambda value: value <= 1000): ("dataloader_num_workers",),
    ("at most 1,000,000", lambda value: value <= 10**6): (
        "num_timesteps", "validation_repeats", "final_validation_repeats", "num_samples", "num_inference_steps",
    ),
    ("at least 1", lambda value: value >= 1): (
        "resolution", "num_channels", "resize", "shuffle_buffer_size", "block_channels", "layers_per_side", "norm_num_groups",
        "num_timesteps", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps",
        "checkpoints_total_limit", "logging_steps", "validation_steps", "validation_repeats", "final_validation_repeats",
        "num_samples", "num_inference_steps",
    ),
    ("at least 2", lambda value: value >= 2): ("num_levels", "max_validation_images"),
    ("positive", lambda value: value > 0): ("adam_epsilon", "max_grad_norm"),
    ("from 1 to 3", lambda value: 1 <= value <= 3): ("num_spatial_dims",),
    ("from 0 to 1", lambda value: 0 <= value <= 1): ("class_dropout", "ema_decay"),
    ("at least 0 and below 1", lambda value: 0 <= value < 1): ("dropout", "adam_beta1", "adam_beta2"),
}  # fmt: skip
"""Which values options can have, if any at all: the condition in words and as a function, and whose it is."""

DIGITS = {
    "output_dir": "vdm-digits",
    "block_channels": 64,
    "layers_per_side": 2,
    "norm_num_groups": 8,
    "gamma_min": -8.0,
    "max_train_steps": 1700,
    "train_batch_size": 64,
    "learning_rate": 4e-3,
    "schedule_learning_rate": 1e-2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 100,
    "ema_decay": 0.999,
    "checkpointing_steps": 1000,
    "validation_steps": 500,
    "validation_repeats": 8,
    "final_validation_repeats": 32,
    "num_samples": 64,
    "num_inference_steps": 100,
}
"""What replaces the defaults of [`TrainingConfig`] when no data set is named: a model of the digits in minutes on a CPU."""
