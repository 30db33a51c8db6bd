"""A tokenizer and a text encoder as one function of prompts."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ..conditioning import HIDDEN_STATES, MASK, Condition, condition_of_texts, pooled_width, text_width
from ..guards.messages import Message


if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


MAX_SEQUENCE_LENGTH = 77
"""Tokens of a prompt unless told otherwise: those of CLIP."""

REMEMBERED = 4096
"""Prompts whose encodings are kept."""

WITHOUT_MASK = ("clip", "clip_text_model")
"""Kinds of encoders whose padding is text like any other, as the pipelines of Stable Diffusion have it."""


class PromptEncoder:
    """
    A tokenizer and a text encoder as one function of prompts, which are padded or cut to one length.

    Prompts are encoded one by one, so that what a prompt becomes depends on no other, and the latest are remembered.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of transformers.
        text_encoder (`PreTrainedModel`): Any of transformers with hidden states: CLIP, T5, BERT-like and sentence encoders.
        max_sequence_length (`int`, *optional*): Tokens of a prompt. Defaults to what both can take, at most
            `MAX_SEQUENCE_LENGTH`.
        lowercase (`bool`, defaults to `False`): Whether prompts are read in lower case, and without space around them, as
            PixArt reads them.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images, in pixels, for denoisers that are told them.

    Attributes:
        stored (`Mapping`): Encodings by their prompts that are looked up instead of computed, as [`~PromptEncoder.encode`]
            returns them.

    Raises `ValueError` for a `max_sequence_length` that the encoder can't take.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        text_encoder: "PreTrainedModel",
        max_sequence_length: int | None = None,
        lowercase: bool = False,
        image_size: tuple[int, int] | None = None,
    ):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.lowercase, self.image_size = lowercase, image_size
        self.max_sequence_length = _checked_length(max_sequence_length, self.parts)
        self.stored: Mapping[str, Mapping[str, Tensor]] = {}
        self._remembered = lru_cache(maxsize=REMEMBERED)(self.encode)

    def __call__(self, prompts: Sequence[str], unet: nn.Module) -> Condition:
        """
        What a denoiser is told of prompts, vectors in the dtype that it computes in: `encoder_hidden_states` `(B, L, width)`;
        if it takes one and the encoder has one, `encoder_attention_mask` `(B, L)`, true for tokens that are no padding; and if
        it takes them, in `added_cond_kwargs`, `text_embeds` `(B, pooled_width)` and the size of the images.

        Raises `ValueError` for a denoiser as [`~PromptEncoder.check_denoiser`] refuses it, and for one that is told the size of
        images where there is no `image_size`.
        """
        self.check_denoiser(unet)
        encoded = [self.stored[prompt] if prompt in self.stored else self._remembered(prompt) for prompt in prompts]
        tensors = {name: torch.stack([each[name] for each in encoded]) for name in encoded[0]}
        return condition_of_texts(tensors, self.image_size, unet)

    def without_memory(self) -> Self:
        """The same encoder, which knows no encodings yet: what it gives is computed now, not under settings of the past."""
        fresh = copy.copy(self)
        fresh.stored, fresh._remembered = {}, lru_cache(maxsize=REMEMBERED)(fresh.encode)
        return fresh

    @torch.no_grad()
    def encode(self, prompt: str) -> dict[str, Tensor]:
        """One prompt, on the encoder's device: its vectors `(L, width)` and, if padding isn't text, its mask `(L,)`."""
        tokens = self._tokens(prompt, self.tokenizer).to(self.text_encoder.device)
        if self.text_encoder.config.model_type in WITHOUT_MASK:
            return {HIDDEN_STATES: outputs(self.text_encoder, tokens.input_ids)[0][0]}
        mask = tokens.attention_mask.bool()
        mask[:, 0] = True  # there must be something to attend to, also in an empty prompt
        hidden = outputs(self.text_encoder, tokens.input_ids, attention_mask=mask.long())[0]
        return {HIDDEN_STATES: hidden[0], MASK: mask[0]}

    @property
    def parts(self) -> "list[tuple[PreTrainedTokenizerBase, PreTrainedModel]]":
        """Each tokenizer with its text encoder."""
        return [(self.tokenizer, self.text_encoder)]

    @property
    def width(self) -> int | None:
        """The length of a token's vector; `None` if the encoder's configuration doesn't say."""
        return configured(self.text_encoder, "hidden_size")

    @property
    def pooled_width(self) -> int | None:
        """The length of the vector of a whole prompt; `None` if there is none."""
        return None

    @property
    def pipeline_arguments(self) -> dict[str, Any]:
        """What a [`VDMPipeline`] that has this encoder is made with."""
        names = ("tokenizer", "text_encoder", "max_sequence_length", "lowercase")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """What distinguishes its encodings from those of others."""
        encoders = (f"{type(encoder).__name__} {_sum_of_weights(encoder):.6e}" for _, encoder in self.parts)
        return f"{' and '.join(encoders)}, {self.max_sequence_length} tokens{' in lower case' * self.lowercase}"

    @property
    def description(self) -> str:
        """What it is, in words."""
        encoders = " and ".join(type(encoder).__name__ for _, encoder in self.parts)
        pooled = f", a vector of {self.pooled_width} for all" if self.pooled_width else ""
        return f"{encoders}, {self.max_sequence_length} tokens of {self.width} numbers{pooled}"

    def to(self, device: str | torch.device) -> None:
        """Move its text encoders to a device."""
        for _, encoder in self.parts:
            encoder.to(device)

    def num_cut(self, prompts: Iterable[str]) -> int:
        """How many of the prompts have more tokens than `max_sequence_length`, and so lose some."""
        lengths = (
            max(len(tokenizer(self._read(prompt), verbose=False).input_ids) for tokenizer, _ in self.parts)
            for prompt in prompts
        )
        return sum(length > self.max_sequence_length for length in lengths)

    def check_denoiser(self, unet: nn.Module) -> None:
        """Raise `ValueError` unless a denoiser takes texts as vectors of these lengths."""
        if (problem := self.misfit(unet)) is not None:
            raise ValueError(problem)

    def misfit(self, unet: nn.Module) -> str | None:
        """Why a denoiser can't be told what this encodes; `None` if it can."""
        name, width, pooled = type(unet).__name__, text_width(unet), pooled_width(unet)
        if width is None:
            return f"{name} takes no text: its configuration has no `cross_attention_dim`."
        if width != self.width:
            return f"{name} takes texts as vectors of {width} numbers, but the encoder's have {self.width}."
        if pooled != self.pooled_width:
            return f"{name} takes {_of_length(pooled)} for a whole text, but the encoder has {_of_length(self.pooled_width)}."
        return None

    def _read(self, prompt: str) -> str:
        return prompt.lower().strip() if self.lowercase else prompt

    def _tokens(self, prompt: str, tokenizer: "PreTrainedTokenizerBase") -> "BatchEncoding":
        """Those of one prompt, as a batch of one."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_sequence_length}
        return tokenizer(self._read(prompt), return_tensors="pt", **options)


def configured(text_encoder: "PreTrainedModel", name: str) -> int | None:
    """A number of its configuration; `None` if it has none of that name."""
    return getattr(getattr(text_encoder, "config", None), name, None)


def outputs(text_encoder: "PreTrainedModel", input_ids: Tensor, **kwargs: Any) -> Any:
    """What a text encoder makes of tokens, in its own dtype."""
    with torch.autocast(input_ids.device.type, enabled=False):
        return text_encoder(input_ids, **kwargs)


def _checked_length(max_sequence_length: int | None, parts: "Sequence[tuple[PreTrainedTokenizerBase, PreTrainedModel]]") -> int:
    """The tokens of a prompt; what a tokenizer was made for doesn't limit encoders of any length, such as T5."""
    nominal = min(tokenizer.model_max_length for tokenizer, _ in parts)
    positions = [configured(encoder, "max_position_embeddings") for _, encoder in parts]
    limit = min((min(nominal, number) for number in positions if number), default=10**9)
    if max_sequence_length is not None and not 1 <= max_sequence_length <= limit:
        names = " and ".join(type(encoder).__name__ for _, encoder in parts)
        raise ValueError(
            Message("{max_sequence_length} is {}, but {} can take 1 to {} tokens.", max_sequence_length, names, limit)
        )
    return max_sequence_length or min(nominal, limit, MAX_SEQUENCE_LENGTH)


def _sum_of_weights(text_encoder: "PreTrainedModel") -> float:
    return sum(parameter.double().abs().sum().item() for parameter in text_encoder.parameters())


def _of_length(number: int | None) -> str:
    return "no vector" if number is None else f"a vector of {number} numbers"
