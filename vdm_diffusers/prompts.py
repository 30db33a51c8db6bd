"""Prompts: the texts of a pipeline's call, in words or as embeddings, and what a denoiser is told of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from .conditioning import HIDDEN_STATES, MASK, Condition, null_condition, repeated, text_width, without_sizes
from .text_encoders import PromptEncoder


@dataclass(frozen=True)
class Prompts:
    """
    What a caller says of the texts of images; names are those of diffusers.

    Args:
        prompt (`str` or `list[str]`, *optional*): The texts, or one for all images.
        negative_prompt (`str` or `list[str]`, *optional*): What guidance compares with, for each text or for all.
        num_images_per_prompt (`int`, defaults to 1): Images of each text.
        prompt_embeds, negative_prompt_embeds (`Tensor` of shape `(P, L, width)`, *optional*): Texts that are encoded already.
        prompt_attention_mask, negative_prompt_attention_mask (`Tensor` of shape `(P, L)`, *optional*): Theirs.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    num_images_per_prompt: int = 1
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None

    def within(self, condition: Condition) -> tuple["Prompts", Condition]:
        """With the encoded texts of a condition as these, and what else there is in it."""
        if not isinstance(condition.get(HIDDEN_STATES), Tensor):
            return self, condition
        if self.prompt is not None or self.prompt_embeds is not None:
            raise ValueError(f"`condition` has `{HIDDEN_STATES}`, which is what a prompt becomes: give one of them.")
        rest = {keyword: value for keyword, value in condition.items() if keyword not in (HIDDEN_STATES, MASK)}
        return replace(self, prompt_embeds=condition[HIDDEN_STATES], prompt_attention_mask=condition.get(MASK)), rest

    def conditions(
        self, encoder: PromptEncoder | None, unet: nn.Module, number: int | None, guided: bool
    ) -> tuple[Condition, Condition]:
        """
        What a denoiser is told of the texts, and of those that guidance compares with, whose images have the same size; empty
        if it takes no text.

        Args:
            encoder ([`PromptEncoder`], *optional*): Of texts in words.
            unet (`nn.Module`): The denoiser.
            number (`int`, *optional*): Of images, where one text is for all of them.
            guided (`bool`): Whether there is guidance; without it nothing is compared with.

        Raises:
            `TypeError`: for texts that are no strings.
            `ValueError`: for texts that the denoiser doesn't take, that can't be encoded, or whose numbers contradict.
        """
        texts = _as_list("prompt", self.prompt)
        if text_width(unet) is None:
            if texts is not None or self.negative_prompt is not None or self.prompt_embeds is not None:
                shown = f" such as {texts[0]!r}" if texts else ""
                raise ValueError(f"This model takes no prompt{shown}: it is not conditioned on text.")
            return {}, {}
        self._check(texts, encoder)
        if self.prompt_embeds is not None:
            told = _embedded(self.prompt_embeds, self.prompt_attention_mask)
        elif encoder is None:
            return {}, {}
        else:
            _warn_of_cut(texts or [], encoder)
            told = encoder([""] if texts is None else texts, unet)
        alone = self.prompt_embeds is None and not isinstance(self.prompt, (list, tuple))
        repeats = number if alone and number and self.num_images_per_prompt == 1 else self.num_images_per_prompt
        null = self._null(told, encoder, unet) if guided else {}
        return repeated(told, repeats), repeated(null, repeats)

    def _check(self, texts: list[str] | None, encoder: PromptEncoder | None) -> None:
        if texts is not None and self.prompt_embeds is not None:
            raise ValueError("`prompt` and `prompt_embeds` are both given: choose one.")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("`negative_prompt` and `negative_prompt_embeds` are both given: choose one.")
        if encoder is None and (texts is not None or self.negative_prompt is not None):
            raise ValueError(
                "This pipeline has no `text_encoder` and `tokenizer` that fit its denoiser: give texts as `prompt_embeds`."
            )
        for name in ("prompt", "negative_prompt"):
            embeds, mask = getattr(self, f"{name}_embeds"), getattr(self, f"{name}_attention_mask")
            if embeds is not None and not (isinstance(embeds, Tensor) and embeds.ndim == 3 and len(embeds)):
                raise ValueError(f"`{name}_embeds` must be a tensor of shape (prompts, tokens, width).")
            if mask is not None and (embeds is None or mask.shape != embeds.shape[:2]):
                raise ValueError(f"`{name}_attention_mask` must have an element for each token of `{name}_embeds`.")

    def _null(self, told: Condition, encoder: PromptEncoder | None, unet: nn.Module) -> Condition:
        """Of the negative prompts, or of none: the empty text, or without an encoder zeros."""
        number = len(told[HIDDEN_STATES])
        if self.negative_prompt_embeds is not None:
            null = _embedded(self.negative_prompt_embeds, self.negative_prompt_attention_mask)
        elif encoder is None:
            return null_condition(told, unet)
        else:
            null = without_sizes(encoder(_as_list("negative_prompt", self.negative_prompt) or [""], unet))
        if len(null[HIDDEN_STATES]) == 1:
            null = repeated(null, number)
        if len(null[HIDDEN_STATES]) != number:
            raise ValueError(
                f"There are {len(null[HIDDEN_STATES])} negative prompts for {number} prompts: give one, or as many."
            )
        if null[HIDDEN_STATES].shape != told[HIDDEN_STATES].shape or (MASK in null) != (MASK in told):
            raise ValueError(
                f"Negative prompts have the shape {tuple(null[HIDDEN_STATES].shape)}{' and a mask' * (MASK in null)}, prompts"
                f" {tuple(told[HIDDEN_STATES].shape)}{' and a mask' * (MASK in told)}: give both alike, as embeddings."
            )
        return null


def _as_list(name: str, texts: str | Sequence[str] | None) -> list[str] | None:
    texts = [texts] if isinstance(texts, str) else texts
    if texts is not None and not (isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts)):
        raise TypeError(f"`{name}` must be a string or a list of strings, with at least one.")
    return None if texts is None else list(texts)


def _warn_of_cut(texts: list[str], encoder: PromptEncoder) -> None:
    if cut := encoder.num_cut(texts):
        length = encoder.max_sequence_length
        warnings.warn(f"{cut} of {len(texts)} prompts have more than {length} tokens and are cut.", stacklevel=2)


def _embedded(embeds: Tensor, mask: Tensor | None) -> Condition:
    return {HIDDEN_STATES: embeds} if mask is None else {HIDDEN_STATES: embeds, MASK: mask}
