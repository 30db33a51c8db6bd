"""Diffusers' own pipelines from tiny random components, built offline, and one call of each."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor


Call = Callable[..., Tensor]
"""`call(pipeline, generator=..., **kwargs)` -> images in [0, 1], `(B, H, W, C)` or `(B, C, H, W)`."""
BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
IMAGE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
MASK = (torch.arange(16) > 7).float().expand(1, 1, 16, 16)


def unet(in_channels: int = 3, out_channels: int = 3) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(8, in_channels, out_channels, **BLOCKS, **blocks)


def conditional_unet(in_channels: int = 4, out_channels: int = 4, **kwargs) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        8,
        in_channels,
        out_channels,
        **BLOCKS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        **kwargs,
    )


def vae(**kwargs) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**BLOCKS, **blocks, latent_channels=4, sample_size=16, **kwargs)


def vqvae() -> VQModel:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return VQModel(**BLOCKS, **blocks, latent_channels=3, num_vq_embeddings=32)


def transformer(cls: type[DiTTransformer2DModel | PixArtTransformer2DModel], **kwargs):
    options = {"num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2, "attention_bias": True}
    options |= {"in_channels": 4, "out_channels": 8, "sample_size": 8, "num_embeds_ada_norm": 1000}
    transformer = cls(**options | kwargs)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # some are initialised to zero
    return transformer


def pixart(**kwargs) -> PixArtTransformer2DModel:
    options = {"caption_channels": 8, "cross_attention_dim": 16, "norm_type": "ada_norm_single"}
    return transformer(PixArtTransformer2DModel, **options | kwargs)


def stable_diffusion(cls: type[DiffusionPipeline], scheduler, in_channels: int = 4) -> DiffusionPipeline:
    return cls(
        vae=vae(), text_encoder=None, tokenizer=None, unet=conditional_unet(in_channels), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


TEXT_AND_SIZES = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56,
}  # fmt: skip


def stable_diffusion_xl(scheduler) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=conditional_unet(**TEXT_AND_SIZES), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def prompt(**kwargs: Tensor) -> dict[str, Tensor]:
    """Prompt embeddings and their negatives, with further ones by name."""
    tensors = {"prompt_embeds": torch.sin(torch.arange(24.0)).reshape(1, 3, 8)} | kwargs
    return tensors | {f"negative_{name}": tensor.flip(1) for name, tensor in tensors.items()}


BUILDERS: dict[str, Callable[..., DiffusionPipeline]] = {
    "DDPM": lambda scheduler: DDPMPipeline(unet(), scheduler),
    "DDIM": lambda scheduler: DDIMPipeline(unet(), scheduler),
    "LDM": lambda scheduler: LDMPipeline(vqvae(), unet(), scheduler),
    "LDM super-resolution": lambda scheduler: LDMSuperResolutionPipeline(vqvae(), unet(6), scheduler),
    "DiT": lambda scheduler: DiTPipeline(transformer(DiTTransformer2DModel), vae(), scheduler),
    "SD text-to-image": partial(stable_diffusion, StableDiffusionPipeline),
    "SD image-to-image": partial(stable_diffusion, StableDiffusionImg2ImgPipeline),
    "SD inpainting": partial(stable_diffusion, StableDiffusionInpaintPipeline, in_channels=9),
    "SD inpainting, plain denoiser": partial(stable_diffusion, StableDiffusionInpaintPipeline),
    "SDXL": stable_diffusion_xl,
    "PixArt-α": lambda scheduler: PixArtAlphaPipeline(None, None, vae(), pixart(), scheduler),
}
CALLS: dict[str, dict] = {
    "DDPM": {"batch_size": 2},
    "DDIM": {"batch_size": 2},
    "LDM": {"batch_size": 2},
    "LDM super-resolution": {"image": 2 * IMAGE - 1},
    "DiT": {"class_labels": [1, 7]},
    "SD text-to-image": prompt() | {"height": 16, "width": 16},
    "SD image-to-image": prompt() | {"image": IMAGE, "strength": 0.6},
    "SD inpainting": prompt() | {"image": IMAGE, "mask_image": MASK, "height": 16, "width": 16},
    "SD inpainting, plain denoiser": prompt()
    | {"image": IMAGE, "mask_image": MASK, "height": 16, "width": 16, "strength": 0.6},
    "SDXL": prompt(pooled_prompt_embeds=torch.ones(1, 8)) | {"height": 16, "width": 16},
    "PixArt-α": prompt(prompt_attention_mask=torch.ones(1, 3))
    | {"height": 16, "width": 16, "use_resolution_binning": False, "negative_prompt": None},
}
CHOOSES_ETA = tuple(name for name in BUILDERS if name not in ("DDPM", "DiT"))
"""Pipelines that give `step` their own `eta`, 0 by default, wherever it takes one."""


def build(name: str, scheduler) -> DiffusionPipeline:
    """The pipeline of that name, with the same random weights each time and with exactly that scheduler."""
    torch.manual_seed(0)
    pipe = BUILDERS[name](scheduler)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(name: str, scheduler, num_inference_steps: int, **kwargs) -> Tensor:
    """Images in [0, 1] of the pipeline of that name under a scheduler, from seeds of their own."""
    pipe = build(name, scheduler)
    torch.manual_seed(1)  # some pipelines don't pass their generator on
    call = CALLS[name] | {"generator": torch.Generator().manual_seed(2), "output_type": "np"} | kwargs
    return torch.as_tensor(pipe(num_inference_steps=num_inference_steps, **call).images)
