"""What a run is, as its checkpoints remember it, and whether another run may go on from them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..class_names import check_same_classes
from ..data.fingerprints import fingerprint, fingerprint_of_captions, fingerprint_of_labels
from ..data.images import ImageData
from ..guards.messages import Message, refuse_if
from .config import TrainingConfig, misfitting_options
from .output_files import CONFIG


FREE_OPTIONS = {
    "cache_dir", "dataloader_num_workers", "output_dir", "overwrite_output_dir", "resume_from_checkpoint",
    "allow_config_change", "dry_run", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps",
    "validation_repeats", "max_validation_images", "final_validation_repeats", "num_samples", "num_inference_steps",
    "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_license",
    "skip_unreadable_images", "cache_text_embeddings", "validation_prompts", "guidance_scale",
}  # fmt: skip
"""Options that don't affect the weights: a run that goes on may change them."""

BATCHES = ("train_batch_size", "gradient_accumulation_steps")
"""Options whose product with the number of processes is the number of images in a step."""

UNBENDING_SCHEDULERS = ("constant", "constant_with_warmup")
"""Learning-rate schedules that don't depend on the number of steps."""

LARGEST = 2**63 - 1
"""The largest count that a manifest may hold."""

UNKNOWN = "unknown"
"""Stands for the labels of a checkpoint written before labels were recorded."""


class Placement(StrEnum):
    """Where the model is while it trains. The values are those in manifests."""

    WHOLE = "whole on every process"
    SHARDED = "sharded by FSDP"
    DEEPSPEED = "trained by DeepSpeed"
    """By an earlier version of this package, at any stage."""

    @classmethod
    def _missing_(cls, value: object) -> "Placement | None":
        return cls.DEEPSPEED if isinstance(value, str) and value.startswith(cls.DEEPSPEED) else None


@dataclass(frozen=True)
class DataIdentity:
    """
    What distinguishes a data set from others.

    Attributes:
        name (`str`): What messages call it.
        fingerprint (`str`): A hash of its images.
        labels (`str`, *optional*): A hash of its labels, `None` without labels.
        class_names (`list[str]`, *optional*): The names of its classes, in the order of their labels.
        captions (`str`, *optional*): A hash of its captions, `None` without captions.
    """

    name: str
    fingerprint: str
    labels: str | None
    class_names: list[str] | None
    captions: str | None = None

    @classmethod
    def of(cls, data: ImageData) -> "DataIdentity":
        """The identity of these data."""
        hashes = fingerprint(data), fingerprint_of_labels(data)
        return cls(data.name, *hashes, data.class_names, fingerprint_of_captions(data))

    @classmethod
    def from_manifest(cls, data: Mapping[str, Any]) -> "DataIdentity":
        """What a manifest says of it; `ValueError` if something is missing or of another type."""
        hashes = data.get("fingerprint"), data.get("labels", UNKNOWN)
        identity = cls(data.get("name"), *hashes, data.get("class_names"), data.get("captions"))
        if not (isinstance(identity.name, str) and isinstance(identity.fingerprint, str)):
            raise ValueError("`data` has no `name` and `fingerprint`")
        for name in ("labels", "captions"):
            if not isinstance(getattr(identity, name), str | None):
                raise ValueError(f"`{name}` of `data` is no hash")
        names = identity.class_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("`class_names` of `data` are no names")
        return identity

    def check_same_as(self, then: "DataIdentity") -> None:
        """`ValueError` unless a run on these data may go on from one on those."""
        if then.fingerprint != self.fingerprint:
            other = f"{then.name!r}, but these are other images, those of {self.name!r}"
        elif then.labels not in (UNKNOWN, self.labels):
            other = f"{then.name!r} with other labels than those of {self.name!r}"
        elif then.captions != self.captions:
            other = f"{then.name!r} with other captions than those of {self.name!r}"
        else:
            origin = Message("the run that {resume_from_checkpoint} goes on from")
            check_same_classes(self.class_names, then.class_names, repr(self.name), origin)
            return
        message = (
            "{resume_from_checkpoint} goes on from a run on {}: name that data set, or train the finished model on by"
            " {pretrained_model_name_or_path}."
        )
        raise ValueError(Message(message, other))


@dataclass(frozen=True)
class Run:
    """
    What a training run is.

    Attributes:
        num_processes (`int`): How many processes train together.
        options (`Mapping[str, Any]`): Those of its configuration by name, as JSON has them.
    """

    data: DataIdentity
    num_processes: int
    placement: Placement
    options: Mapping[str, Any]

    @classmethod
    def of(cls, config: TrainingConfig, data: ImageData, num_processes: int, placement: Placement = Placement.WHOLE) -> "Run":
        """The run that these options make."""
        return cls(DataIdentity.of(data), num_processes, placement, json.loads(json.dumps(config.public())))

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "Run":
        """What a manifest says of it, of an earlier version too; `ValueError` if something is missing or of another type."""
        for name in ("data", "options"):
            if not isinstance(manifest.get(name), dict):
                raise ValueError(f"it has no `{name}` by name")
        if not is_count(manifest.get("num_processes"), 1):
            raise ValueError("`num_processes` is no number of processes")
        try:
            placement = Placement(manifest.get("placement", Placement.WHOLE))
        except ValueError:
            raise ValueError(f"`placement` is {manifest['placement']!r}, which is none") from None
        for name in BATCHES:
            if not is_count(manifest["options"].get(name), 1):
                raise ValueError(f"the option `{name}` is no positive number")
        data = DataIdentity.from_manifest(manifest["data"])
        return cls(data, manifest["num_processes"], placement, manifest["options"])

    @property
    def images_a_step(self) -> int:
        """The images that all processes together take for one step."""
        return self.num_processes * math.prod(self.options[name] for name in BATCHES)

    @property
    def layout(self) -> str:
        """What that number is the product of."""
        batch_size, batches = (self.options[name] for name in BATCHES)
        return f"{self.num_processes} processes × batch {batch_size} × {batches} = {self.images_a_step}"

    def changes_since(self, then: "Run", allow_config_change: bool) -> list[str]:
        """
        What changes when this run goes on from a checkpoint of another, in sentences for the user.

        Raises:
            `ValueError`: if the other run was one of another version, or had another placement or other data, or, unless
                `allow_config_change`, other options that affect the weights.
        """
        self._check_can_go_on_from(then)
        differences = ", ".join(self._differences(then))
        refuse_if(
            bool(differences) and not allow_config_change,
            "{resume_from_checkpoint} goes on from a run with other options: {}. Give it the options of that run, which its"
            " `{}` holds, or go on with these by {allow_config_change}.",
            *(differences, CONFIG),
        )
        self.data.check_same_as(then.data)
        return ([f"Options have changed: {differences}."] if differences else []) + self._redrawn(then)

    def _check_can_go_on_from(self, then: "Run") -> None:
        """`ValueError` for a run of another version or with another placement."""
        misfits = misfitting_options(then.options, self.options)
        refuse_if(
            bool(misfits),
            "{resume_from_checkpoint} goes on from a run of another version of this program, or of none: here are no options"
            " {}. Train the finished model on by {pretrained_model_name_or_path}.",
            ", ".join(f"{name}={value!r}" for name, value in misfits.items()),
        )
        refuse_if(
            then.placement is Placement.DEEPSPEED,
            "{resume_from_checkpoint} goes on from a run by DeepSpeed, which can't be resumed any more: train the finished"
            " model on by {pretrained_model_name_or_path}, sharded by FSDP if it is too large for one GPU.",
        )
        refuse_if(
            then.placement is not self.placement,
            "{resume_from_checkpoint} goes on from a run whose model was {}, but here it is {}: launch it with the"
            " configuration of accelerate that it had.",
            *(then.placement, self.placement),
        )

    def _differences(self, then: "Run") -> Iterator[str]:
        free = {*FREE_OPTIONS, *BATCHES}
        if self.options["streaming"]:
            free.remove("dataloader_num_workers")  # each worker has its own place in the stream
        if self.options["lr_scheduler"] in UNBENDING_SCHEDULERS:
            free.add("max_train_steps")
        for name, value in self.options.items():
            before = then.options.get(name, value)  # a checkpoint may be older than an option
            if name not in free and before != value:
                yield f"{name} {before} -> {value}"
        if then.images_a_step != self.images_a_step:
            yield f"images a step {then.layout} -> {self.layout}"

    def _redrawn(self, then: "Run") -> list[str]:
        """What a step divided in another way draws anew, and what it keeps."""
        if then.layout == self.layout:
            return []
        change = f"A step takes {self.layout} images instead of {then.layout}"
        drawn = "noise, dropout and dropped labels are drawn anew"
        if then.images_a_step != self.images_a_step:
            return [f"{change}: {drawn}, and so is the order of the images."]
        return [f"{change}: the same images and times, but {drawn}."]


def is_count(value: object, least: int) -> bool:
    """Whether a value of a manifest is an integer that can be a count of something."""
    return type(value) is int and least <= value <= LARGEST
