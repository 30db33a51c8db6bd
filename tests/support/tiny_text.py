"""Tokenizers and text encoders that need no download, for pipelines that take prompts."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)


WORDS = ("<pad>", "<end>", "<unknown>", "a", "cat", "dog", "red", "blue")


DIGITS = (
    *WORDS[:4], "handwritten", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
"""Words of the captions of the digits."""


def tokenizer(vocabulary: Sequence[str] = WORDS, ends: bool = False) -> PreTrainedTokenizerFast:
    """Of words, without beginnings and, unless it `ends` them as that of T5 does, without ends."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        words.post_processor = processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", WORDS.index("<end>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", model_max_length=6
    )


def clip(cls: type[CLIPTextModel | CLIPTextModelWithProjection] = CLIPTextModel, size: int = 8) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=size, intermediate_size=16, projection_dim=size, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return cls(config).eval()


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def bert(vocabulary: Sequence[str] = WORDS) -> BertModel:
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    return BertModel(config).eval()
