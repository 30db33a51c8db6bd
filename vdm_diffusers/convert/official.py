"""The authors' checkpoints (github.com/google-research/vdm) as pipelines, and back, bit for bit.

    python -m vdm_diffusers.convert --checkpoint_path checkpoints-0 --config cifar10 --output_dir vdm-cifar10

A checkpoint is a Flax state in msgpack (`flax_state.py`): the map `{"step", "params", "ema_params"}`, whose leaves are arrays.
An array is read only once its name and shape are known to be right. docs/official_checkpoints.md shows the way from download
to likelihood.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import torch
from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard
from torch import Tensor

from ..command_line import read_text
from ..guards.foreign_models import weights_limited
from ..guards.loading import refused_as
from ..guards.messages import Message, refuse_if
from ..noise_schedules import LearnedUnpinnedSchedule, LinearSchedule, NoiseSchedule
from ..unet_vdm import VDMUNet2DModel
from ..vdm import VDM
from .flax_state import StateReader, StoredArray, write_state


PathLike = str | os.PathLike
MAX_CONFIG_BYTES = 1 << 16
MAX_WEIGHTS = 1 << 32
Layout = Callable[[Tensor], Tensor]

WEIGHTS = {"ema": "ema_params", "params": "params"}
"""The two sets of weights of a checkpoint: the moving average, and the weights as trained."""


@dataclass(frozen=True)
class OfficialConfig:
    """
    The fields of the authors' `VDMConfig`, by default those of their CIFAR-10 model, and the size of the images.

    `sample_softmax` and `antithetic_time_sampling` say how their code draws; a model is the same with either.

    Raises `ValueError`, naming the field, for values that no model can have.
    """

    vocab_size: int = 256
    sample_softmax: bool = False
    antithetic_time_sampling: bool = True
    with_fourier_features: bool = True
    with_attention: bool = False
    gamma_type: str = "learnable_scalar"
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    sm_n_timesteps: int = 0
    sm_n_embd: int = 128
    sm_n_layer: int = 32
    sm_pdrop: float = 0.1
    resolution: int = 32

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in ((int, float) if field.type is float else (field.type,)):
                raise ValueError(f"`{field.name}` of the configuration is {value!r}, but must be a {field.type.__name__}.")
        rules = {
            "vocab_size": (self.vocab_size >= 2, "at least 2"),
            "gamma_type": (self.gamma_type in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "gamma_min": (-math.inf < self.gamma_min < self.gamma_max < math.inf, "finite and below `gamma_max`"),
            "sm_n_timesteps": (self.sm_n_timesteps >= 0, "0, for continuous time, or the number of steps"),
            "sm_n_embd": (self.sm_n_embd > 0 and self.sm_n_embd % 32 == 0, "a positive multiple of 32"),
            "sm_n_layer": (self.sm_n_layer >= 0, "at least 0"),
            "sm_pdrop": (0 <= self.sm_pdrop < 1, "a probability below 1"),
            "resolution": (self.resolution > 0, "positive"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"`{name}` of the configuration is {getattr(self, name)!r}, but must be {rule}.")


SCHEDULES: dict[str, Callable[[float, float], NoiseSchedule]] = {
    "fixed": LinearSchedule,
    "learnable_scalar": lambda gamma_min, gamma_max: LearnedUnpinnedSchedule(gamma_min, gamma_max, num_features=0),
    "learnable_nnet": LearnedUnpinnedSchedule,
}
"""The noise schedule of every `gamma_type`."""

OFFICIAL_CONFIGS: dict[str, OfficialConfig] = {
    "cifar10": OfficialConfig(),
    "cifar10_aug": OfficialConfig(gamma_type="learnable_nnet", sm_n_embd=256, sm_pdrop=0.05),
    "cifar10_aug_paper": OfficialConfig(gamma_type="learnable_nnet", sm_n_embd=256, sm_pdrop=0.05, with_attention=True),
    "imagenet32": OfficialConfig(sm_n_embd=256),
    "imagenet64": OfficialConfig(sm_n_embd=256, sm_n_layer=64, resolution=64),
}


def read_config(name: str) -> OfficialConfig:
    """The configuration of that name, or of a JSON file with all fields of `VDMConfig` and perhaps `resolution`."""
    if name in OFFICIAL_CONFIGS:
        return OFFICIAL_CONFIGS[name]
    try:
        values = json.loads(read_text(Path(name), MAX_CONFIG_BYTES), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        message = "{config} {!r} is neither one of {} nor a JSON file that can be read: {}"
        raise ValueError(Message(message, name, ", ".join(OFFICIAL_CONFIGS), str(error))) from error
    known = {field.name for field in fields(OfficialConfig)}
    given = set(values) if isinstance(values, dict) else set()
    wrong = sorted((known ^ given) - {"resolution"})
    refuse_if(
        bool(wrong),
        "{config} {!r} must hold every field of `VDMConfig` and no other; missing or unknown: {}.",
        *(name, ", ".join(wrong)),
    )
    return OfficialConfig(**values)


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object whose names are each there once."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is there twice.")
    return values


def build_official_vdm(config: OfficialConfig) -> VDM:
    """The model of a configuration, its denoiser still without memory, on the `meta` device."""
    with torch.device("meta"):
        unet = VDMUNet2DModel(
            sample_size=config.resolution,
            in_channels=3,
            block_channels=config.sm_n_embd,
            layers_per_side=config.sm_n_layer,
            attention_everywhere=config.with_attention,
            fourier_powers=(6, 7) if config.with_fourier_features else (),
            dropout=config.sm_pdrop,
        )
    schedule = SCHEDULES[config.gamma_type](config.gamma_min, config.gamma_max)
    return VDM(unet, schedule, num_levels=config.vocab_size, num_timesteps=config.sm_n_timesteps or None)


def same(w: Tensor) -> Tensor:
    """The layout of biases and scales."""
    return w


NAMES: dict[str, tuple[tuple[str, str, str | Layout], ...]] = {
    "denoiser": (
        ("dense0", "embedding.0", "dense"),
        ("dense1", "embedding.2", "dense"),
        ("conv_in", "conv_in", "conv"),
        ("down.block_{i}", "down.{i}.resnet", "block"),
        ("down.attn_{i}", "down.{i}.attention", "attention"),
        ("mid.block_1", "mid.0.resnet", "block"),
        ("mid.attn_1", "mid.0.attention", "attention"),
        ("mid.block_2", "mid.1.resnet", "block"),
        ("up.block_{i}", "up.{i}.resnet", "block"),
        ("up.attn_{i}", "up.{i}.attention", "attention"),
        ("GroupNorm_0", "norm_out", "norm"),
        ("conv_out", "conv_out", "conv"),
    ),
    "block": (
        ("GroupNorm_0", "norm1", "norm"),
        ("conv1", "conv1", "conv"),
        ("cond_proj", "cond_proj", "dense"),
        ("GroupNorm_1", "norm2", "norm"),
        ("conv2", "conv2", "conv"),
        ("nin_shortcut", "shortcut", "pointwise"),
    ),
    "attention": (
        ("GroupNorm_0", "norm", "norm"),
        ("q", "to_q", "dense"),
        ("k", "to_k", "dense"),
        ("v", "to_v", "dense"),
        ("proj_out", "to_out", "dense"),
    ),
    "norm": (("scale", "weight", same), ("bias", "bias", same)),
    "dense": (("kernel", "weight", lambda w: w.T), ("bias", "bias", same)),
    "conv": (("kernel", "weight", lambda w: w.permute(2, 3, 1, 0)), ("bias", "bias", same)),
    "pointwise": (("kernel", "weight", lambda w: w[:, :, 0, 0].T), ("bias", "bias", same)),
    "line": (
        ("w", "slope", lambda w: w.view(1)),
        ("b", "intercept", lambda w: w.view(1)),
    ),
    "network": (
        ("l1/kernel", "slope", lambda w: w.view(1, 1)),
        ("l1/bias", "intercept", lambda w: w.view(1)),
        ("l2/kernel", "rate", lambda w: w.view(1, -1)),
        ("l2/bias", "shift", same),
        ("l3/kernel", "weight", lambda w: w.view(-1, 1)),
    ),
}
"""Of every kind of module, its parts: official name, our name, and the part's kind, or how a parameter of ours is viewed to be
laid out as theirs. `{i}` counts the blocks of a side."""


def official_views(vdm: VDM) -> dict[str, Tensor]:
    """Every parameter of a model by its official name, such as `score_model/conv_in/kernel`.

    They are views in the official layout: what is written into them, the model has.
    """
    num_blocks = vdm.unet.config.layers_per_side + 1
    rows = list(_rows("denoiser", "score_model", "unet", num_blocks))
    if isinstance(vdm.noise_schedule, LearnedUnpinnedSchedule):
        kind = "network" if vdm.noise_schedule.config.num_features else "line"
        rows += _rows(kind, "gamma", "noise_schedule", num_blocks)
    parameters = dict(vdm.named_parameters())
    return {official: layout(parameters[ours].data) for official, ours, layout in rows if ours in parameters}


def _rows(kind: str, official: str, ours: str, num_blocks: int) -> Iterator[tuple[str, str, Layout]]:
    """The parameters that a module of some kind can have: their official names, our names and their layouts."""
    for their_part, our_part, part in NAMES[kind]:
        for i in range(num_blocks) if "{i}" in our_part else (0,):
            names = f"{official}/{their_part.format(i=i)}", f"{ours}.{our_part.format(i=i)}"
            if callable(part):
                yield *names, part
            else:
                yield from _rows(part, *names, num_blocks)


def load_official_checkpoint(checkpoint_path: PathLike, config: OfficialConfig, weights: str = "ema") -> tuple[VDM, int]:
    """
    Read a checkpoint of the authors.

    Args:
        checkpoint_path (`str` or `os.PathLike`): The file, or the folder of files `ckpt-N.flax`, the newest of which is read.
        config ([`OfficialConfig`]): The configuration that it was trained with.
        weights (`str`, defaults to `"ema"`): Which of its two sets: `"ema"`, the moving average, or `"params"`.

    Returns:
        The model in float32, in evaluation mode, and the number of training steps.

    Raises:
        `ValueError`: that names the key, for a file which is no such checkpoint or contradicts the configuration.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` is {weights!r}, but must be one of {', '.join(WEIGHTS)}.")
    with open(_checkpoint_file(Path(checkpoint_path)), "rb") as file:
        state = StateReader(file).state()
        with refused_as(Message("{config} is that of no model")), weights_limited(MAX_WEIGHTS):
            vdm = build_official_vdm(config)
        step, arrays = _checked(state, official_views(vdm), file)
        vdm.unet.to_empty(device="cpu")
        for name, view in official_views(vdm).items():
            name = f"{WEIGHTS[weights]}/{name}"
            array = arrays[name].read(file)
            if not np.isfinite(array).all():
                raise ValueError(f"`{name}` has values that are not finite: the file is damaged, or training failed.")
            view.copy_(torch.from_numpy(array))
    gamma_0, gamma_1 = vdm.noise_schedule.chain(1).tolist()
    if not gamma_0 < gamma_1:
        raise ValueError(f"`{WEIGHTS[weights]}/gamma` runs from {gamma_0} to {gamma_1}, but gamma is -log SNR and must rise.")
    return vdm.eval(), step


def _checkpoint_file(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("ckpt-*.flax"), key=lambda file: (len(file.name), file.name))
        path = files[-1] if files else path / "ckpt-1.flax"
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {str(path)!r}: give the msgpack file, or the folder of `ckpt-N.flax`.")
    return path


def _checked(state: dict, expected: dict[str, Tensor], file: BinaryIO) -> tuple[int, dict[str, StoredArray]]:
    """The step and the arrays of both sets, which have the expected names, shapes and type; the optimiser is left out."""
    arrays = dict(_flat({name: content for name, content in state.items() if name != "opt_state"}))
    step = arrays.pop("step", None)
    if isinstance(step, StoredArray) and step.shape == () and step.dtype.kind in "iu":
        step = int(step.read(file))
    if type(step) is not int or step < 0:
        raise ValueError("`step` is missing or not a whole number: this is no checkpoint of a VDM.")
    views = {f"{weights}/{name}": view for weights in WEIGHTS.values() for name, view in expected.items()}
    missing, unknown = sorted(views.keys() - arrays.keys()), sorted(arrays.keys() - views.keys())
    if missing:
        raise ValueError(Message("`{}` is missing from the checkpoint: check {config}.", missing[0]))
    if unknown:
        message = "`{}` is in the checkpoint, but not in a model of this configuration: check {config}."
        raise ValueError(Message(message, unknown[0]))
    for name, view in views.items():
        array = arrays[name]
        if not isinstance(array, StoredArray) or array.dtype != np.float32:
            raise ValueError(f"`{name}` is {getattr(array, 'dtype', type(array).__name__)}, but must be an array of float32.")
        if array.shape != tuple(view.shape):
            message = "`{}` has the shape {}, but the configuration implies {}: check {config}."
            raise ValueError(Message(message, name, array.shape, tuple(view.shape)))
    return step, arrays


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dictionaries by the path of their names."""
    for name, content in tree.items():
        if isinstance(content, dict) and content:
            yield from _flat(content, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", content


def convert_official_checkpoint(
    checkpoint_path: PathLike, config: str | OfficialConfig, output_dir: PathLike, weights: str = "ema"
) -> None:
    """
    Write a checkpoint of the authors as a [`VDMPipeline`] with its noise schedule beside it and a model card.

    The folder appears when it is complete.

    Args:
        checkpoint_path (`str` or `os.PathLike`): The file, or the folder of files `ckpt-N.flax`.
        config (`str` or [`OfficialConfig`]): A name in `OFFICIAL_CONFIGS`, a JSON file, or the configuration itself.
        output_dir (`str` or `os.PathLike`): Where there is nothing yet, or an empty folder.
        weights (`str`, defaults to `"ema"`): `"ema"`, the moving average, or `"params"`.

    Raises:
        `ValueError`: as [`load_official_checkpoint`], and if `output_dir` is in use.
    """
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(Message("{output_dir} {!r} exists and is not an empty folder: name another.", str(output_dir)))
    name = Path(config).name if isinstance(config, str) else "official"
    config = read_config(config) if isinstance(config, str) else config
    vdm, step = load_official_checkpoint(checkpoint_path, config, weights)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary:
        folder = Path(temporary, output_dir.name)
        vdm.save_pretrained(folder)
        _save_card(folder, vdm, name, config, weights, step)
        if output_dir.exists():
            output_dir.rmdir()
        folder.rename(output_dir)


def export_official_checkpoint(
    vdm: VDM, checkpoint_path: PathLike, ema_vdm: VDM | None = None, step: int = 0
) -> OfficialConfig:
    """
    Write a model as the authors' code does, the reverse of [`load_official_checkpoint`].

    Args:
        vdm ([`VDM`]): Has the weights `params`.
        checkpoint_path (`str` or `os.PathLike`): The file, which must not exist.
        ema_vdm ([`VDM`], *optional*): Has their moving average, `ema_params`. Defaults to `vdm`.
        step (`int`, defaults to 0): The number of training steps.

    Returns:
        The configuration that the checkpoint is to be read with.

    Raises:
        `ValueError`: for models that the authors' code does not have.
    """
    config = official_config(vdm)
    sets = {"params": official_views(vdm), "ema_params": official_views(ema_vdm or vdm)}
    with open(checkpoint_path, "xb") as file:
        write_state(file, {"step": step, **{name: _nested(views) for name, views in sets.items()}})
    return config


def official_config(vdm: VDM) -> OfficialConfig:
    """The configuration of which a model is; `ValueError` if the authors' code has none for it."""
    schedule = vdm.noise_schedule
    if not (isinstance(vdm.unet, VDMUNet2DModel) and isinstance(schedule, (LinearSchedule, LearnedUnpinnedSchedule))):
        raise ValueError(
            f"The model is of {type(vdm.unet).__name__} and {type(schedule).__name__}, but the authors' code has only"
            " `VDMUNet2DModel`, and `LinearSchedule` or `LearnedUnpinnedSchedule`."
        )
    unet, gamma_type = vdm.unet.config, "fixed"
    if isinstance(schedule, LearnedUnpinnedSchedule):
        gamma_type = "learnable_nnet" if schedule.config.num_features else "learnable_scalar"
    config = OfficialConfig(
        vocab_size=vdm.num_levels,
        with_fourier_features=bool(unet.fourier_powers),
        with_attention=unet.attention_everywhere,
        gamma_type=gamma_type,
        gamma_min=vdm.timestep_map.gamma_min,
        gamma_max=vdm.timestep_map.gamma_max,
        sm_n_timesteps=vdm.num_timesteps or 0,
        sm_n_embd=unet.block_channels,
        sm_n_layer=unet.layers_per_side,
        sm_pdrop=unet.dropout,
        resolution=unet.sample_size,
    )
    theirs = build_official_vdm(config)
    for name, value in theirs.unet.config.items():
        if not name.startswith("_") and _plain(unet[name]) != _plain(value):
            raise ValueError(f"`{name}` of the denoiser is {unet[name]!r}, but {value!r} in the authors' code.")
    if vdm.prediction_type != theirs.prediction_type:
        raise ValueError(f"The denoiser predicts {vdm.prediction_type!r}, but 'epsilon' in the authors' code.")
    return config


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _nested(flat: dict[str, Tensor]) -> dict:
    """Nested dictionaries of paths joined by `/`, sorted as JAX sorts them."""
    tree: dict = {}
    for path in sorted(flat):
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = flat[path]
    return tree


CARD = """---
library_name: diffusers
---

# {title}

A [variational diffusion model](https://arxiv.org/abs/2107.00630), converted by vdm_diffusers from a checkpoint of the authors'
[code](https://github.com/google-research/vdm).

| | |
| --- | --- |
| configuration | {name} |
| weights | {weights} |
| training steps | {step:,} |
| parameters, noise schedule included | {num_parameters:,} |
| images | 3×{resolution}×{resolution}, {vocab_size} levels |
| noise schedule | {gamma_type}, gamma from {gamma_0:.4f} to {gamma_1:.4f} |
| bound | {time} |

```python
from vdm_diffusers import VDM, VDMPipeline

pipe = VDMPipeline.from_pretrained({repository})
images = pipe(batch_size=16, num_inference_steps=250).images

vdm = VDM.from_pretrained({repository}, num_timesteps={num_timesteps})  # the bound, and further training
```
"""


def _save_card(folder: Path, vdm: VDM, name: str, config: OfficialConfig, weights: str, step: int) -> None:
    gamma_0, gamma_1 = vdm.noise_schedule.chain(1).tolist()
    content = CARD.format(
        title=folder.name,
        repository=json.dumps(folder.name, ensure_ascii=False),
        name=name,
        weights=f"`{WEIGHTS[weights]}`",
        step=step,
        num_parameters=sum(parameter.numel() for parameter in vdm.parameters()),
        gamma_0=gamma_0,
        gamma_1=gamma_1,
        time=f"{config.sm_n_timesteps} steps" if config.sm_n_timesteps else "continuous time",
        num_timesteps=config.sm_n_timesteps or None,
        **{field: value for field, value in asdict(config).items() if field in ("resolution", "vocab_size", "gamma_type")},
    )
    card = populate_model_card(ModelCard(content), ["variational-diffusion-model", "unconditional-image-generation"])
    card.save(folder / "README.md")
