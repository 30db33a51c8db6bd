"""Whether images are those that a pipeline is a model of."""

from diffusers import DiffusionPipeline

from ..class_names import check_same_classes, in_order
from ..conditioning import num_classes
from ..denoisers import sample_shape
from ..guards.messages import Message, refuse_if
from ..pictures import in_words
from ..scheduling_vdm import VDMScheduler
from ..text_encoders import prompt_encoder_of
from ..unet_vdm import VDMUNet2DModel
from .image_data import ImageData


def check_images(pipeline: DiffusionPipeline, data: ImageData) -> None:
    """Raise `ValueError` unless the images have the channels, the size and the classes of a pipeline's own, and captions if it
    takes text."""
    channels = pipeline.unet.config.in_channels
    if channels != data.shape[0]:
        raise ValueError(f"{data.name!r} has {data.shape[0]} channels, but the model has {channels}.")
    expected = sample_shape(pipeline.unet)
    if expected not in (None, data.shape):
        raise ValueError(
            f"The images of {data.name!r} are {in_words(data.shape[1:])}, but those of the model are {in_words(expected[1:])}:"
            " evaluate it on the data that it is a model of. Resized images are other data, with another likelihood."
        )
    _check_classes(pipeline, data)
    has_text = prompt_encoder_of(pipeline) is not None
    refuse_if(data.has_captions and not has_text, "The model takes no text: leave out {caption_column}.")
    refuse_if(has_text and not data.has_captions, "The model is conditioned on text: name captions by {caption_column}.")


def _check_classes(pipeline: DiffusionPipeline, data: ImageData) -> None:
    num_embeds = pipeline.unet.config.get("num_class_embeds")
    if num_classes(pipeline.unet) is None:
        if data.num_classes is not None:
            raise ValueError(Message("The model is unconditional: leave out {label_column}."))
        return
    if data.num_classes is None:
        raise ValueError(Message("The model is class-conditional: name the column of labels by {label_column}."))
    is_vdm = isinstance(pipeline.unet, VDMUNet2DModel) or isinstance(pipeline.scheduler, VDMScheduler)
    number = num_classes(pipeline.unet) if is_vdm or not num_embeds else num_embeds  # the last of a VDM's means none of them
    if data.num_classes != number:
        raise ValueError(f"The images of {data.name!r} have {data.num_classes} classes, but the model has {number}.")
    names = in_order(pipeline.config.get("id2label"), number)
    check_same_classes(data.class_names, names, repr(data.name), "the model")
