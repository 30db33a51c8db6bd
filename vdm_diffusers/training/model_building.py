"""The model that the options of a training run describe."""

import math
from inspect import signature

from diffusers import DiffusionPipeline, ModelMixin

from ..autoencoders import have_same_latents
from ..class_names import check_same_classes
from ..conditioning import LABELS, num_classes, trial_condition
from ..data.images import ImageData
from ..denoisers import check_denoiser, denoiser_of, sample_shape
from ..guards.foreign_models import check_pipeline
from ..guards.loading import refused_as
from ..guards.messages import Argument, Message, refuse_if
from ..noise_schedules import NOISE_SCHEDULES, LearnedChainSchedule, LearnedMonotoneSchedule, NoiseSchedule
from ..pictures import in_words
from ..saved_schedules import saved_schedule
from ..scheduling_vdm import VDMScheduler
from ..text_encoders import PromptEncoder
from ..unet_vdm import VDMUNet2DModel
from ..vdm import VDM, schedule_of
from .augmentations import check_augmentation
from .config import TrainingConfig
from .lora import add_adapters
from .model_config import build_from_config, build_within_memory


def build_vdm(
    config: TrainingConfig, data: ImageData, vae: ModelMixin | None = None, prompt_encoder: PromptEncoder | None = None
) -> VDM:
    """
    A new model for the data, or the pretrained one that the configuration names; with an autoencoder, of its latents, and with
    a text encoder, of images with their captions.

    Raises `ValueError` if the options can't be those of a model of these data.
    """
    if config.pretrained_model_name_or_path is None:
        vdm = new_vdm(config, data, vae, prompt_encoder)
    else:
        vdm = pretrained_vdm(config, data, vae)
    check_augmentation(config.augmentation, data.shape)
    refuse_if(
        config.augmentation == "paper" and "conditioning" not in signature(vdm.unet.forward).parameters,
        "{augmentation:paper} tells the denoiser, but {} has no `conditioning`.",
        type(vdm.unet).__name__,
    )
    if config.lora_rank is not None:
        add_adapters(vdm.unet, config.lora_rank)
    if config.gradient_checkpointing:
        vdm.unet.enable_gradient_checkpointing()
    if config.torch_compile:
        compile_denoiser(vdm.unet)
    return vdm


def compile_denoiser(unet: ModelMixin) -> None:
    """Compile it where it is: ours, which is one block many times over, by that block, in the time that one takes."""
    if isinstance(unet, VDMUNet2DModel):
        unet.compile_repeated_blocks()
    else:
        unet.compile()


def pretrained_vdm(config: TrainingConfig, data: ImageData, vae: ModelMixin | None) -> VDM:
    """The saved model that the configuration names, if it is one of such data."""
    vdm, model = load_vdm(config), Argument("pretrained_model_name_or_path")
    channels, *size = sample_shape(vdm.unet)
    refuse_if(
        (channels, vdm.num_levels) != (data.shape[0], data.num_levels),
        "{} is a model of images with {} channels and {} levels, but {!r} has {} and {}.",
        *(model, channels, vdm.num_levels, data.name, data.shape[0], data.num_levels),
    )
    told = trial_condition(vdm.unet, "meta").keys() - {LABELS}
    refuse_if(
        told and vdm.prompt_encoder is None,
        "{} is told {}, but has no text encoders that make that of captions, and data sets have nothing else but labels.",
        *(model, ", ".join(f"`{keyword}`" for keyword in sorted(told))),
    )
    refuse_if(vdm.vae is not None and vae is None, "{} is a model of latents: name its {vae_model_name_or_path} too.", model)
    refuse_if(vdm.vae is None and vae is not None, "{} is a model of pixels: leave out {vae_model_name_or_path}.", model)
    refuse_if(
        vae is not None and not have_same_latents(vae, vdm.vae),
        "{} is a model of the latents of another autoencoder than {vae_model_name_or_path} {!r}: give it the model's own name.",
        *(model, config.vae_model_name_or_path),
    )
    refuse_if(
        size != list(data.shape[1:]),
        "{} is a model of {}, but {!r} has {}: choose data of the model's size.",
        *(model, in_words(size), data.name, in_words(data.shape[1:])),
    )
    refuse_if(
        num_classes(vdm.unet) != data.num_classes,
        "{} is a model of {} classes, but {!r} has {}: see {label_column}.",
        *(model, num_classes(vdm.unet) or "no", data.name, data.num_classes or "none"),
    )
    has_text = vdm.prompt_encoder is not None
    refuse_if(has_text and not data.has_captions, "{} is conditioned on text: name captions by {caption_column}.", model)
    refuse_if(data.has_captions and not has_text, "{} is not conditioned on text: leave out {caption_column}.", model)
    check_same_classes(data.class_names, vdm.class_names, repr(data.name), model)
    vdm.class_names = vdm.class_names or data.class_names
    return vdm


def load_vdm(config: TrainingConfig) -> VDM:
    """The saved model, with the schedule that the configuration starts from its own; `ValueError` if there is none."""
    name, cache_dir = config.pretrained_model_name_or_path, config.cache_dir
    remedy = "Name a pipeline of a variance-preserving diffusion, or what train_vdm.py wrote, as a folder or on the Hub."
    with refused_as(Message("{pretrained_model_name_or_path} {!r} could not be loaded", name), remedy):
        check_pipeline(name, cache_dir)
        pipeline = DiffusionPipeline.from_pretrained(name, cache_dir=cache_dir)
        unet = denoiser_of(pipeline)
        check_denoiser(unet, sample_shape(unet))
        start = saved_schedule(name, cache_dir=cache_dir) or schedule_of(VDMScheduler.from_config(pipeline.scheduler.config))
        schedule = None if start is None and config.noise_schedule is None else build_schedule(config, start)
        vdm = VDM.from_pipeline(pipeline, schedule, config.num_timesteps, config.weighting)
    refuse_if(
        config.prediction_type not in (TrainingConfig.prediction_type, vdm.prediction_type),
        "{pretrained_model_name_or_path} {!r} estimates {!r}, which its weights can't change: leave out {prediction_type}. The"
        " bound is the same for all of them.",
        *(name, vdm.prediction_type),
    )
    return vdm


def new_vdm(
    config: TrainingConfig, data: ImageData, vae: ModelMixin | None, prompt_encoder: PromptEncoder | None = None
) -> VDM:
    """A model with random weights."""
    text_width = None if prompt_encoder is None else prompt_encoder.width
    unet = (
        new_unet(config, data, vae is not None, text_width)
        if config.model_config is None
        else build_from_config(config.model_config, data, config.model_config_name_or_path, text_width)
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
        prompt_encoder=prompt_encoder,
    )


def new_unet(config: TrainingConfig, data: ImageData, is_latent: bool, text_width: int | None = None) -> VDMUNet2DModel:
    """The paper's denoiser, of the size that the options say."""
    refuse_if(
        len(data.shape) != 3,
        "{} is a denoiser of two dimensions, but {!r} has {}: describe another one by {model_config_name_or_path}.",
        *(VDMUNet2DModel.__name__, data.name, len(data.shape) - 1),
    )
    fourier_powers = () if is_latent else finest_powers(data.num_levels)
    with refused_as(Message("{block_channels}, {layers_per_side} and the images give no denoiser")):
        return build_within_memory(
            VDMUNet2DModel,
            sample_size=data.shape[1:],
            in_channels=data.shape[0],
            block_channels=config.block_channels,
            layers_per_side=config.layers_per_side,
            attention_everywhere=config.attention_everywhere,
            norm_num_groups=config.norm_num_groups,
            dropout=config.dropout,
            fourier_powers=fourier_powers if config.fourier_powers is None else tuple(config.fourier_powers),
            num_class_embeds=None if data.num_classes is None else data.num_classes + 1,
            cross_attention_dim=text_width,
        )


def finest_powers(num_levels: int) -> tuple[int, int]:
    """Exponents of the Fourier features whose periods are two levels of an image and one."""
    finest = round(math.log2(num_levels / 2))
    return finest - 1, finest


def build_schedule(config: TrainingConfig, pretrained: NoiseSchedule | None = None) -> NoiseSchedule:
    """The noise schedule that the configuration names, in its initial state; of a pretrained model's where that is, or it."""
    cls = NOISE_SCHEDULES[config.noise_schedule or LearnedMonotoneSchedule.__name__]
    kwargs = {"num_steps": config.num_timesteps} if cls is LearnedChainSchedule else {}
    if pretrained is None:
        schedule = cls(gamma_min=config.gamma_min, gamma_max=config.gamma_max, **kwargs)
    elif config.noise_schedule is None or type(pretrained) is cls and kwargs.items() <= pretrained.config.items():
        schedule, cls = pretrained, type(pretrained)
    else:
        schedule = cls.from_schedule(pretrained, **kwargs)
    if config.resolution_ratio is None:
        return schedule
    shifted = schedule.shifted(config.resolution_ratio)
    return cls.from_schedule(shifted, **kwargs) if any(True for _ in schedule.parameters()) else shifted
