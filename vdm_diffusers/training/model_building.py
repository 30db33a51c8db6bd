"""The model that the options of a training run describe."""

import math
from inspect import signature

import psutil
import torch
from diffusers import ModelMixin

from ..autoencoders import have_same_latents
from ..class_names import check_same_classes
from ..data.images import ImageData
from ..denoisers import check_denoiser
from ..guards.foreign_models import check_pipeline, check_sizes, refused_as, weights_limited
from ..noise_schedules import NOISE_SCHEDULES, LearnedChainSchedule, NoiseSchedule
from ..unet_vdm import VDMUNet2DModel
from ..vdm import VDM
from .augmentations import check_augmentation
from .config import TrainingConfig


BYTES_A_WEIGHT = 20
"""Of memory that a weight takes in training, in float32: itself, its gradient, AdamW's two moments and its average."""


def build_vdm(config: TrainingConfig, data: ImageData, vae: ModelMixin | None = None) -> VDM:
    """A new model for the data, or the pretrained one that the configuration names; with an autoencoder, of its latents.

    Raises `ValueError` if the options can't be those of a model of these data.
    """
    build = new_vdm if config.pretrained_model_name_or_path is None else pretrained_vdm
    vdm = build(config, data, vae)
    check_augmentation(config.augmentation, data.shape)
    if config.augmentation == "paper" and "conditioning" not in signature(vdm.unet.forward).parameters:
        raise ValueError(f"`--augmentation paper` tells the denoiser, but {type(vdm.unet).__name__} has no `conditioning`.")
    if config.gradient_checkpointing:
        vdm.unet.enable_gradient_checkpointing()
    if config.torch_compile:
        vdm.unet.compile()
    return vdm


def pretrained_vdm(config: TrainingConfig, data: ImageData, vae: ModelMixin | None) -> VDM:
    """The saved model that the configuration names, if it is one of such data."""
    vdm = load_vdm(config)
    if (vdm.unet.config.in_channels, vdm.num_levels) != (data.shape[0], data.num_levels):
        raise ValueError(
            f"`--pretrained_model_name_or_path` is a model of images with {vdm.unet.config.in_channels} channels and"
            f" {vdm.num_levels} levels, but {data.name!r} has {data.shape[0]} and {data.num_levels}."
        )
    if vdm.vae is not None and vae is None:
        raise ValueError("`--pretrained_model_name_or_path` is a model of latents: name its `--vae_model_name_or_path` too.")
    if vdm.vae is None and vae is not None:
        raise ValueError("`--pretrained_model_name_or_path` is a model of pixels: leave out `--vae_model_name_or_path`.")
    if vae is not None and not have_same_latents(vae, vdm.vae):
        raise ValueError(
            "`--pretrained_model_name_or_path` is a model of the latents of another autoencoder than"
            f" `--vae_model_name_or_path` {config.vae_model_name_or_path!r}: give it the model's own name."
        )
    if (size := sample_size(vdm)) != tuple(data.shape[1:]):
        raise ValueError(
            f"`--pretrained_model_name_or_path` is a model of {'×'.join(map(str, size))}, but {data.name!r} has"
            f" {'×'.join(map(str, data.shape[1:]))}: choose data of the model's size."
        )
    embeddings, needed = vdm.unet.config.get("num_class_embeds"), number_of_embeddings(data)
    if "num_class_embeds" in vdm.unet.config and embeddings != needed:
        raise ValueError(
            f"`--pretrained_model_name_or_path` has {embeddings or 'no'} class embeddings, but {needed or 'none'} are needed,"
            " one more than there are classes: see `--label_column`."
        )
    check_same_classes(data.class_names, vdm.class_names, repr(data.name), "`--pretrained_model_name_or_path`")
    vdm.class_names = vdm.class_names or data.class_names
    return vdm


def load_vdm(config: TrainingConfig) -> VDM:
    """The saved model as it is; `ValueError` if there is none."""
    name, cache_dir = config.pretrained_model_name_or_path, config.cache_dir
    remedy = "Name a model that train_vdm.py or `VDM.save_pretrained` wrote, as a folder or on the Hub."
    with refused_as(f"`--pretrained_model_name_or_path` {name!r} could not be loaded", remedy):
        check_pipeline(name, cache_dir)
        check_sizes(NoiseSchedule.load_config(name, subfolder="noise_schedule", cache_dir=cache_dir))
        vdm = VDM.from_pretrained(name, config.num_timesteps, config.weighting, cache_dir=cache_dir)
        check_denoiser(vdm.unet, (vdm.unet.config.in_channels, *sample_size(vdm)))
    return vdm


def sample_size(vdm: VDM) -> tuple[int, int]:
    """Height and width of what a model samples, in its latents if it has any."""
    size = vdm.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def number_of_embeddings(data: ImageData) -> int | None:
    """One for each class, and one for none."""
    return None if data.num_classes is None else data.num_classes + 1


def new_vdm(config: TrainingConfig, data: ImageData, vae: ModelMixin | None) -> VDM:
    """A model with random weights."""
    fourier_powers = () if vae is not None else finest_powers(data.num_levels)
    unet = build_unet(
        sample_size=data.shape[1:],
        in_channels=data.shape[0],
        block_channels=config.block_channels,
        layers_per_side=config.layers_per_side,
        attention_everywhere=config.attention_everywhere,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        fourier_powers=fourier_powers if config.fourier_powers is None else tuple(config.fourier_powers),
        num_class_embeds=number_of_embeddings(data),
    )
    return VDM(
        unet,
        build_schedule(config),
        config.prediction_type,
        data.num_levels,
        config.num_timesteps,
        weighting=config.weighting,
        vae=vae,
        class_names=data.class_names,
    )


def build_unet(**options) -> VDMUNet2DModel:
    """A denoiser with random weights; `ValueError`, before it takes memory, if training it would need more than there is."""
    max_weights = psutil.virtual_memory().total // BYTES_A_WEIGHT
    with refused_as("`--block_channels`, `--layers_per_side` and the images give no denoiser"):
        with weights_limited(max_weights), torch.device("meta"):
            VDMUNet2DModel(**options)
    return VDMUNet2DModel(**options)


def finest_powers(num_levels: int) -> tuple[int, int]:
    """Exponents of the Fourier features whose periods are two levels of an image and one."""
    finest = round(math.log2(num_levels / 2))
    return finest - 1, finest


def build_schedule(config: TrainingConfig) -> NoiseSchedule:
    """The noise schedule that the configuration names, in its initial state."""
    schedule = NOISE_SCHEDULES[config.noise_schedule]
    kwargs = {"num_steps": config.num_timesteps} if schedule is LearnedChainSchedule else {}
    return schedule(gamma_min=config.gamma_min, gamma_max=config.gamma_max, **kwargs)
