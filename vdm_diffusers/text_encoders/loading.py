"""A text encoder by its name: of transformers, or of a pipeline of diffusers."""

import os
from pathlib import Path

import psutil

from ..guards.foreign_models import INDEX, weights_limited
from ..guards.loading import reason_of
from ..guards.messages import Message
from .prompt_encoder import PromptEncoder


BYTES_A_WEIGHT = 4
"""Of memory, in float32."""


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
