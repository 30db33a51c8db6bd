"""The text encoders of a pipeline as one function of prompts."""

from inspect import signature

from diffusers import DiffusionPipeline

from ..autoencoders import autoencoder_of, pixels_a_latent
from ..conditioning import takes_size, text_width
from ..denoisers import denoiser_of, sample_shape
from .pairs import PromptEncoderPair
from .prompt_encoder import PromptEncoder


ONE = ("tokenizer", "text_encoder")
PAIR = (*ONE, "tokenizer_2", "text_encoder_2")
"""What pipelines call them."""


def prompt_encoder_of(pipeline: DiffusionPipeline) -> PromptEncoder | None:
    """That of a pipeline, if it has a tokenizer and a text encoder, or two of each, that make what its denoiser takes."""
    parts = {name: part for name in PAIR if (part := pipeline.components.get(name)) is not None}
    if tuple(parts) not in (ONE, PAIR) or text_width(denoiser_of(pipeline)) is None:
        return None
    options = {"max_sequence_length": _max_sequence_length(pipeline), "image_size": _image_size(pipeline)}
    if tuple(parts) == ONE:
        encoder = PromptEncoder(**parts, **options, lowercase=_reads_lower_case(pipeline))
    else:
        zeros = pipeline.config.get("force_zeros_for_empty_prompt", False)
        encoder = PromptEncoderPair(**parts, **options, force_zeros_for_empty_prompt=zeros)
    return encoder if encoder.misfit(denoiser_of(pipeline)) is None else None


def _max_sequence_length(pipeline: DiffusionPipeline) -> int | None:
    """The tokens of a prompt: what is saved with the pipeline, or what its call has by default, as that of PixArt has."""
    own = signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    return pipeline.config.get("max_sequence_length") or (None if own is None else own.default)


def _reads_lower_case(pipeline: DiffusionPipeline) -> bool:
    """Whether prompts are put into lower case: what is saved with the pipeline, or what PixArt and its like do with them."""
    return pipeline.config.get("lowercase", hasattr(pipeline, "_text_preprocessing"))


def _image_size(pipeline: DiffusionPipeline) -> tuple[int, ...] | None:
    """Height and width of the images that a pipeline makes by default, if its denoiser is told them."""
    denoiser, vae = denoiser_of(pipeline), autoencoder_of(pipeline)
    shape = sample_shape(denoiser)
    if shape is None or not takes_size(denoiser):
        return None
    factor = 1 if vae is None else pixels_a_latent(vae)
    return tuple(factor * size for size in shape[1:])
