"""What a run is, as its checkpoints remember it, and whether another may go on from there."""

from collections.abc import Iterator

from ..class_names import check_same_classes
from ..data.fingerprints import fingerprint, fingerprint_of_labels
from ..data.images import ImageData
from ..guards.messages import Message
from .config import TrainingConfig, misfitting_options


FREE_OPTIONS = {
    "cache_dir", "dataloader_num_workers", "output_dir", "overwrite_output_dir", "resume_from_checkpoint",
    "allow_config_change", "dry_run", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps",
    "validation_repeats", "max_validation_images", "final_validation_repeats", "num_samples", "num_inference_steps",
    "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_license",
    "skip_unreadable_images",
}  # fmt: skip
"""Options that leave the weights as they are: a resumed run may have others."""

WHOLE = "whole on every process"
"""Where the model of a run is, unless it is sharded by FSDP or trained by DeepSpeed."""

LAYOUT = ("num_processes", "train_batch_size", "gradient_accumulation_steps")
"""What the images of a step are the product of."""

UNBENDING_SCHEDULERS = ("constant", "constant_with_warmup")
"""Learning-rate schedules that a later end doesn't change."""


def describe_run(config: TrainingConfig, data: ImageData, num_processes: int, placement: str = WHOLE) -> dict:
    """What the manifest of a checkpoint says of the run."""
    data = {
        "name": data.name,
        "fingerprint": fingerprint(data),
        "labels": fingerprint_of_labels(data),
        "class_names": data.class_names,
    }
    return {"data": data, "num_processes": num_processes, "placement": placement, "options": config.public()}


def compare_runs(then: dict, now: dict, allow_config_change: bool) -> list[str]:
    """What changes when the run `now` goes on from a checkpoint of the run `then`, in sentences for the user.

    Raises `ValueError` for another data set, for a model that was whole and is sharded or the reverse, for another number of
    processes by DeepSpeed, and for options that the weights depend on unless `allow_config_change`.
    """
    if misfits := misfitting_options(then["options"]):
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run of another version of this program, or of none: here are no options"
            f" {', '.join(f'--{name} {value!r}' for name, value in misfits.items())}. Train the finished model on by"
            " `--pretrained_model_name_or_path`."
        )
    if then.get("placement", WHOLE) != now["placement"]:
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run whose model was {then.get('placement', WHOLE)}, but here it is"
            f" {now['placement']}: launch it with the configuration of accelerate that it had."
        )
    if "DeepSpeed" in now["placement"] and then["num_processes"] != now["num_processes"]:
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run by DeepSpeed on {then['num_processes']} processes, each of which"
            f" has written its part of the optimiser's state, but here are {now['num_processes']}: launch as many."
        )
    differences = ", ".join(_differences(then, now))
    if differences and not allow_config_change:
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run with other options: {differences}. Give it the options of that run,"
            " which its `training_config.json` holds, or go on with these by `--allow_config_change`."
        )
    if then["data"]["fingerprint"] != now["data"]["fingerprint"]:
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run on {then['data']['name']!r}, but these are other images, those of"
            f" {now['data']['name']!r}: name that data set, or train the finished model on by"
            " `--pretrained_model_name_or_path`."
        )
    if then["data"].get("labels", now["data"]["labels"]) != now["data"]["labels"]:  # which earlier checkpoints don't have
        raise ValueError(
            f"`--resume_from_checkpoint` goes on from a run on {then['data']['name']!r} with other labels than those of"
            f" {now['data']['name']!r}: name that data set, or train the finished model on by"
            " `--pretrained_model_name_or_path`."
        )
    names = (run["data"].get("class_names") for run in (now, then))
    check_same_classes(*names, repr(now["data"]["name"]), Message("the run that {resume_from_checkpoint} goes on from"))
    return ([f"Options have changed: {differences}."] if differences else []) + _redrawn(then, now)


def _differences(then: dict, now: dict) -> Iterator[str]:
    free = FREE_OPTIONS | set(LAYOUT)
    if now["options"]["streaming"]:
        free = free - {"dataloader_num_workers"}  # each has its own place in the stream
    if now["options"]["lr_scheduler"] in UNBENDING_SCHEDULERS:
        free = free | {"max_train_steps"}
    for name, value in now["options"].items():
        before = then["options"].get(name, value)
        if name not in free and before != value:
            yield f"--{name} {before} -> {value}"
    if images_a_step(then) != images_a_step(now):
        yield f"images a step {_layout(then)} -> {_layout(now)}"


def _redrawn(then: dict, now: dict) -> list[str]:
    """What another number of processes, or of batches a step, leaves as it was and what not."""
    if all(_factor(then, name) == _factor(now, name) for name in LAYOUT):
        return []
    what = "noise, dropout and dropped labels are drawn anew"
    if images_a_step(then) != images_a_step(now):
        return [f"A step takes {_layout(now)} images instead of {_layout(then)}: {what}, and so is the order of the images."]
    return [f"A step takes {_layout(now)} images instead of {_layout(then)}: the same images and times, but {what}."]


def images_a_step(run: dict) -> int:
    """Images that all processes together take for a step."""
    processes, batch_size, batches = (_factor(run, name) for name in LAYOUT)
    return processes * batch_size * batches


def _layout(run: dict) -> str:
    processes, batch_size, batches = (_factor(run, name) for name in LAYOUT)
    return f"{processes} processes × batch {batch_size} × {batches} = {images_a_step(run)}"


def _factor(run: dict, name: str) -> int:
    return run[name] if name in run else run["options"][name]
