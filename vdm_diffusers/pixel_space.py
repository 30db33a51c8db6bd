"""Pipelines that have a likelihood in bits per dimension; others are refused, and told why."""

from contextlib import AbstractContextManager

from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin

from .guards.foreign_models import check_pipeline
from .guards.loading import refused_as
from .guards.messages import Message
from .scheduling.identity import check_scheduler
from .scheduling_vdm import VDMScheduler
from .text_encoders import prompt_encoder_of


def load_pixel_pipeline(name: str, cache_dir: str | None = None) -> DiffusionPipeline:
    """The pipeline of a folder or of the Hub; `ValueError` if there is none, or if it has no likelihood of pixels."""
    remedy = "Give the folder of a saved pipeline, or its name on the Hub."
    with refused_as(Message("{pretrained_model_name_or_path} {!r} could not be loaded", name), remedy):
        pipeline = DiffusionPipeline.from_pretrained(check_pipeline(name, cache_dir))
    with can_be_evaluated(name):
        check_pixel_space(pipeline)
    return pipeline


def can_be_evaluated(name: str) -> AbstractContextManager:
    """Where what a model can't do, or what is wrong with it, ends in one sentence."""
    return refused_as(Message("{pretrained_model_name_or_path} {!r} can't be evaluated", name))


def check_pixel_space(pipeline: DiffusionPipeline) -> None:
    """Raise `ValueError` unless a pipeline is a variance-preserving diffusion of the pixels themselves, and of nothing else."""
    name = type(pipeline).__name__
    components = {key: value for key, value in pipeline.components.items() if value is not None}
    autoencoders = [key for key, value in components.items() if isinstance(value, ModelMixin) and hasattr(value, "encode")]
    if autoencoders:
        raise ValueError(
            f"{name} diffuses the latents of its `{autoencoders[0]}`, so a likelihood of its denoiser would be one of latents,"
            " not of images: only pixel-space pipelines have bits per dimension."
        )
    num_levels = pipeline.config.get("num_levels", 256)
    if num_levels is None:
        raise ValueError(
            f"{name} is a model of real-valued data (`num_levels` is None), which have a density, not a probability: only"
            " integer images have bits per dimension."
        )
    if type(num_levels) is not int or num_levels < 2:
        raise ValueError(f"`num_levels` of {name} is {num_levels!r}, but must be a whole number of at least 2.")
    if "scheduler" not in components:
        raise ValueError(f"{name} has no `scheduler` that says at which noise levels its denoiser works.")
    VDMScheduler.from_config(components["scheduler"].config)  # refuses what is no variance-preserving chain
    if pipeline.config.get("trained_for") is not None:
        check_scheduler(pipeline.scheduler, pipeline.config.trained_for)
    if "unet" not in components:
        raise ValueError(f"{name} has no `unet`, but {', '.join(components)}: no denoiser of images to evaluate.")
    if ("tokenizer" in components or "text_encoder" in components) and prompt_encoder_of(pipeline) is None:
        raise ValueError(f"{name} is conditioned on text otherwise than by what its text encoders make.")
