"""Which pipelines and images have a likelihood in bits per dimension; the others are refused with the reason."""

from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin

from .class_names import check_same_classes, in_order
from .data import ImageData
from .scheduler_checks import check_scheduler
from .scheduling_vdm import VDMScheduler
from .unet_vdm import VDMUNet2DModel


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
    if "tokenizer" in components or "text_encoder" in components:
        raise ValueError(f"{name} is conditioned on text, which images of a data set don't come with.")
    if "unet" not in components:
        raise ValueError(f"{name} has no `unet`, but {', '.join(components)}: no denoiser of images to evaluate.")


def check_images(pipeline: DiffusionPipeline, data: ImageData) -> None:
    """Raise `ValueError` unless the images have the channels, the size and the classes that a pipeline is one of."""
    channels, *size = data.shape
    config = pipeline.unet.config
    if config.in_channels != channels:
        raise ValueError(f"{data.name!r} has {channels} channels, but the model has {config.in_channels}.")
    expected = [config.sample_size] * 2 if isinstance(config.sample_size, int) else config.sample_size
    if expected is not None and list(expected) != size:
        raise ValueError(
            f"The images of {data.name!r} are {size[0]}×{size[1]}, but those of the model are {expected[0]}×{expected[1]}:"
            " evaluate it on the data that it is a model of. Resized images are other data, with another likelihood."
        )
    _check_classes(pipeline, data)


def _check_classes(pipeline: DiffusionPipeline, data: ImageData) -> None:
    num_embeds = pipeline.unet.config.get("num_class_embeds")
    if not num_embeds:
        if data.num_classes is not None:
            raise ValueError("The model is unconditional: leave out `--label_column`.")
        return
    if data.num_classes is None:
        raise ValueError("The model is class-conditional: name the column of labels by `--label_column`.")
    is_vdm = isinstance(pipeline.unet, VDMUNet2DModel) or isinstance(pipeline.scheduler, VDMScheduler)
    num_classes = num_embeds - 1 if is_vdm else num_embeds  # the last of a VDM's means none of them
    if data.num_classes != num_classes:
        raise ValueError(f"The images of {data.name!r} have {data.num_classes} classes, but the model has {num_classes}.")
    names = in_order(pipeline.config.get("id2label"), num_classes)
    check_same_classes(data.class_names, names, repr(data.name), "the model")
