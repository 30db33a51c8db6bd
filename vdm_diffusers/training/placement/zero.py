"""ZeRO: gradients and the optimiser's state divided among the processes, by DeepSpeed."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader

from ...data.streaming import StreamLoader
from ..checkpoints.files import optimizer_part
from ..config import TrainingConfig
from .sharding import Replicated


OFFLOADS, PRECISIONS = ("offload_optimizer", "offload_param"), ("fp16", "bf16")
"""Names of DeepSpeed's own ways to save memory, which are refused."""


class Partitioned(Replicated):
    """
    Each process holds the model and a part of the optimiser's state, by stage 2 of the gradients too; by stage 0 all of it.

    ZeRO lays the parameters of the denoiser end to end, and those of the schedule, and divides both vectors evenly. Parameters,
    gradients and what is sent of them are float32; with mixed precision the model computes under autocast, as it does when it
    isn't partitioned.
    """

    def prepare(self, optimizer: torch.optim.Optimizer, loader: DataLoader | StreamLoader) -> tuple:
        settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
        settings |= _settings_of(self.config) | {"gradient_clipping": 0.0, "bf16": {"enabled": False}}
        self.divided = zero_stage(self.accelerator) > 0
        if self.divided:
            settings["zero_optimization"]["compute_grad_norm"] = False
        for parameter in self.vdm.parameters():
            if parameter.ndim == 0:
                parameter.ds_optim_param = True  # else DeepSpeed broadcasts it as bytes, and fails; all processes have the same
        if self.config.mixed_precision == "bf16":
            self.vdm.forward = torch.autocast(self.accelerator.device.type, torch.bfloat16)(self.vdm.forward)
        engine, wrapped, loader = super().prepare(optimizer, loader)
        self.engine, self.optimizer, self.denoiser = engine, optimizer, optimizer.param_groups[0]["params"]
        optimizer.register_step_pre_hook(self._clip)
        return engine, wrapped, loader

    def _clip(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """Before a step, which ZeRO makes group by group, within [`~accelerate.Accelerator.backward`]."""
        if optimizer.param_groups[0]["params"] is not self.denoiser:
            return
        self.norm = get_total_norm([parameter.grad for parameter in self.denoiser if parameter.grad is not None])
        if self.divided:
            self.norm = self.accelerator.reduce(self.norm**2, reduction="sum").sqrt()
        clip_grads_with_norm_(self.denoiser, self.config.max_grad_norm, self.norm)

    def clip_gradients(self) -> Tensor:
        return self.norm

    def save(self, folder: Path) -> None:
        """Instead of DeepSpeed's own, in which all processes wait for one that has failed."""
        if self.accelerator.is_main_process:
            self._save_weights(folder)
        if self.divided or self.accelerator.is_main_process:
            torch.save(self.optimizer.state_dict(), self._part(folder))

    def load(self, folder: Path) -> None:
        self._load_weights(folder)
        if self.divided:
            self.engine.optimizer.refresh_fp32_params()
        self.optimizer.load_state_dict(torch.load(self._part(folder), map_location="cpu", weights_only=True))

    def _part(self, folder: Path) -> Path:
        """Where this process has its part of the optimiser's state."""
        return folder / optimizer_part(self.accelerator.process_index if self.divided else 0)


def zero_stage(accelerator: Accelerator) -> int:
    """0 to 3: nothing is divided, the optimiser's state, the gradients too, the weights too."""
    return accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"].get("stage", 0)


def refused_by_zero(accelerator: Accelerator, config: TrainingConfig) -> dict[str, bool]:
    """Names of what DeepSpeed may be configured for and [`Partitioned`] can't follow, or what contradicts the options, and
    whether it is."""
    settings, ours = accelerator.state.deepspeed_plugin.deepspeed_config, _settings_of(config)
    zero = settings["zero_optimization"]
    offloads = {name: (zero.get(name) or {}).get("device", "none") != "none" for name in OFFLOADS}
    others = {name: settings.get(name, {}).get("enabled", False) and config.mixed_precision != name for name in PRECISIONS}
    contradictions = {f"{name} {settings.get(name)}": settings.get(name, "auto") not in ("auto", ours[name]) for name in ours}
    known = {"train_batch_size", "zero_optimization", "steps_per_print", *PRECISIONS, *ours}
    return offloads | others | contradictions | dict.fromkeys(sorted(settings.keys() - known), True)


def _settings_of(config: TrainingConfig) -> dict[str, float]:
    """What the options say, by DeepSpeed's names."""
    return {
        "train_micro_batch_size_per_gpu": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
    }
