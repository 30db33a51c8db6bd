"""A shard of every parameter on each process: FSDP, version 2."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, StateDictType
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from ...data.streaming import StreamLoader
from ...vdm import VDM
from ..checkpoints.files import SHARDED_AVERAGE, SHARDED_MODEL, SHARDED_OPTIMIZER
from ..config import TrainingConfig
from .shards import load_shards, save_shards
from .whole import Replicated


SHARDS = StateDictOptions(cpu_offload=True)


class Sharded(Replicated):
    """
    Each process holds a shard of the denoiser: of every parameter, its gradient, its average and its optimiser's state.

    The noise schedule stays whole, since its end points are single numbers, which can't be divided; its few gradients are
    averaged here. Parameters and gradients are float32, and so is what the processes send each other; with mixed precision the
    model computes under autocast, as it does when it isn't sharded.
    """

    def __init__(self, accelerator: Accelerator, vdm: VDM, config: TrainingConfig):
        super().__init__(accelerator, vdm, config)
        self.template = vdm.copy()

    def prepare(self, optimizer: torch.optim.Optimizer, loader: DataLoader | StreamLoader) -> tuple:
        plugin = self.accelerator.state.fsdp_plugin
        plugin.ignored_modules = "noise_schedule"
        plugin.cpu_ram_efficient_loading = False  # every process has made the model itself
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # times are not rounded to bfloat16
        prepared = super().prepare(optimizer, loader)
        self.vdm.forward = self.accelerator.autocast()(self.vdm.forward)
        return prepared

    def parameters(self) -> list[Tensor]:
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.vdm.parameters()]

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """As [`Replicated.snapshot`], but the shards are written at once, since that takes all processes together."""
        save_shards({"model": get_model_state_dict(self.model, options=SHARDS)}, folder / SHARDED_MODEL)
        state = get_optimizer_state_dict(self.model, self.optimizer, options=SHARDS)
        save_shards({"optimizer": state}, folder / SHARDED_OPTIMIZER)
        save_shards(self._average_by_name(), folder / SHARDED_AVERAGE)
        return lambda: None

    def load(self, folder: Path) -> None:
        model = {"model": get_model_state_dict(self.model, options=SHARDS)}
        load_shards(model, folder / SHARDED_MODEL)
        set_model_state_dict(self.model, model["model"], options=SHARDS)
        optimizer = {"optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=SHARDS)}
        load_shards(optimizer, folder / SHARDED_OPTIMIZER)
        set_optimizer_state_dict(self.model, self.optimizer, optimizer["optimizer"], options=SHARDS)
        load_shards(self._average_by_name(), folder / SHARDED_AVERAGE)

    def _average_by_name(self) -> dict[str, Tensor]:
        """The average, sharing its storage, laid out as the parameters are."""
        average = super()._average_by_name()
        return {name: _laid_out_as(parameter, average[name]) for name, parameter in self.vdm.named_parameters()}

    def clip_gradients(self) -> Tensor:
        for parameter in self.vdm.noise_schedule.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        norm = super().clip_gradients()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def whole_model(self) -> VDM:
        vdm = self.template.copy().to(self.accelerator.device)
        vdm.load_state_dict(get_model_state_dict(self.vdm, options=StateDictOptions(full_state_dict=True)))
        return vdm


def refused_by_fsdp(accelerator: Accelerator) -> dict[str, bool]:
    """Parts of accelerate's configuration that [`Sharded`] doesn't support, and whether each is switched on."""
    plugin = accelerator.state.fsdp_plugin
    return {
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        "fsdp_state_dict_type FULL_STATE_DICT": plugin.state_dict_type is not StateDictType.SHARDED_STATE_DICT,
    }


def _laid_out_as(parameter: Tensor, shard: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return shard
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(shard, mesh, placements, shape=parameter.shape, stride=parameter.stride())
