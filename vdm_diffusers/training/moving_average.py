"""The moving average of the weights."""

from collections.abc import Iterable

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(EMAModel):
    """That of diffusers, whose step is one kernel for all weights and takes no memory for a copy of them."""

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor]) -> None:
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        get_ema_multi_avg_fn(self.cur_decay_value)(self.shadow_params, list(parameters), None)
