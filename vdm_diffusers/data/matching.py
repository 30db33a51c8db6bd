"""Whether images are those that a pipeline is a model of."""

from diffusers import DiffusionPipeline

from ..class_names import check_same_classes, in_order
from ..conditioning import num_classes
from ..scheduling_vdm import VDMScheduler
from ..unet_vdm import VDMUNet2DModel
from .images import ImageData


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
    if num_classes(pipeline.unet) is None:
        if data.num_classes is not None:
            raise ValueError("The model is unconditional: leave out `--label_column`.")
        return
    if data.num_classes is None:
        raise ValueError("The model is class-conditional: name the column of labels by `--label_column`.")
    is_vdm = isinstance(pipeline.unet, VDMUNet2DModel) or isinstance(pipeline.scheduler, VDMScheduler)
    number = num_classes(pipeline.unet) if is_vdm or not num_embeds else num_embeds  # the last of a VDM's means none of them
    if data.num_classes != number:
        raise ValueError(f"The images of {data.name!r} have {data.num_classes} classes, but the model has {number}.")
    names = in_order(pipeline.config.get("id2label"), number)
    check_same_classes(data.class_names, names, repr(data.name), "the model")
