"""Diffusers' own pipelines that take prompts, from tiny random components, built offline."""

from diffusers import (
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tiny_pipelines import TEXT_AND_SIZES, conditional_unet, pixart, vae
from tiny_text import clip, t5, tokenizer
from transformers import CLIPTextModelWithProjection


SIZE = {"height": 16, "width": 16}
"""Of the images of these pipelines."""


def sd(scheduler) -> StableDiffusionPipeline:
    components = vae(), clip(), tokenizer(), conditional_unet(), scheduler
    return StableDiffusionPipeline(*components, None, None, requires_safety_checker=False)


def sdxl(scheduler, **kwargs) -> StableDiffusionXLPipeline:
    encoders = clip(size=4), clip(CLIPTextModelWithProjection, size=4)
    unet = conditional_unet(**TEXT_AND_SIZES | {"projection_class_embeddings_input_dim": 52})
    kwargs = {"add_watermarker": False} | kwargs
    return StableDiffusionXLPipeline(vae(), *encoders, tokenizer(), tokenizer(), unet, scheduler, **kwargs)


def pixart_alpha(scheduler, transformer: PixArtTransformer2DModel | None = None) -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(tokenizer(ends=True), t5(), vae(), transformer or pixart(), scheduler)


def pixart_sigma(scheduler) -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(tokenizer(ends=True), t5(), vae(), pixart(), scheduler)
