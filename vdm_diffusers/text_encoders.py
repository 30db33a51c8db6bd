"""Text encoders of transformers: prompts -> what a denoiser is told of them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .conditioning import HIDDEN_STATES, MASK, Condition, takes, text_width
from .denoisers import denoiser_of
from .guards.foreign_models import INDEX, weights_limited
from .guards.loading import reason_of
from .guards.messages import Message
from .precision import compute_dtype


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MAX_SEQUENCE_LENGTH = 77
"""Tokens of a prompt unless told otherwise: those of CLIP."""

REMEMBERED = 4096
"""Prompts whose encodings are kept."""

WITHOUT_MASK = ("clip", "clip_text_model")
"""Kinds of encoders whose padding is text like any other, as the pipelines of Stable Diffusion have it."""

BYTES_A_WEIGHT = 4
"""Of memory, in float32."""


class PromptEncoder:
    """
    A tokenizer and a text encoder as one function of prompts, which are padded or cut to one length.

    Prompts are encoded one by one, so that what a prompt becomes depends on no other, and the latest are remembered.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of transformers.
        text_encoder (`PreTrainedModel`): Any of transformers with hidden states: CLIP, T5, BERT-like and sentence encoders.
        max_sequence_length (`int`, *optional*): Tokens of a prompt. Defaults to what both can take, at most
            `MAX_SEQUENCE_LENGTH`.

    Attributes:
        width (`int`): The length of a token's vector.
        stored (`Mapping`): Encodings by their prompts that are looked up instead of computed, as [`~PromptEncoder.encode`]
            returns them.

    Raises `ValueError` for a `max_sequence_length` that the encoder can't take.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        text_encoder: "PreTrainedModel",
        max_sequence_length: int | None = None,
    ):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.width: int = _width(text_encoder)
        limit = min(tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", None) or 10**9)
        if max_sequence_length is not None and not 1 <= max_sequence_length <= limit:
            text = "{max_sequence_length} is {}, but {} takes from 1 to {} tokens."
            raise ValueError(Message(text, max_sequence_length, type(text_encoder).__name__, limit))
        self.max_sequence_length = max_sequence_length or min(limit, MAX_SEQUENCE_LENGTH)
        self.stored: Mapping[str, tuple[Tensor, Tensor]] = {}
        self._remembered = lru_cache(maxsize=REMEMBERED)(self.encode)

    def __call__(self, prompts: Sequence[str], unet: nn.Module) -> Condition:
        """
        What a denoiser is told of prompts: `encoder_hidden_states` `(B, L, width)` in the dtype that it computes in, and if it
        takes one and the encoder has one, `encoder_attention_mask` `(B, L)`, true for tokens that are no padding.

        Raises `ValueError` for a denoiser that takes no text, or vectors of another length.
        """
        check_text_width(unet, self.width)
        encoded = [self.stored[prompt] if prompt in self.stored else self._remembered(prompt) for prompt in prompts]
        condition = {HIDDEN_STATES: torch.stack([hidden for hidden, _ in encoded]).to(compute_dtype(unet))}
        if self.has_mask and takes(unet, MASK):
            condition[MASK] = torch.stack([mask for _, mask in encoded])
        return condition

    @property
    def has_mask(self) -> bool:
        """Whether padding is to be left out of attention."""
        return self.text_encoder.config.model_type not in WITHOUT_MASK

    def num_cut(self, prompts: Iterable[str]) -> int:
        """How many of the prompts have more tokens than `max_sequence_length`, and so lose some."""
        tokens = (self.tokenizer(prompt, verbose=False).input_ids for prompt in prompts)
        return sum(len(ids) > self.max_sequence_length for ids in tokens)

    @property
    def fingerprint(self) -> str:
        """What distinguishes its encodings from those of others."""
        weights = sum(parameter.double().abs().sum().item() for parameter in self.text_encoder.parameters())
        return f"{type(self.text_encoder).__name__} {weights:.6e}, {self.max_sequence_length} tokens"

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """The vectors of one prompt `(L, width)` and its mask `(L,)`, on the encoder's device."""
        tokens = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=self.max_sequence_length, return_tensors="pt"
        ).to(self.text_encoder.device)
        mask = tokens.attention_mask.bool()
        mask[:, 0] = True  # there must be something to attend to, also in an empty prompt
        attended = {"attention_mask": mask.long()} if self.has_mask else {}
        with torch.autocast(mask.device.type, enabled=False):
            return self.text_encoder(tokens.input_ids, **attended)[0][0], mask[0]


def prompt_encoder_of(pipeline: DiffusionPipeline) -> PromptEncoder | None:
    """That of a pipeline, if it has a tokenizer, and a text encoder whose vectors are what its denoiser takes."""
    encoder, tokenizer = (pipeline.components.get(name) for name in ("text_encoder", "tokenizer"))
    if encoder is None or tokenizer is None:
        return None
    taken = text_width(denoiser_of(pipeline))
    if taken is None or taken != _width(encoder):
        return None
    return PromptEncoder(tokenizer, encoder, pipeline.config.get("max_sequence_length"))


def _width(text_encoder: "PreTrainedModel") -> int | None:
    """The length of its vectors; `None` if its configuration doesn't say."""
    return getattr(getattr(text_encoder, "config", None), "hidden_size", None)


def check_text_width(unet: nn.Module, width: int) -> None:
    """Raise `ValueError` unless a denoiser takes texts whose tokens are vectors of this length."""
    taken = text_width(unet)
    if taken is None:
        raise ValueError(f"{type(unet).__name__} takes no text: its configuration has no `cross_attention_dim`.")
    if taken != width:
        raise ValueError(f"{type(unet).__name__} takes texts as vectors of {taken} numbers, but the encoder's have {width}.")


def load_prompt_encoder(
    name_or_path: str | os.PathLike, cache_dir: str | None = None, max_sequence_length: int | None = None
) -> PromptEncoder:
    """A text encoder of transformers with its tokenizer, by itself or of a pipeline, a folder or a name on the Hub, frozen.

    Raises `ValueError` if there is none, or if it is not one of text.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

    name = str(name_or_path)
    of_pipeline = Path(name, INDEX).is_file()
    encoder, tokenizer = ({"subfolder": part} if of_pipeline else {} for part in ("text_encoder", "tokenizer"))
    given = {"cache_dir": cache_dir, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **given, **encoder)
        config = getattr(config, "text_config", config)  # of a model of texts and images, such as CLIP, the part for texts
        auto = AutoModelForTextEncoding if type(config) in AutoModelForTextEncoding._model_mapping else AutoModel
        with weights_limited(psutil.virtual_memory().total // BYTES_A_WEIGHT):
            model = auto.from_pretrained(name, config=config, use_safetensors=True, **given, **encoder)
        words = AutoTokenizer.from_pretrained(name, **given, **tokenizer)
    except Exception as error:  # whatever a folder or the Hub leads to
        text = (
            "{text_encoder_name_or_path} {!r} could not be loaded: {} Name a text encoder of transformers with its tokenizer,"
            " or a pipeline with both, as a folder or on the Hub."
        )
        raise ValueError(Message(text, name, reason_of(error))) from error
    if not hasattr(model.config, "hidden_size"):
        text = "{text_encoder_name_or_path} {!r} is a {}, no encoder of text."
        raise ValueError(Message(text, name, type(model).__name__))
    return PromptEncoder(words, model.requires_grad_(False).eval(), max_sequence_length)
