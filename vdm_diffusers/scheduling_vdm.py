"""VDMScheduler: a noise schedule, a timestep map and their reverse steps behind the interface of a diffusers scheduler."""

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from . import gaussian
from .error_profiles import ErrorProfile
from .guards.plain_config import PlainConfigMixin
from .noise_schedules import MAX_LENGTH, NoiseSchedule, as_vector
from .scheduling.any_timesteps import Kept, check_kept, kept_timesteps
from .scheduling.options import check_options, complete, is_number, is_whole
from .scheduling.reverse_steps import is_learned
from .scheduling.visits import Visit, timesteps_of, visits_of
from .timestep_maps import ChainTimesteps


PROFILE = "error_profile"
"""A folder beside the configuration: diffusers would take weights right beside it for those of a model."""

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Of `from_pretrained`, for a file beside the configuration."""


@dataclass
class VDMSchedulerOutput(BaseOutput):
    """
    Output class for the scheduler's `step` function.

    Args:
        prev_sample (`torch.Tensor` of shape `(B, C, *size)`): `z_s`, to be the next model input.
        pred_original_sample (`torch.Tensor` of shape `(B, C, *size)`): The estimate of `x` that it was made from.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class VDMScheduler(SchedulerMixin, PlainConfigMixin):
    """
    The reverse chain of a variational diffusion model: ancestral sampling by default, deterministic with `eta=0`.

    Its configuration is its whole state. It samples two kinds of models, which differ in what the denoiser is told:

    - A VDM is told `num_train_timesteps (gamma - gamma_min) / (gamma_max - gamma_min)`. Its noise schedule, learned or not, is
      part of the configuration as a table (`gammas`, `times`; see [`~VDMScheduler.from_noise_schedule`]), so nothing that
      copies, saves or loads a scheduler can lose it. `num_inference_steps` gammas lie between its end points as `spacing`
      says.
    - A model trained elsewhere in diffusers is told the index of its β-chain (`beta_schedule` or `trained_betas`):
      `VDMScheduler.from_config(pipe.scheduler.config)`. Without `gammas` the chain itself is visited, at the indices that
      [`~diffusers.DDPMScheduler`] visits. Steps are that scheduler's, or with a given `eta` those of
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
        beta_schedule (`str`, *optional*): Makes the model one of a β-chain, by the names of [`~diffusers.DDPMScheduler`].
        beta_start, beta_end (`float`): First and last β of that chain.
        trained_betas (`list[float]`, *optional*):
            The β-chain itself. For a VDM it is written here, for the schedulers of diffusers to sample it with: the chain whose
            index is the timestep.
        rescale_betas_zero_snr (`bool`, defaults to `False`): Rescale the chain so that it ends in pure noise.
        set_alpha_to_one (`bool`, defaults to `True`): End DDIM's steps in `x` itself, as DDPM's do, not in the chain's index 0.
        spacing (`str`, *optional*):
            Where a noise schedule is visited: at equal distances of `"gamma"` between its end points, of its `"time"`, or of
            the `"timestep"` that the denoiser is told, which for a VDM is the same as gamma. By default a VDM's in gamma,
            because a schedule that was learned for the bound spends its time at low noise, where images hardly change; one
            that is given to the model of a β-chain in time.
        timestep_spacing (`str`, defaults to `"linspace"`): Which indices of a chain are visited.
        steps_offset (`int`, defaults to 0): Added to them if the spacing is `"leading"`.
        variance_type (`str`, *optional*, defaults to `"fixed_small"`):
            The variance of ancestral steps, by the names of [`~diffusers.DDPMScheduler`]. With `"learned"` and
            `"learned_range"` the denoiser has twice the channels.
        few_step_timesteps (`dict`, *optional*):
            The timesteps to visit for some numbers of steps, by the class of scheduler that they are for:
            `{"VDMScheduler": {"8": [...]}}`. They are what `python -m vdm_diffusers.few_steps` finds.
        error_profile (`dict`, *optional*):
            The errors of the denoiser, by which ancestral steps have their optimal variances; see
            [`~VDMScheduler.set_error_profile`].

    Raises:
        `ValueError`: for a value that its option can't have, a table that does not increase, a β outside (0, 1), and from
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
        variance_type: str | None = "fixed_small",
        spacing: str | None = None,
        few_step_timesteps: Kept | None = None,
        error_profile: Mapping[str, object] | None = None,
    ):
        check_options(self.config)
        check_kept(few_step_timesteps)
        self._error_profile = None if error_profile is None else ErrorProfile.from_config(error_profile)
        config = dict(self.config)
        if trained_betas is not None:
            config["trained_betas"] = as_vector("trained_betas", trained_betas).tolist()
        self.timestep_map, betas = timesteps_of(config)
        self._visits = visits_of(config, self.timestep_map)
        self.noise_schedule = self._visits.noise_schedule
        if "_use_default_values" in config:  # `from_config` would leave out what it lists
            config["_use_default_values"] = []
        told_of_chain = isinstance(self.timestep_map, ChainTimesteps)
        config["trained_betas"] = config["trained_betas"] if told_of_chain else betas.tolist()
        self.register_to_config(**config | self._visits.config | {"_class_name": type(self).__name__})
        self.betas = betas.float()
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)
        self._is_spaced = True
        self._last_eta = eta

    @classmethod
    def from_noise_schedule(cls, schedule: NoiseSchedule, num_intervals: int = 2000, **kwargs) -> "VDMScheduler":
        """
        A scheduler that visits a [`NoiseSchedule`], fixed or learned, baked as a table of `num_intervals` intervals.

        `kwargs` are further configuration: that of a model's β-chain, or else, for a VDM, the `gamma_min` and `gamma_max` of
        its timesteps, which default to those that the schedule was configured with.
        """
        if not is_whole(num_intervals, 1, MAX_LENGTH - 1):
            raise ValueError(
                f"`num_intervals` is {reprlib.repr(num_intervals)}, but it must be a whole number from 1 to {MAX_LENGTH - 1:,}."
            )
        times, gammas = schedule.table(num_intervals)
        kwargs = {"gamma_min": schedule.gamma_min, "gamma_max": schedule.gamma_max} | kwargs
        return cls.from_config(kwargs | {"gammas": gammas.tolist(), "times": times.tolist()})

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """
        As in diffusers, except that every value counts, also one that the other scheduler had by default.

        Values that a configuration leaves out are those that the class it names has by default. Raises `ValueError` for what is
        no variance-preserving diffusion, or has a value that an option can't have.
        """
        if not isinstance(config, Mapping):
            raise TypeError(
                f"`config` is {reprlib.repr(config)}, but it must be a dictionary, as `scheduler.config` is;"
                " `from_pretrained` reads folders and repositories."
            )
        completed = complete(dict(config) | kwargs, cls)
        config = {name: value for name, value in completed.items() if name in config or name not in kwargs}
        defaults = {"_use_default_values": []} if "_use_default_values" in config else {}
        scheduler, unused = super().from_config(config | defaults, return_unused_kwargs=True, **kwargs)
        scheduler.register_to_config(**defaults)
        return (scheduler, unused) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs,
    ):
        """As in diffusers, with the error profile that lies beside the configuration, if there is one."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, subfolder, return_unused_kwargs, **kwargs)
        scheduler = loaded[0] if return_unused_kwargs else loaded
        if scheduler._lacks_profile:
            of_hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            folder = os.path.join(subfolder or "", PROFILE)
            scheduler.set_error_profile(ErrorProfile.from_pretrained(pretrained_model_name_or_path, folder, **of_hub))
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As in diffusers, with the error profile beside the configuration where that does not hold all of it."""
        self._check_profile()
        if self._error_profile is not None and self._error_profile.basis != "isotropic":
            self._error_profile.save_pretrained(os.path.join(save_directory, PROFILE))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def set_error_profile(self, error_profile: ErrorProfile | None) -> None:
        """
        Give ancestral steps the variances that are optimal for the denoiser: 1 + d m times those of q(z_s|z_t, x), with
        d = expm1(gamma_t - gamma_s) and the errors m at gamma_t ([Bao et al. 2022](https://arxiv.org/abs/2201.06503)).

        An isotropic profile becomes a part of the configuration. Others lie beside it, where `save_pretrained` and
        `from_pretrained`, but not `from_config`, carry them. Without a profile variances are q's again. Steps with an `eta`
        have their own.
        """
        self._error_profile = error_profile
        self.register_to_config(error_profile=None if error_profile is None else error_profile.to_config())

    @property
    def error_profile(self) -> ErrorProfile | None:
        """By which steps have their optimal variances, `None` for q's; `ValueError` if it is one that was left behind."""
        self._check_profile()
        return self._error_profile

    @property
    def _lacks_profile(self) -> bool:
        return self.config.error_profile is not None and self._error_profile is None

    def _check_profile(self) -> None:
        if self._lacks_profile:
            raise ValueError(
                f"The error profile of this scheduler, {self.config.error_profile['basis']!r}, is no part of its configuration:"
                " give it by `set_error_profile`, which takes `None` for q's variances, or load it by `from_pretrained`."
            )

    @property
    def gamma_0(self) -> Tensor:
        """Noise level of the last `prev_sample`, a float64 scalar on the CPU: `-inf` where it is `x` itself."""
        return self._visits.gamma_ddpm if self._last_eta is None else self._visits.gamma_ddim

    @property
    def timestep_range(self) -> tuple[float, float]:
        """The lowest and the highest timestep that can be visited."""
        return self._visits.range

    @property
    def timesteps(self) -> Tensor:
        """What the denoiser is told before each step, `(num_inference_steps,)`, decreasing.

        It may be set, as some pipelines do, to start in the middle. DDPM's steps then lead through what it is set to, and those
        of DDIM by the stride of `set_timesteps`.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor | Sequence[float]) -> None:
        self._timesteps = timesteps if isinstance(timesteps, Tensor) else as_vector("timesteps", timesteps)
        self._visit: Visit | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

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
        if not is_whole(begin_index, 0):
            raise ValueError(f"`begin_index` is {reprlib.repr(begin_index)}, but it must be a whole number, 0 or more.")
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
            num_inference_steps (`int`, *optional*): The number of steps, whose `few_step_timesteps` are taken if there are any.
            device (`str` or `torch.device`, *optional*): Where to put `timesteps`.
            timesteps (`list[float]`, *optional*):
                The timesteps themselves, decreasing, in the place of a number: indices of the chain, or fractional where a
                noise schedule is visited.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Give either `num_inference_steps` or `timesteps`.")
        self._check_profile()
        if timesteps is None and is_whole(num_inference_steps):
            timesteps = kept_timesteps(self, num_inference_steps)
        if timesteps is not None:
            given = as_vector("timesteps", timesteps)
            self._visits.check(given)
            steps = self._visits.between(given, stride=None)
        elif is_whole(num_inference_steps, 1, MAX_LENGTH):
            check_options(self.config)  # pipelines may have edited it
            steps = self._visits.spaced(int(num_inference_steps), self.config)
        else:
            raise ValueError(
                f"`num_inference_steps` is {reprlib.repr(num_inference_steps)}, but must be a whole number from 1 to"
                f" {MAX_LENGTH:,}."
            )
        self.timesteps = steps.timesteps.to(device)
        self.num_inference_steps, self._is_spaced = len(steps.timesteps), timesteps is None
        self._visit = Visit(steps, self._state())

    def _state(self) -> tuple[Tensor, dict[str, object], tuple[int | None, int | None]]:
        """All that steps are made from: `timesteps`, the configuration, and the version and number of the former."""
        version = None if self._timesteps.is_inference() else self._timesteps._version
        return self._timesteps, self._internal_dict, (version, self.num_inference_steps)

    def _current_visit(self) -> Visit:
        """The steps that were set, or others if what they were made from has been changed since."""
        if self._visit is not None:
            timesteps, config, counts = self._state()
            made_from = self._visit.state
            if timesteps is made_from[0] and config is made_from[1] and counts == made_from[2]:
                return self._visit
        if self.num_inference_steps is None:
            raise ValueError("`num_inference_steps` is not set: call `set_timesteps` before `step`.")
        if not is_whole(self.num_inference_steps, 1):
            raise ValueError(f"`num_inference_steps` is {self.num_inference_steps!r}, but it must be a positive whole number.")
        timesteps = self._timesteps.detach().cpu().double()
        self._visits.check(timesteps)
        stride = self.config.num_train_timesteps // self.num_inference_steps
        self._visit = Visit(self._visits.between(timesteps, stride if self._is_spaced else None), self._state())
        return self._visit

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
            model_output (`Tensor` of shape `(B, C, *size)`):
                The denoiser's output at `sample` and `timestep`; `(B, 2 C, *size)` if it has learned its variances, which only
                ancestral steps use.
            timestep (`Tensor` of shape `()` or `(B,)`, or `float`): The next element of `timesteps`, the same for all images.
            sample (`Tensor` of shape `(B, C, *size)`): `z_t`.
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
            `ValueError`: without `set_timesteps`, for a timestep out of order, for images at different timesteps, for an `eta`
                outside [0, 1], and for a `model_output` of another size.
        """
        visit, config = self._current_visit(), self.config
        eta = config.eta if eta is None else eta
        of_steps = visit.factors(config.prediction_type, eta, config.variance_type)
        model_output, variance = self._split(model_output, sample, ancestral=eta is None)
        index = self._next_index(timestep, visit)
        factors, self._last_eta = of_steps[index], eta

        dtype = torch.promote_types(sample.dtype, torch.float32)
        z_t, output = sample.to(dtype), model_output.to(dtype)
        x = (z_t * factors.x_from_z).add_(output, alpha=factors.x_from_output).div_(factors.x_divisor)
        if config.thresholding or config.clip_sample:
            x = self._clip(x)
            if eta is None or use_clipped_model_output:
                factors, output = visit.factors("sample", eta, config.variance_type)[index], x
        z_s = (x * factors.alpha_s).add_(output, alpha=factors.eps_from_output).add_(z_t, alpha=factors.eps_from_z)
        if factors.noise:
            noise = randn_tensor(z_t.shape, generator=generator, device=z_t.device, dtype=dtype)
            if variance is None:
                noise = noise if eta is not None else self._widened(noise, visit, index)
                z_s = z_s.add_(noise, alpha=factors.noise)
            else:
                z_s = z_s.addcmul_(noise, factors.learned_noise(config.variance_type, variance.to(dtype)))
        z_s, x = z_s.to(sample.dtype), x.to(sample.dtype)
        return VDMSchedulerOutput(prev_sample=z_s, pred_original_sample=x) if return_dict else (z_s, x)

    def _widened(self, noise: Tensor, visit: Visit, index: int) -> Tensor:
        """The noise of an ancestral step with its optimal variances, if there are any."""
        if self._error_profile is None:
            return noise
        gamma_s, gamma_t = (gammas[index].to(noise.device) for gammas in (visit.steps.gammas_ddpm, visit.steps.gammas))
        return self._error_profile.to(noise.device).widened(noise, gamma_s, gamma_t)

    def _split(self, model_output: Tensor, sample: Tensor, ancestral: bool) -> tuple[Tensor, Tensor | None]:
        """What a denoiser says of the sample, and of the variance of an ancestral step if it has learned one."""
        learned = is_learned(self.config.variance_type)
        if model_output.shape == sample.shape and not (learned and ancestral):
            return model_output, None
        batch_size, channels, *size = sample.shape
        if not learned or model_output.shape != (batch_size, 2 * channels, *size):
            expected = (batch_size, 2 * channels if learned and ancestral else channels, *size)
            raise ValueError(
                f"`model_output` has the shape {tuple(model_output.shape)}, but for `sample`, {tuple(sample.shape)}, and"
                f" `variance_type` {self.config.variance_type!r} it must have {expected}."
            )
        mean, variance = model_output.chunk(2, dim=1)
        return mean, variance if ancestral else None

    def _clip(self, x: Tensor) -> Tensor:
        if self.config.thresholding:
            return DDPMScheduler._threshold_sample(self, x)
        return x.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

    def _next_index(self, timestep: Tensor | float, visit: Visit) -> int:
        """Position of `timestep` in `timesteps`, which must be the next."""
        index = self._address(timestep)
        if index is None:
            value = _one_value(timestep)
            index = visit.values.index(value) if value in visit.values else None
        expected = self._begin_index if self._step_index is None else self._step_index
        if index is None or expected not in (None, index):
            raise ValueError(
                f"`timestep` is {reprlib.repr(timestep)}, but `step` takes the elements of `scheduler.timesteps`, one after the"
                " other: call `set_timesteps` to start anew."
            )
        self._step_index = index + 1
        return index

    def _address(self, timestep: Tensor | float) -> int | None:
        """The position of a view of one element of `timesteps`, read from its address without waiting for the device."""
        visited = self._timesteps
        if not isinstance(timestep, Tensor) or timestep.untyped_storage().data_ptr() != visited.untyped_storage().data_ptr():
            return None
        is_one = timestep.numel() == 1 or not any(timestep.stride())  # or one for all images, expanded
        index, between = divmod(timestep.storage_offset() - visited.storage_offset(), visited.stride(0) or 1)
        return index if is_one and not between and 0 <= index < visited.shape[0] else None

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`q(z_t|x)`: `alpha_t original_samples + sigma_t noise`, in the dtype of `original_samples` `(B, C, *size)`.

        `timesteps` `(B,)` are as the denoiser gets them, fractional or not.
        """
        return gaussian.diffuse(original_samples, noise, self._gamma(timesteps, noise)).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The `v_prediction` target, `alpha_t noise - sigma_t sample`, shaped as `sample` and in its dtype."""
        return gaussian.target("v_prediction", sample, noise, self._gamma(timesteps, noise)).to(sample.dtype)

    def _gamma(self, timesteps: Tensor, noise: Tensor) -> Tensor:
        timesteps = torch.as_tensor(timesteps).cpu().double().flatten()
        if len(timesteps) not in (1, len(noise)):
            raise ValueError(f"There are {len(timesteps)} `timesteps` for {len(noise)} images: give one for each, or for all.")
        first, last = self._known
        if not ((timesteps >= first) & (timesteps <= last)).all():
            raise ValueError(f"`timesteps` must be in [{first}, {last}], but are {reprlib.repr(timesteps.tolist())}.")
        gamma = self.timestep_map.inverse(timesteps)
        return (gamma if len(gamma) > 1 else gamma[0]).to(noise.device, torch.promote_types(noise.dtype, torch.float32))

    @property
    def _known(self) -> tuple[float, float]:
        """First and last timestep that stands for a noise level, visited or not."""
        first, last = self._visits.range
        return min(0.0, first), max(self.timestep_map.last, last)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _one_value(timestep: Tensor | float) -> float | None:
    """The value of a `timestep`, rounded to float32, if all images have the same."""
    values = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
    if len(set(values)) > 1:
        raise ValueError(
            f"`timestep` has different values for the images of a batch, {reprlib.repr(values)}, but `step` takes all of them"
            " from one timestep to the next: step them one by one, or those at the same timestep together."
        )
    return torch.tensor(float(values[0]), dtype=torch.float32).item() if values and is_number(values[0]) else None
