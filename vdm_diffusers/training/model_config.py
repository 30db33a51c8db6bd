"""A new denoiser from a configuration, as diffusers writes it: read, completed by what the data decide, built."""

import json
from collections.abc import Callable, Container
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import ModelMixin
from huggingface_hub import hf_hub_download

from ..conditioning import text_width
from ..data.images import ImageData
from ..denoisers import check_denoiser
from ..guards.foreign_models import check_sizes, known_class, read_json, weights_limited
from ..guards.loading import refused_as
from ..guards.messages import Message


CLASS = "_class_name"
BYTES_A_WEIGHT = 20
"""Of memory that a weight takes in training, in float32: itself, its gradient, AdamW's two moments and its average."""


def read_model_config(name: str, cache_dir: str | None = None) -> dict[str, Any]:
    """
    The configuration in a JSON file, in the `config.json` of a folder or of a model on the Hub, or given as JSON itself.

    Raises `ValueError` if there is none, or if it is not that of a model of diffusers or of this package.
    """
    with refused_as(Message("{model_config_name_or_path} {!r} could not be read", name[:100])):
        if name.lstrip().startswith("{"):
            config = json.loads(name)
        elif Path(name).is_file():
            config = read_json(Path(name))
        elif Path(name).is_dir():
            config = read_json(Path(name, ModelMixin.config_name))
        elif name.startswith(("/", "./", "../")) or name.endswith(".json"):
            raise ValueError("There is no file or folder of that name.")
        else:
            config = read_json(Path(hf_hub_download(name, ModelMixin.config_name, cache_dir=cache_dir)))
        check_sizes(config)
        class_of(config)
    return {key: value for key, value in config.items() if key == CLASS or not key.startswith("_")}


def class_of(config: dict[str, Any]) -> type[ModelMixin]:
    """The class that a configuration names; `ValueError` unless it is a model of diffusers or of this package."""
    found = known_class("diffusers", config.get(CLASS))
    if not issubclass(found, ModelMixin):
        raise ValueError(f"It is the configuration of a {found.__name__}, which is no model.")
    return found


def build_from_config(config: dict[str, Any], data: ImageData, name: str, width_of_text: int | None = None) -> ModelMixin:
    """
    A denoiser with random weights, for samples as those of the data and for their classes and captions.

    Args:
        config (`dict`): As [`read_model_config`] returns it.
        name (`str`): Where it comes from, for messages.
        width_of_text (`int`, *optional*): The length of the vectors of captions.

    Raises:
        `ValueError`: if it contradicts the data, describes no denoiser of such samples, or one too large to be trained here.
    """
    cls = class_of(config)
    with refused_as(Message("{model_config_name_or_path} {!r} describes no denoiser of these data", name[:100])):
        denoiser = build_within_memory(cls.from_config, _completed(config, signature(cls).parameters, data, width_of_text))
        check_denoiser(denoiser, data.shape)
        if width_of_text is None and text_width(denoiser) is not None:
            raise ValueError(Message("It is conditioned on text: name captions by {caption_column}."))
    return denoiser


def build_within_memory(build: Callable[..., ModelMixin], *args: Any, **kwargs: Any) -> ModelMixin:
    """A model with random weights; `ValueError`, before it takes memory, if training it would need more than there is."""
    max_weights = psutil.virtual_memory().total // BYTES_A_WEIGHT
    with weights_limited(max_weights), torch.device("meta"):
        build(*args, **kwargs)
    return build(*args, **kwargs)


def _name_of_text_width(parameters: Container[str]) -> str:
    """What a class of denoisers calls the length of the vectors of captions; `ValueError` if it takes none."""
    for name in ("caption_channels", "cross_attention_dim"):
        if name in parameters:
            return name
    raise ValueError("It takes no text: leave out the captions, or describe another denoiser.")


def _completed(
    config: dict[str, Any], parameters: Container[str], data: ImageData, width_of_text: int | None
) -> dict[str, Any]:
    """A configuration with what the data decide and a model takes; `ValueError` where it says otherwise."""
    channels, *size = data.shape
    decided = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": size[0] if len(set(size)) == 1 else size,
        "num_class_embeds": None if data.num_classes is None else data.num_classes + 1,
        "num_embeds_ada_norm": data.num_classes,
    }
    if width_of_text is not None:
        decided[_name_of_text_width(parameters)] = width_of_text
    config = {key: value for key, value in config.items() if key != CLASS}
    for key, value in decided.items():
        given = config.get(key)
        if key in parameters and given is None:
            config[key] = value
        elif key in parameters and given not in (value, [value] * len(size)):
            message = "Its `{}` is {}, but that of {!r} is {}: leave it out, or see {label_column}."
            raise ValueError(Message(message, key, given, data.name, value))
    return config
