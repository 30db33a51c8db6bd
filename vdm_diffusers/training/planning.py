"""What a training run will do and need, before it begins."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import IterableDataset

from ..data.checking import describe_unreadable
from ..data.images import ImageData
from ..guards.messages import Message, refuse_if
from ..memory import activation_bytes
from ..pictures import in_words
from ..vdm import VDM
from .checkpoints.folders import find_checkpoints
from .config import TrainingConfig
from .resuming import Run


@dataclass
class Needs:
    """The memory and the disk space that a run takes, in bytes.

    Attributes:
        state (`int`): Of memory, on each process: weights, gradients, AdamW's two moments, moving average.
        activations (`int`): Of memory, on each process: what the denoiser keeps of a batch for its backward pass.
        checkpoint (`int`): Of disk, for one checkpoint.
        disk (`int`): Of disk, still to come: checkpoints, one more while it is written, the pipeline.
        free_disk (`int`): Of disk, free now.
    """

    state: int
    activations: int
    checkpoint: int
    disk: int
    free_disk: int


def needs_of(config: TrainingConfig, vdm: VDM) -> Needs:
    """What a run with these options takes, in float32 and without sharding."""
    weights = sum(_num_bytes(tensor) for tensor in vdm.state_dict().values())
    trained = sum(_num_bytes(parameter) for parameter in vdm.parameters() if parameter.requires_grad)
    average = sum(_num_bytes(parameter) for parameter in vdm.parameters())
    checkpoint = weights + 2 * trained + average
    folder = Path(config.output_dir).absolute()
    kept = len(find_checkpoints(folder)) if config.resume_from_checkpoint else 0
    to_come = max(config.checkpoints_total_limit - kept, 0) + 1
    return Needs(
        state=weights + 3 * trained + average,
        activations=activation_bytes(vdm.unet, config.train_batch_size),
        checkpoint=checkpoint,
        disk=to_come * checkpoint + weights,
        free_disk=shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free,
    )


def steps_an_epoch(run: Run, data: ImageData) -> int:
    """The whole steps in an epoch; `ValueError` if there are fewer images than a step takes."""
    if len(data.train) < run.images_a_step:
        raise ValueError(
            Message(
                "{train_batch_size} {} on {} processes, times {gradient_accumulation_steps} {}, takes {} images a step, but"
                " {!r} has {}: lower it.",
                *(run.options["train_batch_size"], run.num_processes, run.options["gradient_accumulation_steps"]),
                *(run.images_a_step, data.name, len(data.train)),
            )
        )
    return len(data.train) // run.images_a_step


def check_disk_space(config: TrainingConfig, needs: Needs) -> None:
    """`ValueError` unless there is room for what the run keeps."""
    refuse_if(
        needs.free_disk < needs.disk,
        "{output_dir} {!r} is on a disk with {} free, but the run keeps {} there: a checkpoint takes {}. Make room, or lower"
        " {checkpoints_total_limit}.",
        *(config.output_dir, *map(in_units, (needs.free_disk, needs.disk, needs.checkpoint))),
    )


def describe_plan(
    config: TrainingConfig, data: ImageData, vdm: VDM, num_processes: int, device: torch.device, sharded: bool = False
) -> str:
    """The plan of a run, in lines for a terminal."""
    needs = needs_of(config, vdm)
    state, whose = (needs.state / num_processes, "shards of ") if sharded else (needs.state, "")
    copied = "" if sharded else f"; {in_units(needs.checkpoint)} of the CPU's on the main process while a checkpoint is written"
    run = Run.of(config, data, num_processes)
    if isinstance(data.train, IterableDataset):
        train, epochs = "a stream", ""
    else:
        train, epochs = f"{len(data.train):,} images", f", {config.max_train_steps / steps_an_epoch(run, data):,.1f} epochs"
    levels = f"{data.num_levels} levels" if vdm.vae is None else f"latents of {type(vdm.vae).__name__}"
    prepared = f", {data.preparation}" if data.preparation else ""
    left_out = f"; {describe_unreadable(data.unreadable)}" if data.unreadable else ""
    lines = {
        "data": f"{data.name}: {train} to train on, {len(data.validation):,} held out; {in_words(data.shape)},"
        f" {levels}, {'no' if data.num_classes is None else data.num_classes} classes{prepared}{left_out}",
        "denoiser": f"{type(vdm.unet).__name__}, {num_parameters(vdm.unet):,} parameters{_adapted(vdm.unet)}",
        "captions": "none" if vdm.prompt_encoder is None else vdm.prompt_encoder.description,
        "noise schedule": f"{type(vdm.noise_schedule).__name__}, {num_parameters(vdm.noise_schedule):,} parameters",
        "steps": f"{config.max_train_steps:,} of {run.images_a_step:,} images: {num_processes} processes × batch"
        f" {config.train_batch_size} × {config.gradient_accumulation_steps}{epochs}",
        "device": f"{device.type}, {config.mixed_precision} mixed precision",
        "memory": f"{in_units(state)} for {whose}weights, gradients, AdamW and average on each process, and about"
        f" {in_units(needs.activations)} for activations{copied}; {_memory_of(device)}",
        "disk": f"{in_units(needs.checkpoint)} a checkpoint, {config.checkpoints_total_limit} kept,"
        f" {in_units(needs.disk)} in all; {in_units(needs.free_disk)} free",
        "output": f"{config.output_dir}: checkpoints every {config.checkpointing_steps:,} steps, validation every"
        f" {config.validation_steps:,}",
        "Hub": f"{config.hub_model_id or Path(config.output_dir).name}, {config.hub_strategy}" if config.push_to_hub else "no",
    }
    return "\n".join(f"{name:>14}  {text}" for name, text in lines.items())


def _adapted(unet: nn.Module) -> str:
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    return "" if trained == num_parameters(unet) else f", {trained:,} of them trained"


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _memory_of(device: torch.device) -> str:
    if device.type == "cuda":
        return f"the device has {in_units(torch.cuda.mem_get_info(device)[1])}"
    import psutil

    return f"the machine has {in_units(psutil.virtual_memory().total)}"


def in_units(num_bytes: float) -> str:
    """`1536` as `"1.5 KiB"`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"
