"""VDMScheduler: a noise schedule, a timestep map and their reverse steps behind the interface of a diffusers scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from . import gaussian
from .noise_schedules import NoiseSchedule, TableSchedule
from .timestep_maps import AffineTimesteps, ChainTimesteps


CHAIN_OPTIONS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "timestep_spacing", "steps_offset",
)  # fmt: skip
"""The part of the configuration that says what a β-chain is and which of its indices are visited, as diffusers has it."""


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

    Its configuration is its whole state. It samples two kinds of models, which differ in what the denoiser is told:

    - A VDM is told `num_train_timesteps (gamma - gamma_min) / (gamma_max - gamma_min)`. Its noise schedule, learned or not, is
      part of the configuration as a table (`gammas`, `times`; see [`~VDMScheduler.from_noise_schedule`]), so nothing that
      copies, saves or loads a scheduler can lose it. `num_inference_steps` gammas lie at equal distances of its time.
    - A model trained elsewhere in diffusers is told the index of its β-chain (`beta_schedule` or `trained_betas`):
      `VDMScheduler.from_config(pipe.scheduler.config)`. Without `gammas` the chain itself is visited, at the indices that
      [`~diffusers.DDPMScheduler`] visits. Steps are that scheduler's (`fixed_small`), or with a given `eta` those of
      [`~diffusers.DDIMScheduler`]. With `gammas` that schedule is visited, told as fractional indices.

    Args:
        num_train_timesteps (`int`, defaults to 1000): The timestep that stands for `gamma_max`, or the length of the chain.
        gamma_min (`float`, defaults to -13.3): The gamma of a VDM's timestep 0.
        gamma_max (`float`, defaults to 5.0): The gamma of a VDM's timestep `num_train_timesteps`.
        gammas (`list[float]`, *optional*):
            The noise schedule as a table, strictly increasing; it may begin and end elsewhere than `gamma_min` and
            `gamma_max`. Defaults to linear between these two, or to the chain.
        times (`list[float]`, *optional*): The times of `gammas`, from 0 to 1. Defaults to equidistant.
        prediction_type (`str`, defaults to `"epsilon"`): `"epsilon"`, `"sample"`, `"score"` or `"v_prediction"`.
        eta (`float`, *optional*): Share of fresh noise where `step` is not given one. Defaults to ancestral sampling.
        clip_sample (`bool`, defaults to `False`): Clip the estimate of `x`.
        clip_sample_range (`float`, defaults to 1.0): To this magnitude.
        thresholding (`bool`, defaults to `False`): Clip it dynamically instead (Saharia et al. 2022).
        dynamic_thresholding_ratio (`float`, defaults to 0.995): The quantile of magnitudes that is clipped to.
        sample_max_value (`float`, defaults to 1.0): Its upper bound.
        beta_schedule (`str`, *optional*): Makes the model one of a β-chain, by the names of [`DDPMScheduler`].
        beta_start, beta_end (`float`): First and last β of that chain.
        trained_betas (`list[float]`, *optional*):
            The β-chain itself. For a VDM it is written here, for the schedulers of diffusers to sample it with: the chain whose
            index is the timestep.
        rescale_betas_zero_snr (`bool`, defaults to `False`): Rescale the chain so that it ends in pure noise.
        set_alpha_to_one (`bool`, defaults to `True`): End a chain in `x` itself, not in its index 0.
        timestep_spacing (`str`, defaults to `"linspace"`): Which indices of a chain are visited.
        steps_offset (`int`, defaults to 0): Added to them if the spacing is `"leading"`.

    Raises:
        `ValueError`: for a table that does not increase, `gamma_min >= gamma_max`, an unknown `prediction_type`, and from
            `from_config` for a configuration that has neither gammas nor a β-chain.
    """

    __module__ = __package__  # the name of the library in a `model_index.json`

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
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
        eta: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        beta_schedule: str | None = None,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        set_alpha_to_one: bool = True,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        gaussian.check_prediction_type(prediction_type)
        if beta_schedule is None and (trained_betas is None or gammas is not None):
            if not gamma_min < gamma_max:
                raise ValueError(f"`gamma_min` ({gamma_min}) must be below `gamma_max` ({gamma_max}): gamma is -log SNR.")
            gammas = [gamma_min, gamma_max] if gammas is None else gammas
            self.timestep_map = AffineTimesteps(gamma_min, gamma_max, num_train_timesteps)
            self.register_to_config(trained_betas=_float32_betas(self.timestep_map).tolist())
            chain = self._chain()
        else:
            chain = self._chain()
            alphas_cumprod = chain.alphas_cumprod.double()
            gamma = torch.log1p(-alphas_cumprod) - torch.log(alphas_cumprod)
            self.timestep_map = ChainTimesteps(gamma, {name: self.config[name] for name in CHAIN_OPTIONS})
        self.noise_schedule = None if gammas is None else TableSchedule(gammas, times)
        if self.noise_schedule is not None:
            self.register_to_config(**{name: list(self.noise_schedule.config[name]) for name in ("gammas", "times")})
        self.register_to_config(_class_name=type(self).__name__)
        if "_use_default_values" in self.config:  # `from_config` would leave out what it lists
            self.register_to_config(_use_default_values=[])
        self.betas, self.alphas, self.alphas_cumprod = chain.betas, chain.alphas, chain.alphas_cumprod
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = chain.timesteps
        self._begin_index: int | None = None
        self._step_index: int | None = None

    @classmethod
    def from_noise_schedule(cls, schedule: NoiseSchedule, num_intervals: int = 2000, **kwargs) -> "VDMScheduler":
        """
        A scheduler that visits a [`NoiseSchedule`], fixed or learned, baked as a table of `num_intervals` intervals.

        `kwargs` are further configuration: that of a model's β-chain, or else, for a VDM, the `gamma_min` and `gamma_max` of
        its timesteps, which default to those that the schedule was configured with.
        """
        times, gammas = schedule.table(num_intervals)
        kwargs = {"gamma_min": schedule.gamma_min, "gamma_max": schedule.gamma_max} | kwargs
        return cls.from_config(kwargs | {"gammas": gammas.tolist(), "times": times.tolist()})

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """As in diffusers, except that every value counts, also one that the other scheduler had by default."""
        if not isinstance(config, dict):
            return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)  # which refuses it
        known = config | kwargs
        shifted = known.get("use_flow_sigmas") or "snr_shift_scale" in known
        if shifted or not known.keys() & {"gammas", "gamma_min", "beta_schedule", "trained_betas"}:
            raise ValueError(
                f"The configuration of {known.get('_class_name', 'this scheduler')} has neither gammas nor a plain β-chain, as"
                " those of flow matching, EDM and CogVideoX: only models of a variance-preserving chain can be sampled here."
            )
        defaults = {"_use_default_values": []} if "_use_default_values" in config else {}
        scheduler, unused = super().from_config(dict(config) | defaults, return_unused_kwargs=True, **kwargs)
        scheduler.register_to_config(**defaults)
        return (scheduler, unused) if return_unused_kwargs else scheduler

    def _chain(self) -> DDPMScheduler:
        """The β-chain, and which of its indices to visit, as the configuration has them at present."""
        return DDPMScheduler(**{name: self.config[name] for name in CHAIN_OPTIONS})

    @property
    def gamma_0(self) -> Tensor:
        """Noise level of the last `prev_sample`, a float64 scalar on the CPU: `-inf` where it is `x` itself."""
        if self.noise_schedule is not None:
            return self.noise_schedule.knot_gammas[0]
        if self.config.set_alpha_to_one:
            return torch.tensor(-torch.inf, dtype=torch.float64)
        return self.timestep_map.gammas[0]

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

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """
        Set the discrete timesteps to be used for the chain, before sampling.

        Args:
            num_inference_steps (`int`, *optional*): The number of steps.
            device (`str` or `torch.device`, *optional*): Where to put `timesteps`.
            timesteps (`list[float]`, *optional*):
                The timesteps themselves, decreasing, in the place of a number: indices of the chain, or fractional where a
                noise schedule is visited.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Give either `num_inference_steps` or `timesteps`.")
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but must be at least 1.")
        if timesteps is not None:
            timesteps = self._check_timesteps(timesteps)
        if self.noise_schedule is None:
            self._visit_chain(num_inference_steps, timesteps)
        else:
            self._visit_schedule(num_inference_steps, timesteps)
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None
        self._factors = {}

    def _check_timesteps(self, timesteps: Sequence[float]) -> np.ndarray:
        timesteps = np.asarray(timesteps, dtype=np.float64)
        first, last = (0.0, self.config.num_train_timesteps - 1.0) if self.noise_schedule is None else self._range()
        if timesteps.ndim != 1 or not len(timesteps) or (np.diff(timesteps) >= 0).any():
            raise ValueError(f"`timesteps` must decrease, but are {timesteps.tolist()}.")
        if timesteps[-1] < first or timesteps[0] > last:
            raise ValueError(f"`timesteps` run from {timesteps[0]} to {timesteps[-1]}, but must be in [{first}, {last}].")
        if self.noise_schedule is None and (timesteps % 1).any():
            raise ValueError("`timesteps` must be whole: they are indices of a chain. Give a noise schedule to go between.")
        return timesteps

    def _range(self) -> tuple[float, float]:
        return tuple(self.timestep_map(self.noise_schedule.knot_gammas[[0, -1]]).tolist())

    def _visit_chain(self, num_inference_steps: int | None, timesteps: np.ndarray | None) -> None:
        """The indices that DDPM visits; DDIM steps from them by a fixed stride, which `_gammas_ddim` holds."""
        chain = self._chain()
        if timesteps is None:
            chain.set_timesteps(num_inference_steps)
        else:
            chain.set_timesteps(timesteps=timesteps.astype(np.int64).tolist())
        self.timesteps = chain.timesteps
        stride = self.config.num_train_timesteps // len(self.timesteps)
        self._gammas = self._chain_gamma(self.timesteps)
        self._gammas_next = torch.cat([self._gammas[1:], self.gamma_0[None]])
        self._gammas_ddim = self._gammas_next if timesteps is not None else self._chain_gamma(self.timesteps - stride)

    def _chain_gamma(self, index: Tensor) -> Tensor:
        """The chain's gammas, with `gamma_0` below index 0."""
        return torch.where(index < 0, self.gamma_0, self.timestep_map.gammas[index.clamp(min=0)])

    def _visit_schedule(self, num_inference_steps: int | None, timesteps: np.ndarray | None) -> None:
        if timesteps is None:
            gammas = self.noise_schedule.chain(num_inference_steps).flip(0)
        else:
            gammas = torch.cat([self.timestep_map.inverse(torch.from_numpy(timesteps)), self.gamma_0[None]])
        self._gammas, self._gammas_next = gammas[:-1], gammas[1:]
        self._gammas_ddim = self._gammas_next
        self.timesteps = self.timestep_map(self._gammas).float()

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
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
    ) -> VDMSchedulerOutput | tuple[Tensor, Tensor]:
        """
        One reverse step, `z_t -> z_s`, computed in float32 at least.

        Args:
            model_output (`Tensor` of shape `(B, C, H, W)`): The denoiser's output at `sample` and `timestep`.
            timestep (`Tensor` of shape `()` or `float`): The next element of `timesteps`.
            sample (`Tensor` of shape `(B, C, H, W)`): `z_t`.
            generator (`torch.Generator` or a list of them, *optional*): Source of the fresh noise.
            return_dict (`bool`, defaults to `True`): [`VDMSchedulerOutput`] or a plain tuple.
            eta (`float`, *optional*):
                Share of fresh noise, as [`~diffusers.DDIMScheduler`] has it: 0 is deterministic. Defaults to the configured
                one, or to ancestral sampling, which is the same as 1 where nothing is clipped.
            use_clipped_model_output (`bool`, *optional*):
                With an `eta`: whether the noise estimate follows from the clipped estimate of `x`. Ancestral sampling's does.

        Returns:
            [`VDMSchedulerOutput`] or `tuple`, in the dtype of `sample`.

        Raises:
            `ValueError`: without `set_timesteps`, for a timestep out of order, and for an `eta` outside [0, 1].
        """
        index = self._next_index(timestep)
        eta = self.config.eta if eta is None else eta
        prediction_type = self.config.prediction_type
        factors = self._step_factors(prediction_type, eta)[index]

        dtype = torch.promote_types(sample.dtype, torch.float32)
        z_t, output = sample.to(dtype), model_output.to(dtype)
        x = (z_t * factors.x_from_z).add_(output, alpha=factors.x_from_output).div_(factors.x_divisor)
        if self.config.thresholding or self.config.clip_sample:
            x = self._clip(x)
            if eta is None or use_clipped_model_output:
                factors, output = self._step_factors("sample", eta)[index], x
        z_s = (x * factors.alpha_s).add_(output, alpha=factors.eps_from_output).add_(z_t, alpha=factors.eps_from_z)
        if factors.noise:
            noise = randn_tensor(z_t.shape, generator=generator, device=z_t.device, dtype=dtype)
            z_s = z_s.add_(noise, alpha=factors.noise)
        z_s, x = z_s.to(sample.dtype), x.to(sample.dtype)
        return VDMSchedulerOutput(prev_sample=z_s, pred_original_sample=x) if return_dict else (z_s, x)

    def _step_factors(self, prediction_type: str, eta: float | None) -> list["StepFactors"]:
        """Of every step, computed when first asked for after `set_timesteps`."""
        key = (prediction_type, eta)
        if key not in self._factors:
            if eta is not None and not 0 <= eta <= 1:
                raise ValueError(f"`eta` is {eta}, but the share of fresh noise is between 0 and 1.")
            gammas_s = self._gammas_next if eta is None else self._gammas_ddim
            self._factors[key] = _step_factors(prediction_type, gammas_s, self._gammas, 1.0 if eta is None else eta)
        return self._factors[key]

    def _clip(self, x: Tensor) -> Tensor:
        if self.config.thresholding:
            return DDPMScheduler._threshold_sample(self, x)
        return x.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

    def _next_index(self, timestep: Tensor | float) -> int:
        """Position of `timestep` in `timesteps`, which must be the next; read from its address where it is a view of them."""
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is not set: call `set_timesteps` before `step`.")
        storage = self.timesteps.untyped_storage().data_ptr()
        if isinstance(timestep, Tensor) and timestep.untyped_storage().data_ptr() == storage:
            index = timestep.storage_offset() - self.timesteps.storage_offset()
        else:
            matches = (self.timesteps.cpu() == torch.as_tensor(timestep, dtype=self.timesteps.dtype).cpu()).nonzero()
            index = matches[0].item() if len(matches) else None
        expected = self._begin_index if self._step_index is None else self._step_index
        if index is None or expected not in (None, index):
            raise ValueError(
                f"`timestep` is {float(timestep)}, but `step` takes the elements of `scheduler.timesteps`, one after the"
                " other: call `set_timesteps` to start anew."
            )
        self._step_index = index + 1
        return index

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`q(z_t|x)`: `alpha_t original_samples + sigma_t noise`, in the dtype of `original_samples` `(B, C, H, W)`.

        `timesteps` `(B,)` are as the denoiser gets them, fractional or not.
        """
        return gaussian.diffuse(original_samples, noise, self._gamma(timesteps, noise)).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The `v_prediction` target, `alpha_t noise - sigma_t sample`, shaped as `sample` and in its dtype."""
        return gaussian.target("v_prediction", sample, noise, self._gamma(timesteps, noise)).to(sample.dtype)

    def _gamma(self, timesteps: Tensor, noise: Tensor) -> Tensor:
        dtype = torch.promote_types(noise.dtype, torch.float32)
        return self.timestep_map.inverse(timesteps.cpu().double()).to(noise.device, dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


class StepFactors(NamedTuple):
    """A reverse step as the linear map that it is, so that it costs no arithmetic but that of images.

    `x = (x_from_z z_t + x_from_output output) / x_divisor`, and with the `x` that is left after clipping,
    `z_s = alpha_s x + eps_from_z z_t + eps_from_output output + noise`.
    """

    x_from_z: float
    x_from_output: float
    x_divisor: float
    alpha_s: float
    eps_from_z: float
    eps_from_output: float
    noise: float


def _step_factors(prediction_type: str, gammas_s: Tensor, gammas_t: Tensor, eta: float) -> list[StepFactors]:
    """Of the steps from `gammas_t` to `gammas_s`: what the formulas make of units."""
    one, zero = torch.ones_like(gammas_t), torch.zeros_like(gammas_t)

    def z_s(x: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        return gaussian.reverse_step(x, eps, gammas_s, gammas_t, noise, eta)

    def eps(z_t: Tensor, output: Tensor) -> Tensor:
        return gaussian.predicted_epsilon(prediction_type, output, z_t, gammas_t)

    rows = torch.stack(
        [
            *gaussian.sample_equation(prediction_type, gammas_t),
            z_s(one, zero, zero),
            z_s(zero, eps(one, zero), zero),
            z_s(zero, eps(zero, one), zero),
            z_s(zero, zero, one),
        ],
        dim=1,
    )
    return [StepFactors(*row) for row in rows.tolist()]


def _float32_betas(timestep_map: AffineTimesteps) -> np.ndarray:
    """`β_i = 1 - α_i` of the chain whose index is the timestep, `(num_train_timesteps,)`, for float32 arithmetic.

    Each β makes up for the rounding of the products before it, so that the float32 product of `1 - β` lands as near to its
    `ᾱ_i = sigmoid(-gamma_i)` as float32 can.
    """
    gamma = timestep_map.inverse(torch.arange(timestep_map.num_train_timesteps, dtype=torch.float64))
    betas, product = [], np.float32(1.0)
    for alphas_cumprod in torch.sigmoid(-gamma).tolist():
        beta = np.float32(1.0 - alphas_cumprod / float(product))
        product *= np.float32(1.0) - beta
        betas.append(beta)
    return np.array(betas, dtype=np.float64)
