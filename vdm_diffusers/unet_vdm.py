"""VDMUNet2DModel: the denoiser of the paper (section 6 and appendix B), a U-Net that keeps its resolution throughout."""

import math
import os
from typing import Annotated, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from .guards.arguments import Within, checked
from .guards.loading import loading
from .guards.plain_config import PlainConfigMixin
from .precision import at_least_float32


MAX_PARAMETERS = 2**32
"""The most that a denoiser may have: a hundred times the paper's, 16 GiB in float32."""

Size = Annotated[int, Within(1, 2**14)]
Share = Annotated[float, Within(0, 1)]


class VDMUNet2DModel(ModelMixin, PlainConfigMixin):
    r"""
    The denoiser of Variational Diffusion Models: no down- or up-sampling, Fourier features of the input, and an output that
    is added to the input.

    It is conditioned on a `timestep` in [0, 1000], fractional, that stands for `gamma` (see `timestep_maps.py`), so it can
    be called wherever a [`~diffusers.UNet2DModel`] can. The defaults are the paper's CIFAR-10 configuration.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, *optional*):
            Height and width of the images that a pipeline samples; the network itself takes any.
        in_channels (`int`, defaults to 3): Channels of the image.
        out_channels (`int`, *optional*): Channels of the output. Must equal `in_channels`, which is the default.
        block_channels (`int`, defaults to 128): Channels of every hidden layer; a multiple of `norm_num_groups`.
        layers_per_side (`int`, defaults to 32): ResNet blocks on the way in; the way out has one more.
        attention_everywhere (`bool`, defaults to `False`): Attention after every block, not only in the middle.
        attention_head_dim (`int`, *optional*): Channels of an attention head. Defaults to one head.
        fourier_powers (`tuple[int, ...]`, defaults to `(6, 7)`):
            Exponents n of the features `sin(2ⁿ 2π z)` and `cos(2ⁿ 2π z)` appended to the input `z`. A level of an image with
            L levels is `2/L` wide; the default, whose finest period is one level, is for 256. Empty for none.
        dropout (`float`, defaults to 0.1): Dropout within the ResNet blocks.
        norm_num_groups (`int`, defaults to 32): Groups of the group normalisations.
        norm_eps (`float`, defaults to 1e-6): Their epsilon.
        num_class_embeds (`int`, *optional*): Number of classes of a class-conditional model, a null class included.
        conditioning_dim (`int`, defaults to 1):
            Number of scalars appended to the time embedding; the official models have one, the augmentation flag.
        cross_attention_dim (`int`, *optional*):
            Length of the vectors of a text, for a model that is conditioned on text. Their mean is added to the time
            embedding, and wherever pixels attend to each other they then attend to them.

    Raises:
        `TypeError` and `ValueError`: for parameters of another type or out of range, channels that groups or heads don't
            divide, and more than `MAX_PARAMETERS` weights, before any is made.
    """

    __module__ = __package__  # the name of the library in a `model_index.json`

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "Attention"]
    _repeated_blocks = ["Stage"]

    @register_to_config
    @checked
    def __init__(
        self,
        sample_size: Size | tuple[Size, Size] | None = 32,
        in_channels: Size = 3,
        out_channels: Size | None = None,
        block_channels: Annotated[int, Within(4, 2**14)] = 128,
        layers_per_side: Annotated[int, Within(0, 1024)] = 32,
        attention_everywhere: bool = False,
        attention_head_dim: Size | None = None,
        fourier_powers: tuple[Annotated[int, Within(-32, 32)], ...] = (6, 7),
        dropout: Share = 0.1,
        norm_num_groups: Size = 32,
        norm_eps: Share = 1e-6,
        num_class_embeds: Annotated[int, Within(0, 2**20)] | None = None,
        conditioning_dim: Annotated[int, Within(0, 2**14)] = 1,
        cross_attention_dim: Size | None = None,
    ):
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if out_channels != in_channels:
            raise ValueError(
                f"`out_channels` is {out_channels} and `in_channels` {in_channels}, but they must be equal: the output is added"
                " to the input."
            )
        if block_channels % norm_num_groups:
            raise ValueError(
                f"`block_channels` ({block_channels}) must be a multiple of `norm_num_groups` ({norm_num_groups})."
            )
        if block_channels % (attention_head_dim or block_channels):
            raise ValueError(
                f"`block_channels` ({block_channels}) must be a multiple of `attention_head_dim` ({attention_head_dim})."
            )
        embedding_dim = 4 * block_channels
        num_features = in_channels * (1 + 2 * len(fourier_powers))
        num_blocks = 2 * layers_per_side + 3
        weights = num_blocks * 22 * block_channels**2 + (layers_per_side + 1) * 11 * block_channels**2
        weights += num_blocks * attention_everywhere * 4 * block_channels**2 + embedding_dim * (num_class_embeds or 0)
        weights += 9 * block_channels * (num_features + in_channels) + embedding_dim * (cross_attention_dim or 0)
        if weights > MAX_PARAMETERS:
            raise ValueError(
                f"A denoiser with `block_channels` {block_channels}, `layers_per_side` {layers_per_side}, `in_channels`"
                f" {in_channels} and `num_class_embeds` {num_class_embeds} has {weights:.1e} parameters or more, but"
                f" {MAX_PARAMETERS:.1e} are the most: choose smaller ones."
            )

        self.embedding = nn.Sequential(
            nn.Linear(block_channels + conditioning_dim, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
        )
        self.class_embedding = nn.Embedding(num_class_embeds, embedding_dim) if num_class_embeds else None
        self.text_embedding = nn.Linear(cross_attention_dim, embedding_dim) if cross_attention_dim else None

        def resnet(channels: int = block_channels) -> ResnetBlock:
            return ResnetBlock(channels, block_channels, embedding_dim, dropout, norm_num_groups, norm_eps)

        def attention() -> Attention:
            return Attention(
                block_channels, attention_head_dim or block_channels, norm_num_groups, norm_eps, cross_attention_dim
            )

        def side(num_blocks: int, channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                Stage(resnet(channels), attention() if attention_everywhere else None) for _ in range(num_blocks)
            )

        self.conv_in = nn.Conv2d(num_features, block_channels, 3, padding=1)
        self.down = side(layers_per_side, block_channels)
        self.mid = nn.ModuleList([Stage(resnet(), attention()), Stage(resnet(), None)])
        self.up = side(layers_per_side + 1, 2 * block_channels)
        self.norm_out = nn.GroupNorm(norm_num_groups, block_channels, norm_eps)
        self.conv_out = nn.Conv2d(block_channels, out_channels, 3, padding=1)
        self.gradient_checkpointing = False
        self._initialise()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "VDMUNet2DModel":
        """As in diffusers; `OSError` for files that are missing, `ValueError` for files that are not a denoiser's."""
        with loading(f"The denoiser of {str(pretrained_model_name_or_path)!r}"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _initialise(self) -> None:
        """LeCun-normal weights and zero biases; whatever is added to a residual stream starts at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.cond_proj.weight)
            elif isinstance(module, AttentionOver):
                nn.init.zeros_(module.to_out.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        conditioning: Tensor | None = None,
        return_dict: bool = True,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """
        Args:
            sample (`Tensor` of shape `(B, C, H, W)`): The noisy images `z_t`.
            timestep (`Tensor` of shape `()` or `(B,)`, or `float`): What `gamma_t` is mapped to, fractional.
            class_labels (`Tensor` of shape `(B,)`, *optional*): Needed if the model is class-conditional.
            conditioning (`Tensor` of shape `(B, conditioning_dim)`, *optional*): Defaults to zeros.
            return_dict (`bool`, defaults to `True`): [`~diffusers.models.unets.unet_2d.UNet2DOutput`] or a plain tuple.
            encoder_hidden_states (`Tensor` of shape `(B, L, cross_attention_dim)`, *optional*): The vectors of a text, needed
                if the model is conditioned on one.
            encoder_attention_mask (`Tensor` of shape `(B, L)`, *optional*): True, or 1, for those that count. Defaults to all.

        Returns:
            The output, shaped as `sample` and in its dtype; what it estimates is the pipeline's `prediction_type`.
        """
        text = self._text(sample, encoder_hidden_states, encoder_attention_mask)
        embedding = self._embed(sample, timestep, class_labels, conditioning, text)
        features = self._with_fourier_features(sample)
        hidden = self.conv_in(features.contiguous(memory_format=torch.channels_last))  # and so all that follows
        skips = [hidden]
        for stage in self.down:
            hidden = self._run(stage, hidden, embedding, text)
            skips.append(hidden)
        for stage in self.mid:
            hidden = self._run(stage, hidden, embedding, text)
        for stage in self.up:
            hidden = self._run(stage, torch.cat([hidden, skips.pop()], dim=1), embedding, text)
        output = sample + self.conv_out(silu(self.norm_out(hidden)))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _run(self, stage: nn.Module, hidden: Tensor, embedding: Tensor, text: "Text | None") -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(stage, hidden, embedding, text)
        return stage(hidden, embedding, text)

    def _text(self, sample: Tensor, hidden_states: Tensor | None, mask: Tensor | None) -> "Text | None":
        if self.text_embedding is None:
            if hidden_states is not None:
                raise ValueError("`encoder_hidden_states` were given, but this denoiser takes no text (`cross_attention_dim`).")
            return None
        if hidden_states is None:
            raise ValueError(
                "This denoiser is conditioned on text (`cross_attention_dim` is set): give `encoder_hidden_states`."
            )
        if mask is None:
            mask = hidden_states.new_ones(hidden_states.shape[:2])
        return Text(hidden_states.to(sample.dtype), mask.bool())

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None,
        conditioning: Tensor | None,
        text: "Text | None",
    ) -> Tensor:
        """The conditioning vector that every block receives, `(B, 4 * block_channels)`."""
        batch_size = sample.shape[0]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        timestep = torch.as_tensor(timestep, dtype=dtype, device=sample.device).expand(batch_size)
        if conditioning is None:
            conditioning = sample.new_zeros(batch_size, self.config.conditioning_dim)
        time = timestep_embedding(timestep, self.config.block_channels).to(sample.dtype)
        embedding = torch.cat([time, conditioning.to(sample.dtype)], dim=1)
        embedding = self.embedding(embedding)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("This denoiser is class-conditional (`num_class_embeds` is set): give `class_labels`.")
            embedding = embedding + self.class_embedding(class_labels)
        elif class_labels is not None:
            raise ValueError("`class_labels` were given, but this denoiser is unconditional (`num_class_embeds` is not set).")
        if text is not None:
            embedding = embedding + self.text_embedding(text.mean())
        return silu(embedding)

    def _with_fourier_features(self, sample: Tensor) -> Tensor:
        """`z` with `sin` and `cos` of `2ⁿ 2π z` appended, computed in float32 at least (appendix C)."""
        if not self.config.fourier_powers:
            return sample
        frequencies = [2.0**power * 2 * math.pi for power in self.config.fourier_powers]
        exact = at_least_float32(sample)
        angles = torch.stack([exact * frequency for frequency in frequencies], dim=2).flatten(1, 2)
        return torch.cat([sample, angles.sin().to(sample.dtype), angles.cos().to(sample.dtype)], dim=1)


def timestep_embedding(timestep: Tensor, num_channels: int) -> Tensor:
    """Sines and cosines of a timestep, `(B,)`, at frequencies from 1 down to 1e-4: `(B, num_channels)`, in its dtype.

    Those of [`~diffusers.models.embeddings.Timesteps`] with `downscale_freq_shift=1`, which are float32; an odd channel is 0.
    """
    half = num_channels // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=timestep.dtype, device=timestep.device) / (half - 1)
    angles = timestep[:, None] * exponents.exp()
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, num_channels % 2))


class Text(NamedTuple):
    """
    The vectors of a text.

    Attributes:
        hidden_states (`Tensor` of shape `(B, L, width)`): Of its tokens.
        mask (`Tensor` of shape `(B, L)`): True for those that count.
    """

    hidden_states: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Of those that count, `(B, width)`."""
        weights = self.mask[..., None].to(self.hidden_states.dtype)
        return (self.hidden_states * weights).sum(1) / weights.sum(1)


class Stage(nn.Module):
    """A ResNet block, with attention after it or without."""

    def __init__(self, resnet: "ResnetBlock", attention: "Attention | None"):
        super().__init__()
        self.resnet, self.attention = resnet, attention

    def forward(self, x: Tensor, embedding: Tensor, text: Text | None = None) -> Tensor:
        x = self.resnet(x, embedding)
        return x if self.attention is None else self.attention(x, text)


class ResnetBlock(nn.Module):
    """`x + conv2(conv1(x) + projected embedding)`, normalised before each convolution."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, dropout: float, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.cond_proj = nn.Linear(embedding_dim, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x))) + self.cond_proj(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return self.shortcut(x) + h


class AttentionOver(nn.Module):
    """Attention of the pixels `(B, C, H, W)` over tokens `(B, L, width)`, to the shape of the pixels, added to them."""

    def __init__(self, channels: int, width: int, head_dim: int, groups: int, eps: float):
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(width, channels)
        self.to_v = nn.Linear(width, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Over the pixels themselves, normalised, if there are no `tokens`; over those of the `mask` `(B, L)`."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        tokens = pixels if tokens is None else tokens
        query, key, value = (
            project(given).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for project, given in ((self.to_q, pixels), (self.to_k, tokens), (self.to_v, tokens))
        )
        attended = scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None, None])
        return x + self.to_out(attended.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Attention(AttentionOver):
    """Attention of the pixels over each other, and then over a text, if there is one."""

    def __init__(self, channels: int, head_dim: int, groups: int, eps: float, text_width: int | None = None):
        super().__init__(channels, channels, head_dim, groups, eps)
        self.over_text = AttentionOver(channels, text_width, head_dim, groups, eps) if text_width else None

    def forward(self, x: Tensor, text: Text | None = None) -> Tensor:
        x = super().forward(x)
        return x if self.over_text is None else self.over_text(x, *text)
