"""The whole model on every process."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ...data.streaming import StreamLoader
from ...vdm import VDM
from ..checkpoints.copying import copy_to_cpu
from ..checkpoints.earlier import read_average
from ..checkpoints.files import AVERAGE, MODEL, OPTIMIZER
from ..config import TrainingConfig
from ..moving_average import MovingAverage


class Replicated:
    """Every process holds the model: a single one, or several that average their gradients (DDP)."""

    def __init__(self, accelerator: Accelerator, vdm: VDM, config: TrainingConfig):
        self.accelerator, self.vdm, self.config = accelerator, vdm, config

    def prepare(self, optimizer: torch.optim.Optimizer, loader: DataLoader | StreamLoader) -> tuple:
        """The model, the optimiser and the loader, prepared by [`~accelerate.Accelerator.prepare`]."""
        self.model, self.optimizer, loader = self.accelerator.prepare(self.vdm, optimizer, loader)
        return self.model, self.optimizer, loader

    def parameters(self) -> list[Tensor]:
        """What this process holds of each of the model's parameters, sharing its storage."""
        return list(self.vdm.parameters())

    def moving_average(self, **kwargs) -> MovingAverage:
        """Start a moving average of these parameters; `kwargs` are those of [`~diffusers.training_utils.EMAModel`]."""
        self.average = MovingAverage(self.parameters(), foreach=True, **kwargs)
        return self.average

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """
        Take weights, moving average and the optimiser's state as they are. Call it on all processes, and on the main one what
        it returns, which writes them into the folder.
        """
        if not self.accelerator.is_main_process:
            return lambda: None
        weights = {MODEL: self.vdm.state_dict(), AVERAGE: self._average_by_name()}
        weights, optimizer = copy_to_cpu((weights, self.optimizer.state_dict()), self.accelerator.device)

        def write() -> None:
            for file, tensors in weights.items():
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
            torch.save(optimizer, folder / OPTIMIZER)

        return write

    def load(self, folder: Path) -> None:
        """Read what was written of them, without running anything that the folder holds. Call it on all processes."""
        self.vdm.load_state_dict(load_file(folder / MODEL))
        average = self._average_by_name()
        is_earlier = not (folder / AVERAGE).exists()
        saved = dict(zip(average, read_average(folder), strict=True)) if is_earlier else load_file(folder / AVERAGE)
        for name, value in average.items():
            value.copy_(saved[name])
        self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))

    def _average_by_name(self) -> dict[str, Tensor]:
        """The average, sharing its storage."""
        return {name: value for (name, _), value in zip(self.vdm.named_parameters(), self.average.shadow_params)}

    def clip_gradients(self) -> Tensor:
        """Clip the denoiser's gradients to a common norm and return the norm that they had."""
        return self.accelerator.clip_grad_norm_(self.vdm.unet.parameters(), self.config.max_grad_norm)

    def whole_model(self) -> VDM:
        """The model with its present weights, which this process may call without the others."""
        return self.vdm
