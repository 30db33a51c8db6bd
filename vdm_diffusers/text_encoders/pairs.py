"""Two tokenizers and text encoders as one function of prompts, as Stable Diffusion XL has them (Podell et al. 2023)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..conditioning import HIDDEN_STATES, POOLED
from .prompt_encoder import PromptEncoder, configured, outputs


if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase


class PromptEncoderPair(PromptEncoder):
    """
    As [`PromptEncoder`], of two text encoders: a token's vector is that of the first, before its last layer, followed by that
    of the second; the whole prompt's is the second's projection.

    Args:
        tokenizer, tokenizer_2 (`PreTrainedTokenizerBase`): Of transformers.
        text_encoder (`CLIPTextModel`): The first.
        text_encoder_2 (`CLIPTextModelWithProjection`): The second.
        max_sequence_length (`int`, *optional*): Tokens of a prompt. Defaults to what all can take.
        force_zeros_for_empty_prompt (`bool`, defaults to `False`): Whether the empty prompt is zeros, as
            [`~diffusers.StableDiffusionXLPipeline`] has it where it is given no negative one.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images, in pixels, for denoisers that are told them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        text_encoder: "CLIPTextModel",
        tokenizer_2: "PreTrainedTokenizerBase",
        text_encoder_2: "CLIPTextModelWithProjection",
        max_sequence_length: int | None = None,
        force_zeros_for_empty_prompt: bool = False,
        image_size: tuple[int, int] | None = None,
    ):
        self.tokenizer_2, self.text_encoder_2 = tokenizer_2, text_encoder_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        super().__init__(tokenizer, text_encoder, max_sequence_length, image_size=image_size)

    @torch.no_grad()
    def encode(self, prompt: str) -> dict[str, Tensor]:
        """One prompt, on the encoders' device: its tokens' vectors `(L, width)` and its own `(pooled_width,)`."""
        first, second = (
            outputs(encoder, self._tokens(prompt, tokenizer).input_ids.to(encoder.device), output_hidden_states=True)
            for tokenizer, encoder in self.parts
        )
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        encoded = {HIDDEN_STATES: hidden[0], POOLED: second.text_embeds[0]}
        if self.force_zeros_for_empty_prompt and not prompt:
            return {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
        return encoded

    @property
    def parts(self) -> list[tuple]:
        return [*super().parts, (self.tokenizer_2, self.text_encoder_2)]

    @property
    def width(self) -> int | None:
        widths = [configured(encoder, "hidden_size") for _, encoder in self.parts]
        return None if None in widths else sum(widths)

    @property
    def pooled_width(self) -> int | None:
        return configured(self.text_encoder_2, "projection_dim")

    @property
    def pipeline_arguments(self) -> dict[str, Any]:
        names = ("tokenizer_2", "text_encoder_2", "force_zeros_for_empty_prompt")
        return super().pipeline_arguments | {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        return super().fingerprint + ", zeros for the empty one" * self.force_zeros_for_empty_prompt
