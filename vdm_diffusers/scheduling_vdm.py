"""VDMScheduler: a noise schedule and its reverse steps behind the interface of a diffusers scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from . import gaussian
from .noise_schedules import NoiseSchedule, TableSchedule
from .timestep_maps import AffineTimesteps


@dataclass
class VDMSchedulerOutput(BaseOutput):
    """
    Output class for the scheduler's `step` function.

    Args:
        prev_sample (`torch.Tensor` of shape `(B, C, H, W)`): `z_s`, to be the next model input.
        pred_original_sample (`torch.Tensor` of shape `(B, C, H, W)`): The estimate of `x` that it was made from.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class VDMScheduler(SchedulerMixin, ConfigMixin):
    """
    The reverse chain of a variational diffusion model: ancestral sampling by default, deterministic with `eta=0`.

    Its configuration is its whole state. A learned schedule is part of it as a table
    ([`~VDMScheduler.from_noise_schedule`]), so nothing that copies, saves or loads a scheduler can lose it.

    Timesteps are fractional: `num_train_timesteps (gamma - gamma_min) / (gamma_max - gamma_min)` of the gammas to visit.
    `num_inference_steps` of them lie at equal distances of the schedule's time.

    Args:
        num_train_timesteps (`int`, defaults to 1000): The timestep that stands for `gamma_max`.
        gamma_min (`float`, defaults to -13.3): The gamma of timestep 0.
        gamma_max (`float`, defaults to 5.0): The gamma of timestep `num_train_timesteps`.
        gammas (`list[float]`, *optional*):
            The noise schedule as a table, strictly increasing; it may begin and end elsewhere than `gamma_min` and
            `gamma_max`. Defaults to linear between these two.
        times (`list[float]`, *optional*): The times of `gammas`, from 0 to 1. Defaults to equidistant.
        prediction_type (`str`, defaults to `"epsilon"`): `"epsilon"`, `"sample"`, `"score"` or `"v_prediction"`.
        clip_sample (`bool`, defaults to `False`): Clip the estimate of `x`.
        clip_sample_range (`float`, defaults to 1.0): To this magnitude.
        trained_betas (`list[float]`, *optional*):
            Written for the schedulers of diffusers, which sample a VDM on the β-chain whose index is the timestep.
        timestep_spacing (`str`, defaults to `"linspace"`): Likewise.

    Raises:
        `ValueError`: for a table that does not increase, `gamma_min >= gamma_max`, an unknown `prediction_type`.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        gammas: Sequence[float] | None = None,
        times: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        trained_betas: Sequence[float] | None = None,
        timestep_spacing: str = "linspace",
    ):
        gaussian.check_prediction_type(prediction_type)
        if not gamma_min < gamma_max:
            raise ValueError(f"`gamma_min` ({gamma_min}) must be below `gamma_max` ({gamma_max}): gamma is -log SNR.")
        self.noise_schedule = TableSchedule([gamma_min, gamma_max] if gammas is None else gammas, times)
        self.timestep_map = AffineTimesteps(gamma_min, gamma_max, num_train_timesteps)
        self.register_to_config(
            gammas=list(self.noise_schedule.config.gammas),
            times=list(self.noise_schedule.config.times),
            trained_betas=self._betas().tolist(),
            _class_name=type(self).__name__,
            _use_default_values=[],
        )
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = self.timestep_map(self.noise_schedule.chain(num_train_timesteps).flip(0)[:-1]).float()
        self._begin_index: int | None = None
        self._step_index: int | None = None

    @classmethod
    def from_noise_schedule(cls, schedule: NoiseSchedule, num_intervals: int = 1000, **kwargs) -> "VDMScheduler":
        """A scheduler for a [`NoiseSchedule`], fixed or learned, baked as a table of `num_intervals` intervals.

        `kwargs` are further configuration. The timesteps are those of the schedule's configured `gamma_min` and `gamma_max`.
        """
        times, gammas = schedule.table(num_intervals)
        kwargs = {"gamma_min": schedule.gamma_min, "gamma_max": schedule.gamma_max} | kwargs
        return cls(gammas=gammas.tolist(), times=times.tolist(), **kwargs)

    def _betas(self) -> Tensor:
        """`β_i = 1 - α_i` of the chain whose index is the timestep, `(num_train_timesteps,)`, float64."""
        gamma = self.timestep_map.inverse(torch.arange(self.config.num_train_timesteps, dtype=torch.float64))
        _, beta = gaussian.transition(gamma[:-1], gamma[1:])
        return torch.cat([torch.sigmoid(gamma[:1]), beta])

    @property
    def gamma_0(self) -> Tensor:
        """`gamma(0)`, a float64 scalar on the CPU: the noise level of the last `prev_sample`."""
        return self.noise_schedule.knot_gammas[0]

    @property
    def step_index(self) -> int | None:
        """Index of the next step, `None` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index of the first step, for pipelines that start in the middle of the chain."""
        self._begin_index = begin_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """
        Set the discrete timesteps to be used for the chain, before sampling.

        Args:
            num_inference_steps (`int`): T, the number of steps, from `t = 1` to `t = 0`.
            device (`str` or `torch.device`, *optional*): Where to put `timesteps`.
        """
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but must be at least 1.")
        self.num_inference_steps = num_inference_steps
        self._gammas = self.noise_schedule.chain(num_inference_steps).flip(0)
        self.timesteps = self.timestep_map(self._gammas[:-1]).float().to(device)
        self._step_index = self._begin_index = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """`sample` itself: variance-preserving latents need no scaling."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 1.0,
    ) -> VDMSchedulerOutput | tuple[Tensor, Tensor]:
        """
        One reverse step, `z_t -> z_s`, computed in float32 at least.

        Args:
            model_output (`Tensor` of shape `(B, C, H, W)`): The denoiser's output at `sample` and `timestep`.
            timestep (`Tensor` of shape `()` or `float`): An element of `timesteps`.
            sample (`Tensor` of shape `(B, C, H, W)`): `z_t`.
            generator (`torch.Generator` or a list of them, *optional*): Source of the fresh noise.
            return_dict (`bool`, defaults to `True`): [`VDMSchedulerOutput`] or a plain tuple.
            eta (`float`, defaults to 1.0): Share of fresh noise: 1 is ancestral sampling, 0 is deterministic (DDIM).

        Returns:
            [`VDMSchedulerOutput`] or `tuple`, in the dtype of `sample`.
        """
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is not set: call `set_timesteps` before `step`.")
        if self._step_index is None:
            self._step_index = self._index_of(timestep) if self._begin_index is None else self._begin_index
        gamma_t, gamma_s = self._gammas[self._step_index], self._gammas[self._step_index + 1]
        self._step_index += 1

        dtype = torch.promote_types(sample.dtype, torch.float32)
        z_t, output = sample.to(dtype), model_output.to(dtype)
        x = gaussian.predicted_sample(self.config.prediction_type, output, z_t, gamma_t)
        eps = gaussian.predicted_epsilon(self.config.prediction_type, output, z_t, gamma_t)
        if self.config.clip_sample:
            x = x.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
            eps = gaussian.predicted_epsilon("sample", x, z_t, gamma_t)
        noise = randn_tensor(z_t.shape, generator=generator, device=z_t.device, dtype=dtype) if eta > 0 else 0.0
        z_s = gaussian.reverse_step(x, eps, gamma_s, gamma_t, noise, eta).to(sample.dtype)
        x = x.to(sample.dtype)
        return VDMSchedulerOutput(prev_sample=z_s, pred_original_sample=x) if return_dict else (z_s, x)

    def _index_of(self, timestep: Tensor | float) -> int:
        timesteps = self.timesteps.cpu()
        matches = (timesteps == torch.as_tensor(timestep, dtype=timesteps.dtype).cpu()).nonzero()
        if not len(matches):
            raise ValueError(f"`timestep` {timestep} is not in `scheduler.timesteps`: pass their elements in order.")
        return matches[0].item()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`q(z_t|x)`: `alpha_t original_samples + sigma_t noise`, in the dtype of `original_samples` `(B, C, H, W)`.

        `timesteps` `(B,)` are as the denoiser gets them, fractional or not.
        """
        gamma_t = self.timestep_map.inverse(timesteps.to(original_samples.device, torch.float32))
        return gaussian.diffuse(original_samples, noise, gamma_t).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The `v_prediction` target, `alpha_t noise - sigma_t sample`, shaped as `sample` and in its dtype."""
        gamma_t = self.timestep_map.inverse(timesteps.to(sample.device, torch.float32))
        return gaussian.target("v_prediction", sample, noise, gamma_t).to(sample.dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
