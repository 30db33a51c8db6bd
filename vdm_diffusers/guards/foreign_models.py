"""Models from somebody's folder or from the Hub: looked at before anything is paid for them, and refused in one sentence.

What a folder can do wrong is without end, so that whatever goes wrong while it is loaded becomes the sentence. Three things are
looked at before: which classes it names, for a library that is imported runs code; the sizes of its files of text; and what its
configurations would build, without memory and no further than its weights reach.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedModel, PreTrainedTokenizerBase

from .loading import refused_as


INDEX = "model_index.json"
PREPARATIONS = (PreTrainedTokenizerBase, ImageProcessingMixin, FeatureExtractionMixin)
"""Of transformers: what makes inputs of prompts and images."""
WEIGHTS = (".safetensors", ".bin")
MAX_TEXT_BYTES = 1 << 25
"""Of a configuration: a table of a million gammas takes less."""
MAX_TENSORS = 10_000
"""Of a model: the largest of diffusers have some thousands."""
LIMITS = {"sample_size": 1 << 13, "num_train_timesteps": 10**6, "num_features": 1 << 20, "num_steps": 10**6}
"""Largest values of what costs memory without being weights, wherever a configuration has them."""


def check_pipeline(name: str | os.PathLike, cache_dir: str | None = None) -> Path:
    """The folder of a pipeline, downloaded if it is on the Hub; an error unless it is one of known classes and true sizes."""
    if not os.path.isdir(name) and (os.path.lexists(name) or str(name).startswith(("/", "./", "../"))):
        raise ValueError("There is no folder of that name.")
    folder = Path(name if os.path.isdir(name) else DiffusionPipeline.download(str(name), cache_dir=cache_dir))
    index = read_json(folder / INDEX)
    known_class("diffusers", index.get("_class_name"))
    for component, entry in index.items():
        if isinstance(entry, list) and entry != [None, None] and not component.startswith("_"):
            library, class_name = entry
            check_component(folder / Path(component).name, known_class(library, class_name))
    return folder


def check_model(folder: Path) -> None:
    """Raise an error if this is the folder of a model, and is not as [`check_component`] wants it."""
    if folder.is_dir() and (folder / ModelMixin.config_name).is_file():
        check_component(folder, known_class("diffusers", read_json(folder / ModelMixin.config_name).get("_class_name")))


def check_component(folder: Path, cls: type) -> None:
    """Raise an error unless the files of a component can be read, and its configuration builds what its weights are."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder.name!r} in it.")
    num_weights = 0
    for path in folder.iterdir():
        if path.suffix == ".json":
            check_sizes(read_json(path))
        elif path.suffix in WEIGHTS and path.is_file():
            num_weights += path.stat().st_size
    if issubclass(cls, (ModelMixin, PreTrainedModel)):
        build_without_memory(cls, read_json(folder / ModelMixin.config_name), num_weights)


def known_class(library: Any, name: Any) -> type:
    """A class of diffusers, of transformers or of this package that a file names; nothing else is imported."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    module = libraries.get(str(library), getattr(diffusers.pipelines, str(library), None))
    found = getattr(module, str(name), None) if isinstance(module, ModuleType) else None
    if not isinstance(found, type) or not issubclass(found, (ConfigMixin, PreTrainedModel, *PREPARATIONS)):
        raise ValueError(
            f"It names {name!r} of {library!r}, but only pipelines, models and schedulers of diffusers are loaded, and models"
            " and tokenizers of transformers."
        )
    return found


def read_json(path: Path) -> dict:
    """The mapping that a file holds, if it is one and not too large."""
    if not path.is_file():
        raise ValueError(f"There is no file {path.name!r} in {path.parent.name!r}.")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path.name!r} has {path.stat().st_size:,} bytes, but a configuration at most {MAX_TEXT_BYTES:,}.")
    with refused_as(f"{path.name!r} in {path.parent.name!r} is no JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name!r} holds a {type(content).__name__}, but must be a mapping.")
    return content


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a configuration has a size that costs more than any model's."""
    for name, limit in LIMITS.items():
        value = config.get(name)
        for size in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(size, (int, float)) and not size <= limit:
                raise ValueError(f"`{name}` is {size:.6g}, but at most {limit:,} is possible.")


def build_without_memory(cls: type[nn.Module], config: Mapping[str, Any], max_weights: int) -> nn.Module:
    """The model of a configuration without weights, on the `meta` device, if it has no more than so many."""
    with weights_limited(max_weights), torch.device("meta"):
        if issubclass(cls, PreTrainedModel):
            return cls(cls.config_class.from_dict(dict(config)))
        return cls.from_config(dict(config))


@contextmanager
def weights_limited(max_weights: int) -> Iterator[None]:
    """`ValueError` as soon as the modules that are built meanwhile have more weights, or more tensors than any model."""
    weights = tensors = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal weights, tensors
        if tensor is not None:
            weights, tensors = weights + tensor.numel(), tensors + 1
            if weights > max_weights or tensors > MAX_TENSORS:
                what = f"{max_weights:,} weights" if weights > max_weights else f"{MAX_TENSORS:,} tensors"
                raise ValueError(f"The model that it describes has more than {what}, which is more than there can be.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
