"""TrainingConfig: every option of a training run."""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal, get_type_hints

from ..command_line import option
from ..data.images import EMBEDDED, SOURCES
from ..data.options import DataOptions
from ..gaussian import PREDICTIONS
from ..guards.arguments import Count, Draws, Limit, Seed, Within, at_least, at_most, is_allowed
from ..guards.messages import Argument, Message, refuse_if
from ..guards.secrecy import SHORTEST_OF_THE_ENVIRONMENT, check_secret, keep_secret
from ..noise_schedules import NOISE_SCHEDULES, LearnedChainSchedule, TableSchedule
from ..weightings import WEIGHTINGS
from .augmentations import AUGMENTATIONS
from .model_config import read_model_config


LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
"""Those of diffusers that need nothing but the number of steps."""

SCHEDULES = tuple(name for name in NOISE_SCHEDULES if name != TableSchedule.__name__)
"""Those that an option can name: not a table, whose gammas have to be given."""

DESCRIBED_BY_CONFIG = {
    "pretrained_model_name_or_path", "block_channels", "layers_per_side", "attention_everywhere", "norm_num_groups", "dropout",
    "fourier_powers",
}  # fmt: skip
"""Options of the denoiser that `model_config_name_or_path` replaces."""

AtLeastTwo = Annotated[int, at_least(2)]
Rate = Annotated[float, at_least(0)]
Positive = Annotated[float, Limit("positive", lambda value: value > 0)]
Share = Annotated[float, Within(0, 1)]
ShareBelowOne = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]


@dataclass(kw_only=True)
class TrainingConfig(DataOptions):
    """
    Every option of `train_vdm.py`. The defaults are the paper's for CIFAR-10; without a data set, `DIGITS` replaces some.

    Raises `TypeError` or `ValueError`, naming the option and the remedy, for values that no run can have.
    """

    # Data, beyond those of every command
    resolution: Count | None = option(None, "Height and width that the images must have. Default: whatever they have.")
    num_channels: Count | None = option(None, "Channels that the images must have. Default: whatever they have.")
    num_levels: AtLeastTwo | None = option(None, "Images are integers in [0, num_levels). Default: what their type can hold.")
    streaming: bool = option(False, "Read the training set as training goes on, instead of downloading it first.")
    shuffle_buffer_size: Count = option(10_000, "Images of a stream, undecoded, that are shuffled among each other.")
    augmentation: Literal[tuple(AUGMENTATIONS)] = option(
        "none", "Random flips, or the paper's flips and quarter turns, which the denoiser is told of."
    )
    dataloader_num_workers: Annotated[int, at_least(0), at_most(1000)] = option(0, "Processes that check and decode images.")

    # Model
    vae_model_name_or_path: str | None = option(
        None, "An autoencoder of diffusers, or a pipeline with one, folder or Hub name: trains in its latents."
    )
    cache_latents: str | None = option(
        None, "A folder to keep the latents of the training images in, encoded once. Default: encode them as they come."
    )
    text_encoder_name_or_path: str | None = option(
        None, "A text encoder of transformers with its tokenizer, or a pipeline with both: folder or Hub name."
    )
    max_sequence_length: Count | None = option(
        None, "Tokens of a caption, padded or cut. Default: what the encoder takes, or 77."
    )
    cache_text_embeddings: str | None = option(
        None, "A folder to keep the encoded training captions in. Default: encode them as they come."
    )
    pretrained_model_name_or_path: str | None = option(
        None, "A saved VDM, or another pipeline of images or their latents, folder or Hub name, to train on."
    )
    lora_rank: Count | None = option(
        None, "Train adapters of this rank in the attention of a pretrained model, not its weights. Default: all weights."
    )
    model_config_name_or_path: str | None = option(
        None, "Configuration of another denoiser of diffusers to train anew: a JSON file, a folder, or a name on the Hub."
    )
    block_channels: Count = option(128, "Channels of the denoiser.")
    layers_per_side: Count = option(32, "ResNet blocks of the denoiser on each side of its middle.")
    attention_everywhere: bool = option(False, "Attention after every block, not only in the middle.")
    norm_num_groups: Count = option(32, "Groups of the group normalisations.")
    dropout: ShareBelowOne = option(0.1, "Dropout in the ResNet blocks.")
    fourier_powers: list[int] | None = option(
        None, "Exponents n of the Fourier features sin(2^n 2 pi z). Default: periods of one level and of two; none for latents."
    )
    prediction_type: Literal[tuple(PREDICTIONS)] = option("epsilon", "What the denoiser estimates.")
    noise_schedule: Literal[SCHEDULES] | None = option(
        None, "The noise schedule; it starts where that of a pretrained model is. Default: its own, or LearnedMonotoneSchedule."
    )
    resolution_ratio: Positive | None = option(
        None, "Shift the noise schedule to images so many times as high and wide as those that it was made for."
    )
    gamma_min: float = option(-13.3, "-log SNR at t = 0; a learned schedule starts here.")
    gamma_max: float = option(5.0, "-log SNR at t = 1; a learned schedule starts here.")
    num_timesteps: Draws | None = option(None, "T of the discrete-time bound. Default: continuous time.")
    weighting: Literal[tuple(WEIGHTINGS)] = option(
        "elbo", "What noise levels count for in the loss; all but elbo, the bound, fix the schedule's end points."
    )
    class_dropout: Share = option(0.1, "Share of labels replaced by the null class, for classifier-free guidance.")
    caption_dropout: Share = option(0.1, "Share of captions replaced by the empty one, for classifier-free guidance.")

    # Optimisation
    max_train_steps: Count = option(1_000_000, "Optimiser steps.")
    train_batch_size: Count = option(128, "Images a step and process.")
    gradient_accumulation_steps: Count = option(1, "Batches a step.")
    learning_rate: Rate = option(2e-4, "Peak learning rate of the denoiser.")
    schedule_learning_rate: Rate = option(1e-3, "Peak learning rate of the noise schedule.")
    lr_scheduler: Literal[LR_SCHEDULERS] = option("constant_with_warmup", "Learning-rate schedule, by its name in diffusers.")
    lr_warmup_steps: Annotated[int, at_least(0)] = option(1000, "Steps of linear warm-up.")
    adam_beta1: ShareBelowOne = option(0.9, "AdamW's beta1.")
    adam_beta2: ShareBelowOne = option(0.99, "AdamW's beta2.")
    adam_epsilon: Positive = option(1e-8, "AdamW's epsilon.")
    adam_weight_decay: Rate = option(0.01, "AdamW's weight decay, for the denoiser.")
    max_grad_norm: Positive = option(1.0, "Norm to which the denoiser's gradient is clipped.")
    ema_decay: Share = option(0.9999, "Decay of the moving average of the weights, approached as steps go on.")
    ema_power: Positive = option(0.75, "How fast: after n steps it is 1 - (1 + n)^-power, or that decay if it is less.")
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = option(
        "adamw_fused", "AdamW in one kernel for all weights, in several, or that of bitsandbytes with its state in eight bits."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Autocast of the denoiser. Default: that of accelerate's configuration."
    )
    allow_tf32: bool = option(False, "Multiply float32 matrices in TF32, on GPUs that have it.")
    gradient_checkpointing: bool = option(False, "Recompute the denoiser's activations in the backward pass, to save memory.")
    torch_compile: bool = option(False, "Compile the denoiser with torch.compile.")
    seed: Seed = option(0, "Of everything random.")

    # Run
    output_dir: str = option("vdm-model", "Where everything is written.")
    overwrite_output_dir: bool = option(False, "Replace the run that output_dir holds.")
    resume_from_checkpoint: str | None = option(None, "'latest', or a checkpoint folder, to go on from.")
    allow_config_change: bool = option(False, "Go on from a checkpoint with other options than its own.")
    checkpointing_steps: Count = option(5000, "Steps between checkpoints.")
    checkpoints_total_limit: Count = option(2, "Checkpoints to keep; older ones are deleted.")
    logging_steps: Count = option(20, "Steps between log entries.")
    validation_steps: Count = option(5000, "Steps between validations and sample grids.")
    validation_repeats: Draws = option(1, "Times and noises an image when validating.")
    max_validation_images: AtLeastTwo | None = option(None, "Held-out images of a validation; the final one takes all.")
    final_validation_repeats: Draws = option(4, "Times and noises an image in the final evaluation.")
    num_samples: Draws = option(64, "Images in a sample grid.")
    validation_prompts: list[str] | None = option(
        None, "Captions of a sample grid, taken in turns. Default: those of the first held-out images."
    )
    guidance_scale: Annotated[float, Within(-1e6, 1e6)] = option(
        1.0, "Of the samples of a grid that have a class or a caption; 1 is none."
    )
    num_inference_steps: Draws = option(250, "Sampling steps of a grid.")
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
        options = {option.name: getattr(self, option.name) for option in fields(self) if not option.metadata.get("secret")}
        if self.model_config is not None:  # not where it was, but what: the file may change
            options["model_config_name_or_path"] = json.dumps(self.model_config, sort_keys=True)
        return options

    @cached_property
    def model_config(self) -> dict[str, Any] | None:
        """What `model_config_name_or_path` names, read once."""
        name = self.model_config_name_or_path
        return None if name is None else read_model_config(name, self.cache_dir)

    def __post_init__(self):
        for name in (field.name for field in fields(self) if field.metadata.get("secret")):
            if (value := getattr(self, name)) is not None:
                keep_secret(value)
                check_secret(name, value)
                for other, text in self.public().items():
                    if len(value) >= SHORTEST_OF_THE_ENVIRONMENT and value in str(text):
                        message = "{} contains {}, but is written and shown: give it another value."
                        raise ValueError(Message(message, Argument(other), Argument(name)))
        super().__post_init__()
        powers, cached = self.fourier_powers or [], self.cache_latents is not None
        refuse_if(
            len(powers) > 64 or not all(-64 <= power <= 64 for power in powers),
            "{fourier_powers} must be at most 64 exponents from -64 to 64.",
        )
        for name in ("text_encoder_name_or_path", "cache_text_embeddings", "max_sequence_length", "validation_prompts"):
            refuse_if(
                getattr(self, name) is not None and self.caption_column is None,
                "{} is for models of text: name their captions by {caption_column}, or leave it out.",
                Argument(name),
            )
        named = (self.text_encoder_name_or_path, self.pretrained_model_name_or_path)
        refuse_if(
            self.caption_column is not None and named == (None, None),
            "{caption_column} needs {text_encoder_name_or_path}: what encodes captions.",
        )
        for name in ("text_encoder_name_or_path", "max_sequence_length"):
            refuse_if(
                None not in (getattr(self, name), self.pretrained_model_name_or_path),
                "{pretrained_model_name_or_path} has its own text encoder: leave out {}.",
                Argument(name),
            )
        refuse_if(
            self.cache_text_embeddings is not None and self.streaming,
            "{cache_text_embeddings} encodes every caption once: leave out {streaming}, or it.",
        )
        refuse_if(
            self.validation_split == "train",
            "{validation_split} is 'train', whose images are trained on: name another, or leave it out.",
        )
        refuse_if(
            self.streaming and self.train_data_dir is None and self.dataset_name in (None, *SOURCES),
            "{streaming} needs {dataset_name} or {train_data_dir}: {!r} is in memory already.",
            self.dataset_name or EMBEDDED,
        )
        refuse_if(
            self.streaming and self.max_validation_images is None,
            "{streaming} keeps the held-out images in memory, undecoded: say how many by {max_validation_images}.",
        )
        refuse_if(
            cached and self.vae_model_name_or_path is None,
            "{cache_latents} needs {vae_model_name_or_path}: pixels have no latents.",
        )
        refuse_if(
            cached and (self.streaming or self.augmentation != "none"),
            "{cache_latents} encodes every training image once: leave out {streaming} and {augmentation}, or it.",
        )
        refuse_if(
            self.lora_rank is not None and self.pretrained_model_name_or_path is None,
            "{lora_rank} adapts a pretrained model: name it by {pretrained_model_name_or_path}.",
        )
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        refuse_if(
            self.model_config_name_or_path is not None and not DESCRIBED_BY_CONFIG.isdisjoint(changed),
            "{model_config_name_or_path} describes the denoiser: leave out {}.",
            next((Argument(name) for name in changed if name in DESCRIBED_BY_CONFIG), None),
        )
        refuse_if(
            not self.gamma_min < self.gamma_max,
            "{gamma_min} is {} and {gamma_max} {}: gamma is -log SNR, so the first must be below the second.",
            *(self.gamma_min, self.gamma_max),
        )
        refuse_if(
            self.noise_schedule == LearnedChainSchedule.__name__ and self.num_timesteps is None,
            "{noise_schedule:LearnedChainSchedule} is a chain of T steps: give T as {num_timesteps}.",
        )


def misfitting_options(options: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Those that are not `known`, or that [`TrainingConfig`] has but not with such values."""
    hints = get_type_hints(TrainingConfig, include_extras=True)
    return {
        name: value
        for name, value in options.items()
        if name not in known or (name in hints and not is_allowed(value, hints[name]))
    }


DIGITS = {
    "output_dir": "vdm-digits",
    "block_channels": 48,
    "layers_per_side": 2,
    "norm_num_groups": 8,
    "dropout": 0.0,
    "gamma_min": -8.0,
    "max_train_steps": 4000,
    "train_batch_size": 32,
    "learning_rate": 4e-3,
    "schedule_learning_rate": 1e-2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 100,
    "ema_decay": 0.999,
    "checkpointing_steps": 1000,
    "validation_steps": 1000,
    "validation_repeats": 8,
    "final_validation_repeats": 32,
    "num_samples": 64,
    "num_inference_steps": 100,
}
"""What replaces the defaults of [`TrainingConfig`] when no data set is named: a model of the digits in minutes on a CPU."""
