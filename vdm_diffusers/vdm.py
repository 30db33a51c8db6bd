"""VDM = denoiser + noise schedule -> the three terms of the variational bound (Kingma et al. 2021, section 3 and 4)."""

import copy
import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from . import gaussian
from .autoencoders import autoencoder_of, encode, scale_to_unit
from .class_names import in_order, names_of
from .conditioning import Condition, as_condition, check_condition, num_classes
from .denoisers import denoiser_name, denoiser_of, predict, sample_shape
from .error_profiles import ErrorProfile
from .guards.arguments import Within, checked
from .guards.loading import loading
from .noise_schedules import NoiseSchedule, TableSchedule
from .precision import compute_dtype
from .saved_schedules import SCHEDULE, saved_schedule
from .scheduling.identity import check_scheduler
from .scheduling_vdm import VDMScheduler
from .text_encoders import PromptEncoder, prompt_encoder_of
from .timestep_maps import AffineTimesteps, TimestepMap
from .units import BITS_PER_DIM, NATS_PER_DIM, Unit
from .weightings import WEIGHTINGS, check_weighting


if TYPE_CHECKING:
    from .pipeline_vdm import VDMPipeline


STEP_OPTIONS = (
    "variance_type", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value",
)  # fmt: skip
"""What a scheduler says of every step, whichever gammas are visited."""


def per_image(values: Tensor) -> Tensor:
    """Values `(B, *shape)` summed over each image, `(B,)`."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sum": per_image, "none": lambda values: values}
"""What becomes of the terms of the elements of an image."""


class VDMLoss(NamedTuple):
    """The negative variational bound of each image, `-VLB(x) = prior + reconstruction + diffusion` (section 3.5).

    Its terms are shaped `(B,)`. Where they were asked for without reduction they are those of each element, `(B, C, *size)`,
    and so are all sums of them below.

    Attributes:
        prior (`Tensor` of shape `(B,)`): `KL(q(z_1|x) || p(z_1))`, prior matching, in nats.
        reconstruction (`Tensor` of shape `(B,)`): an estimate of `E_q[-log p(x|z_0)]` from one draw, in nats.
        diffusion (`Tensor` of shape `(B,)`): an estimate of the denoising-matching term from one time and draw, in nats.
        num_dims (`int`): Number of elements of a sample, such as `C·H·W` of an image, or of its latents.
        unit ([`Unit`]): Bits per dimension for integer images, nats per dimension for latents and other real-valued data.
        weight (`Tensor` of shape `(B,)`): Training weight at this image's noise level; 1 for the bound.
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor
    num_dims: int
    unit: Unit
    weight: Tensor

    @property
    def nats(self) -> Tensor:
        """Their sum, `(B,)`, in nats per image."""
        return self.prior + self.reconstruction + self.diffusion

    @property
    def bits_per_dim(self) -> Tensor:
        """Their sum, `(B,)`, in bits per dimension; `ValueError` for real-valued data, which have [`~VDMLoss.per_dim`]."""
        if self.unit is not BITS_PER_DIM:
            raise ValueError("The bound of real-valued data is one of a density, which counts no bits: use `loss.per_dim`.")
        return self.per_dim

    @property
    def per_dim(self) -> Tensor:
        """Their sum, `(B,)`, in `unit`."""
        return self.nats / self.nats_in_unit

    @property
    def nats_in_unit(self) -> float:
        """Nats in one `unit` of a whole sample: a term divided by it is in `unit`."""
        return self.num_dims * self.unit.nats

    @property
    def objective(self) -> Tensor:
        """The training loss, `(B,)`: the bound in `unit`, its diffusion term weighted."""
        weight = gaussian.expand(self.weight, self.diffusion)
        return (self.prior + self.reconstruction + weight * self.diffusion) / self.nats_in_unit


class NoiseLevel(NamedTuple):
    """Where the diffusion term is estimated.

    Attributes:
        gamma (`Tensor` of shape `(B,)`): `gamma_t`.
        factor (`Tensor` of shape `(B,)`): That of `||eps - eps_hat||²` in the bound, in nats.
        interior (`tuple[Tensor, ...]`): Each `(B,)`; see [`~NoiseSchedule.with_interior`].
    """

    gamma: Tensor
    factor: Tensor
    interior: tuple[Tensor, ...] = ()


class VDM(nn.Module):
    r"""
    A variational diffusion model: what is trained, as one module.

    Prepare it with Accelerate as a whole: the schedule's parameters are reached only through this module's `forward`.

    Args:
        unet (`nn.Module`): The denoiser, called as `unet(z_t, timestep=timestep, return_dict=False, **condition)[0]`:
            a [`VDMUNet2DModel`], a [`~diffusers.UNet2DModel`], a [`~diffusers.DiTTransformer2DModel`], ...
        noise_schedule ([`NoiseSchedule`]): Fixed or learnable.
        prediction_type (`str`, defaults to `"epsilon"`): What the denoiser estimates: `"epsilon"`, `"sample"`, `"score"` or
            `"v_prediction"`.
        num_levels (`int`, *optional*, defaults to 256): Images are integers in `[0, num_levels)`; `None` for real-valued data.
        num_timesteps (`int`, *optional*): T of the discrete-time bound; `None`, the default, is continuous time.
        timestep_map ([`AffineTimesteps`], *optional*): Gives the timestep that the denoiser is told. Defaults to a VDM's,
            `1000 (gamma - gamma_min) / (gamma_max - gamma_min)` with the schedule's configured constants.
        weighting (`str`, defaults to `"elbo"`): The loss weighting, one of `WEIGHTINGS`. All but `"elbo"` need continuous time,
            and fix the end points of a learned schedule, about which they say nothing.
        vae ([`~diffusers.AutoencoderKL`], [`~diffusers.VQModel`], ..., *optional*): Makes this a model of its latents. It is
            not trained, and is saved with the pipeline, not in the state of this module.
        class_names (`list[str]`, *optional*): What the classes of a class-conditional denoiser are called, in the order of
            their labels, the null class left out. They are saved with the pipeline.
        prompt_encoder ([`PromptEncoder`], *optional*): Encodes the texts that the denoiser is conditioned on. It is not trained
            and, like the autoencoder, saved with the pipeline.
        error_profile ([`ErrorProfile`], *optional*): Gives `p(z_s|z_t)` of the discrete-time bound the variance that is optimal
            by these errors of the denoiser; by default it is that of `q(z_s|z_t, x)`.

    Attributes:
        origin (`DiffusionPipeline`, *optional*): The pipeline that the model was made from, see [`~VDM.from_pipeline`].

    Raises:
        `TypeError`: for arguments of another type.
        `ValueError`: for an unknown `prediction_type` or `weighting`, `num_levels < 2` or `num_timesteps < 1`, for a
            weighting in discrete time or with a learned schedule that has no end points of its own, and for another number of
            `class_names` than there are classes.
    """

    @checked
    def __init__(
        self,
        unet: nn.Module,
        noise_schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        num_levels: Annotated[int, Within(2, 2**24)] | None = 256,
        num_timesteps: Annotated[int, Within(1, 2**31)] | None = None,
        timestep_map: TimestepMap | None = None,
        weighting: str = "elbo",
        vae: ModelMixin | None = None,
        class_names: Sequence[str] | None = None,
        error_profile: ErrorProfile | None = None,
        prompt_encoder: PromptEncoder | None = None,
    ):
        super().__init__()
        gaussian.check_prediction_type(prediction_type)
        check_weighting(weighting)
        if class_names is not None and len(class_names) != num_classes(unet):
            raise ValueError(
                f"`class_names` are {len(class_names)}, but the denoiser has {num_classes(unet) or 'no'} classes: give one name"
                " for each, none for the null class."
            )
        if prompt_encoder is not None:
            prompt_encoder.check_denoiser(unet)
        self.unet = unet
        self.noise_schedule = noise_schedule
        self.prediction_type = prediction_type
        self.num_levels = num_levels
        self.num_timesteps = num_timesteps
        self.timestep_map = timestep_map or AffineTimesteps(noise_schedule.gamma_min, noise_schedule.gamma_max)
        self.weighting = weighting
        self.class_names = None if class_names is None else list(class_names)
        self.error_profile = error_profile
        self.prompt_encoder = prompt_encoder
        self.origin: DiffusionPipeline | None = None
        self.__dict__["vae"] = vae  # not registered: a frozen model belongs neither to the parameters nor to checkpoints
        if error_profile is not None and num_timesteps is None:
            raise ValueError("`error_profile` gives the steps of a chain their variances: say how many by `num_timesteps`.")
        if weighting != "elbo":
            self._fix_end_points()

    def _fix_end_points(self) -> None:
        if self.num_timesteps is not None:
            raise ValueError(f"`weighting` {self.weighting!r} is one of continuous time: leave out `num_timesteps`.")
        try:
            self.noise_schedule.fix_end_points()
        except ValueError as error:
            schedule = type(self.noise_schedule).__name__
            raise ValueError(f"`weighting` {self.weighting!r} can't train {schedule}: {error}") from None

    def forward(
        self,
        images: Tensor,
        condition: Condition | Tensor | None = None,
        times: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        class_labels: Tensor | None = None,
        reduction: str = "sum",
    ) -> VDMLoss:
        """
        Args:
            images (`Tensor` of shape `(B, C, *size)`): Samples of any number of dimensions: integers in `[0, num_levels)`, of
                an integer dtype; or real-valued data, such as latents, if it is them that are modelled.
            condition (`dict[str, Tensor]`, *optional*): What the denoiser is told besides, by its keywords, a row for each
                image. Labels of classes may be given by themselves, here or as `class_labels`.
            times (`Tensor` of shape `(B,)`, *optional*): One time in [0, 1] an image. Defaults to [`stratified_times`].
            noise (`Tensor` of shape `(2, B, C, *size)`, *optional*): Standard normal, for `z_0` and for `z_t`, shaped as images
                or latents.
            generator (`torch.Generator`, *optional*): Source of `times` and `noise` where they aren't given; defaults to the
                global one of their device.
            class_labels (`Tensor` of shape `(B,)`, *optional*): Short for `condition={"class_labels": class_labels}`.
            reduction (`str`, defaults to `"sum"`): `"sum"` adds the terms up over each image, `"none"` keeps them an element.

        Returns:
            [`VDMLoss`], in float32 at least.

        Raises:
            `TypeError` and `ValueError`: for images as [`~VDM.scale`] refuses them or of another size than the denoiser's, for
            a condition as [`check_condition`] refuses it, for `times` and `noise` of another shape; on the CPU, where looking
            costs nothing, also for times outside [0, 1]; for terms an element with an error profile along other axes.
        """
        self._check_reduction(reduction)
        x = self.scale(images, generator)
        self._check_shape(images, x)
        condition = as_condition(condition, class_labels)
        check_condition(condition, len(x), self.unet)
        if times is None:
            times = stratified_times(torch.rand((), generator=generator, device=x.device), len(x))
        if noise is None:
            noise = torch.randn(2, *x.shape, generator=generator, device=x.device, dtype=x.dtype)
        _check_draws(times, noise, x)
        reach = self._reach(x.dtype)
        level = self.noise_level(times)
        loss = VDMLoss(
            diffusion=self.diffusion(x, level, noise[1], condition, reduction),
            prior=self.prior(x, reduction),
            reconstruction=self.reconstruction(images, noise[0], reach, reduction),
            num_dims=x[0].numel(),
            unit=self.unit,
            weight=WEIGHTINGS[self.weighting](level.gamma),
        )
        # the interior of the schedule descends the variance of the estimate, see `noise_level`
        scale_gradients(level.interior, 2 * (loss.weight * per_image(loss.diffusion)).detach() / loss.nats_in_unit)
        return loss

    def _check_reduction(self, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"`reduction` is {reduction!r}, but must be one of {', '.join(REDUCTIONS)}.")
        profile = self.error_profile
        if reduction == "none" and profile is not None and profile.axes is not None:
            raise ValueError(
                f"The error profile has the basis {profile.basis!r}, where the bound is a sum over axes that mix elements of"
                " an image, so that none has terms of its own: take a profile of the basis 'isotropic' or 'entries'."
            )

    @property
    def unit(self) -> Unit:
        """The unit of the bound, bits per dimension for integer images and nats for real-valued data."""
        return BITS_PER_DIM if self.num_levels is not None and self.vae is None else NATS_PER_DIM

    def scale(self, images: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """
        The data x that is diffused, `(B, C, *size)`, in float32 at least.

        Integer images are taken to (-1, 1), the midpoints of `num_levels` bins: `x = 2 (v + ½) / num_levels - 1`; with an
        autoencoder, to a draw of their latents by `generator`, or by one for each image. Real-valued data stay as they are, in
        a model of such data.

        Raises `TypeError` for images of another type and `ValueError` for values outside; of a type that can hold no others,
        such as uint8 for 256 levels, the values are not looked at.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"`images` are a {type(images).__name__}, but must be a tensor (B, C, *size).")
        if images.ndim == 0 or len(images) == 0:
            raise ValueError(f"`images` have the shape {tuple(images.shape)}, but must be (B, C, *size), with at least one.")
        if images.is_floating_point() and self.unit is NATS_PER_DIM:
            return images.to(self._dtype)
        if self.num_levels is None:
            raise TypeError(f"This is a model of real-valued data, but `images` are {images.dtype}: scale them first.")
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"`images` must be integers in [0, {self.num_levels}), but they are {images.dtype}.")
        limits = torch.iinfo(images.dtype)
        if limits.min < 0 or limits.max >= self.num_levels:
            low, high = images.long().aminmax()
            if low < 0 or high >= self.num_levels:
                raise ValueError(
                    f"`images` must be integers in [0, {self.num_levels}), but they run from {low} to {high}: give the"
                    " `num_levels` that they have, or integers before any normalisation."
                )
        if self.vae is not None:
            channels = self.vae.config.get("in_channels", images.shape[1])
            if images.ndim != 4 or images.shape[1] != channels:
                raise ValueError(
                    f"`images` have the shape {tuple(images.shape)}, but the autoencoder takes (B, {channels}, H, W)."
                )
            return encode(self.vae, scale_to_unit(images, self.num_levels), generator).to(self._dtype)
        return self._level(images.to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        """The denoiser's, but float32 at least."""
        return torch.promote_types(compute_dtype(self.unet), torch.float32)

    def _check_shape(self, images: Tensor, x: Tensor) -> None:
        """Raise `ValueError` unless the data are `(B, *shape)` as the denoiser's configuration, if any, says."""
        expected = sample_shape(self.unet)
        if expected is not None and tuple(x.shape[1:]) != expected:
            latents = "" if x.shape == images.shape else f", and so latents of {tuple(x.shape[1:])}"
            raise ValueError(
                f"`images` have the shape {tuple(images.shape)}{latents}, but this is a model of (C, *size) = {expected}."
            )

    def _level(self, v: Tensor) -> Tensor:
        return (2 * v + 1) / self.num_levels - 1

    def prior(self, x: Tensor, reduction: str = "sum") -> Tensor:
        """Prior matching, `KL(q(z_1|x) || N(0, I))`, `(B,)`, in nats; without reduction shaped as `x`."""
        _, gamma_1 = self.noise_schedule.end_points()
        return REDUCTIONS[reduction](gaussian.prior_kl(x, gamma_1))

    def reconstruction(self, images: Tensor, eps: Tensor, reach: int | None = None, reduction: str = "sum") -> Tensor:
        """`-log p(x|z_0)` at `z_0 = alpha_0 x + sigma_0 eps`, `(B,)`, in nats; without reduction shaped as `eps`.

        An element of an integer image has level v with probability `p(v|z_0) ∝ N(z_0; alpha_0 x_v, sigma_0²)` (section 3.3).
        Normalised over all levels k this is `-log p = log Σ_k exp(d (eps - d/2))`. Here `d = (k - v) / width`, and `width` is
        the standard deviation of `z_0 / alpha_0` in levels. Only levels near `v + width eps` contribute: the sum goes as far as
        `reach` to either side, which is computed unless it is given.

        For real-valued data `p(x|z_0) = N(x; z_0 / alpha_0, exp(gamma_0) I)`. The expectation of its `-log p` over `eps` is
        known, `½ log(2πe) + ½ gamma_0` an element, and is returned.
        """
        gamma_0, _ = self.noise_schedule.end_points()
        if self.unit is NATS_PER_DIM:
            return REDUCTIONS[reduction](0.5 * (math.log(2 * math.pi * math.e) + gamma_0).expand_as(eps))
        reach = self._reach(eps.dtype) if reach is None else reach
        width = self._width(gamma_0)
        count = min(2 * reach + 1, self.num_levels)
        v = images.to(eps.dtype)
        first = (v + width.detach() * eps - reach).round().clamp(0, self.num_levels - count)
        steps = torch.arange(count, device=eps.device).reshape(-1, *[1] * eps.ndim)
        d = (first - v + steps) / width
        return REDUCTIONS[reduction](torch.logsumexp(d * torch.sub(eps, d, alpha=0.5), 0))

    def _width(self, gamma_0: Tensor) -> Tensor:
        """The noise of `z_0 / alpha_0` in levels of an image."""
        return self.num_levels / 2 * torch.exp(gamma_0 / 2)

    @torch.no_grad()
    def _reach(self, dtype: torch.dtype) -> int:
        """How many levels to either side contribute to the decoder's sum in a given precision.

        For a compiler, which fuses the sum, all do. On an accelerator this waits for the device, so [`~VDM.forward`] asks
        before it queues anything.
        """
        if self.unit is NATS_PER_DIM:
            return 0
        if torch.compiler.is_compiling():
            return self.num_levels
        negligible = math.log(16 / torch.finfo(dtype).eps)  # below eps even when summed, and seen from between two levels
        width = self._width(self.noise_schedule.end_points()[0]).item()
        reach = (math.sqrt(1 + 8 * negligible * width**2) - 1) / 2
        return math.ceil(reach) if reach < self.num_levels else self.num_levels  # so also when it is not a number

    def noise_level(self, times: Tensor) -> NoiseLevel:
        """
        The noise level at `times`, `(B,)`; in discrete time they are rounded up to the chain.

        In continuous time only the end points of a schedule matter to the bound. What lies between them matters to the variance
        of the estimate L, so that is what the interior is trained to reduce: it descends the mean of `L²` (appendix I.2), whose
        gradient for each image is `2 L ∇L`, from the same backward pass. A weighting makes L the weighted estimate.
        """
        if self.num_timesteps is None:
            gamma_t, slope, interior = self.noise_schedule.with_interior(times)
            return NoiseLevel(gamma_t, 0.5 * slope, interior)
        rounding = 2 * torch.finfo(times.dtype).eps  # so that a time i/T means step i
        i = (times * self.num_timesteps * (1 - rounding)).ceil().clamp(min=1)
        gamma_s, gamma_t = self.noise_schedule(torch.stack([i - 1, i]) / self.num_timesteps)
        return NoiseLevel(gamma_t, self.num_timesteps * gaussian.denoising_kl_weight(gamma_s, gamma_t))

    def diffusion(
        self, x: Tensor, level: NoiseLevel, eps: Tensor, condition: Condition | None = None, reduction: str = "sum"
    ) -> Tensor:
        """Denoising matching at `z_t = alpha_t x + sigma_t eps`, `(B,)`, in nats: its expectation over times is the term.

        Without reduction it is shaped as `x`.

        `½ γ'(t) ||eps - eps_hat||²` in continuous time (section 5), `½ T expm1(γ(t) - γ(s)) ||eps - eps_hat||²` for T steps
        (section 4); with an error profile, [`~gaussian.reverse_kl`] for T steps.
        """
        if self.error_profile is None:
            error, scale = self._output_error(x, level.gamma, eps, condition)
            squares = REDUCTIONS[reduction](error**2)
            return gaussian.expand(level.factor * scale**2, squares) * squares
        step = 2 / self.num_timesteps * level.factor[:, None]  # expm1(gamma_t - gamma_s)
        squares = self.error_profile.coordinates(self.residual(x, level.gamma, eps, condition)) ** 2
        kl = gaussian.reverse_kl(step, squares, self.error_profile(level.gamma))
        return self.num_timesteps * REDUCTIONS[reduction](kl.reshape(x.shape))

    def residual(self, x: Tensor, gamma_t: Tensor, eps: Tensor, condition: Condition | None = None) -> Tensor:
        """`eps - eps_hat` at `z_t = alpha_t x + sigma_t eps`, shaped as `x`, whatever the denoiser predicts."""
        error, scale = self._output_error(x, gamma_t, eps, condition)
        return gaussian.expand(scale, error) * error

    def _output_error(self, x: Tensor, gamma_t: Tensor, eps: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """The error of the denoiser's output, and the factor `(B,)` that makes it one of `eps`."""
        output = self.denoise(gaussian.diffuse(x, eps, gamma_t), gamma_t, condition)
        error = gaussian.target(self.prediction_type, x, eps, gamma_t) - output
        return error, gaussian.epsilon_error_scale(self.prediction_type, gamma_t)

    def denoise(self, z_t: Tensor, gamma_t: Tensor, condition: Condition | None = None) -> Tensor:
        """The denoiser's output at `z_t` `(B, C, *size)` of noise level `gamma_t` `(B,)`, in the dtype of `z_t`.

        A denoiser with learned variances (Improved DDPM) has further channels. They are dropped: the schedule gives variances.
        """
        timestep = self.timestep_map(gamma_t)
        return predict(self.unet, z_t, timestep, condition)[:, : z_t.shape[1]]

    def in_steps(self, gammas: Sequence[float], error_profile: ErrorProfile | None = None) -> "VDM":
        """The model in discrete time, on the chain gamma_0, ..., gamma_T, with optimal variances by a profile; it shares the
        denoiser and all else."""
        return VDM(
            self.unet,
            TableSchedule(list(gammas)).to(self.noise_schedule.device),
            self.prediction_type,
            self.num_levels,
            num_timesteps=len(gammas) - 1,
            timestep_map=self.timestep_map,
            vae=self.vae,
            class_names=self.class_names,
            error_profile=error_profile,
            prompt_encoder=self.prompt_encoder,
        )

    def to_scheduler(self) -> VDMScheduler:
        """A scheduler with the present state of the noise schedule, which clips as that of the model's origin does, if any."""
        scheduler = None if self.origin is None else VDMScheduler.from_config(self.origin.scheduler.config)
        options = {} if scheduler is None else {name: scheduler.config[name] for name in STEP_OPTIONS}
        options |= {"prediction_type": self.prediction_type, "spacing": "timestep"}
        return VDMScheduler.from_noise_schedule(self.noise_schedule, **options, **self.timestep_map.config)

    def to_pipeline(self) -> "VDMPipeline":
        """A pipeline that shares the denoiser and has the present state of the noise schedule."""
        of_text = {} if self.prompt_encoder is None else self.prompt_encoder.pipeline_arguments
        return diffusers.VDMPipeline(
            self.unet,
            self.to_scheduler(),
            self.vae,
            num_levels=self.num_levels,
            id2label=self._id2label(),
            **of_text,
        )

    def to_original_pipeline(self) -> DiffusionPipeline:
        """
        As [`~VDM.to_pipeline`], but of the class that the model came from, with all its other components.

        The scheduler is a [`VDMScheduler`]. That of another class samples the model too, by the chain that it was trained on:
        `DDIMScheduler.from_config(pipe.scheduler.config)`.
        """
        if self.origin is None or isinstance(self.origin, diffusers.VDMPipeline):
            return self.to_pipeline()
        pipeline = copy.copy(self.origin)
        pipeline.register_modules(**{denoiser_name(pipeline): self.unet, "scheduler": self.to_scheduler()})
        if "id2label" in inspect.signature(type(pipeline)).parameters:
            pipeline.register_to_config(id2label=self._id2label())
        return pipeline

    def _id2label(self) -> dict[int, str] | None:
        return None if self.class_names is None else dict(enumerate(self.class_names))

    @classmethod
    def from_pipeline(
        cls,
        pipeline: DiffusionPipeline,
        noise_schedule: NoiseSchedule | type[NoiseSchedule] | None = None,
        num_timesteps: int | None = None,
        weighting: str = "elbo",
        error_profile: ErrorProfile | None = None,
    ) -> "VDM":
        """The model that a pipeline samples, sharing its denoiser.

        Any pipeline that denoises images or their latents from noise alone, by a β-chain or as a VDM: [`VDMPipeline`],
        [`~diffusers.DDPMPipeline`], [`~diffusers.LDMPipeline`], [`~diffusers.DiTPipeline`],
        [`~diffusers.StableDiffusionPipeline`], [`~diffusers.StableDiffusionXLPipeline`],
        [`~diffusers.PixArtAlphaPipeline`], ... Its text encoders are the `prompt_encoder`, see [`prompt_encoder_of`]; what else
        it has is saved with the model.

        Its noise schedule is the scheduler's table or chain, fixed, unless another is given to train on with; a class is one
        that starts there, by [`~NoiseSchedule.from_schedule`].

        Raises `ValueError` if it needs another because the chain ends in pure noise, for a scheduler that was not made for the
        model, and for a denoiser that is told of another image, for inpainting or super-resolution.
        """
        unet = denoiser_of(pipeline)
        if pipeline.config.get("trained_for") is not None:
            check_scheduler(pipeline.scheduler, pipeline.config.trained_for)
        scheduler = VDMScheduler.from_config(pipeline.scheduler.config)
        if not isinstance(noise_schedule, NoiseSchedule):
            start = schedule_of(scheduler)
            if start is None:
                _refuse_pure_noise(scheduler.config.prediction_type)
            noise_schedule = start if noise_schedule is None else noise_schedule.from_schedule(start)
        vdm = cls(
            unet,
            noise_schedule,
            prediction_type=scheduler.config.prediction_type,
            num_levels=pipeline.config.get("num_levels", 256),
            num_timesteps=num_timesteps,
            timestep_map=scheduler.timestep_map,
            weighting=weighting,
            vae=autoencoder_of(pipeline),
            class_names=in_order(names_of(pipeline), num_classes(unet)),
            error_profile=error_profile,
            prompt_encoder=prompt_encoder_of(pipeline),
        )
        vdm.origin = pipeline
        return vdm

    def copy(self) -> "VDM":
        """A model with weights of its own, which shares what is not trained and the pipeline that it was made from."""
        return copy.deepcopy(self, {id(shared): shared for shared in (self.vae, self.prompt_encoder, self.origin)})

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Save [`~VDM.to_original_pipeline`], and beside it, in `noise_schedule/`, the schedule as a module to train on."""
        self.to_original_pipeline().save_pretrained(save_directory)
        self.noise_schedule.save_pretrained(os.path.join(save_directory, SCHEDULE))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        num_timesteps: int | None = None,
        weighting: str = "elbo",
        **kwargs,
    ) -> "VDM":
        """
        Load what [`~VDM.save_pretrained`] wrote, from a folder or the Hub; `kwargs` go to the loaders.

        A mere pipeline has no noise schedule of its own: its scheduler's is used, fixed, and a warning says so.

        Raises `OSError` for files that are missing, `ValueError` for files that are not a model's.
        """
        with loading(f"The model {str(pretrained_model_name_or_path)!r}"):
            pipeline = DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
            schedule = saved_schedule(pretrained_model_name_or_path, **kwargs)
            vdm = cls.from_pipeline(pipeline, schedule, num_timesteps, weighting)
        if schedule is None:
            warnings.warn(
                f"{str(pretrained_model_name_or_path)!r} is a pipeline without `{SCHEDULE}/`, as `VDMPipeline.save_pretrained`"
                " writes it: the schedule of its scheduler is used, and can't be learned. Give `VDM.from_pipeline` another, or"
                " save by `VDM.save_pretrained`.",
                stacklevel=2,
            )
        return vdm


def schedule_of(scheduler: VDMScheduler) -> TableSchedule | None:
    """The schedule that a scheduler visits, its table or its chain; `None` for a chain that ends at an infinite gamma."""
    if scheduler.noise_schedule is not None:
        return scheduler.noise_schedule
    gammas = scheduler.timestep_map.gammas
    return None if gammas[-1].isinf() else TableSchedule(gammas.tolist())


def _refuse_pure_noise(prediction_type: str) -> None:
    why = "where gamma is infinite"
    if prediction_type == "epsilon":
        why += " and a denoiser that estimates `epsilon` says nothing of the data"
    raise ValueError(
        f"The chain ends in pure noise (`rescale_betas_zero_snr`), {why}: give a `noise_schedule` whose end points are finite."
    )


def _check_draws(times: Tensor, noise: Tensor, x: Tensor) -> None:
    for name, draws in (("times", times), ("noise", noise)):
        if not isinstance(draws, Tensor):
            raise TypeError(f"`{name}` are a {type(draws).__name__}, but must be a tensor.")
    if times.shape != x.shape[:1] or not times.is_floating_point():
        raise ValueError(
            f"`times` must be {len(x)} numbers in [0, 1], one an image, but are {times.dtype} of shape {tuple(times.shape)}."
        )
    if noise.shape != (2, *x.shape):
        raise ValueError(f"`noise` must have the shape {(2, *x.shape)}, but has {tuple(noise.shape)}.")
    if times.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = times.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"`times` must lie in [0, 1], but run from {low:.4g} to {high:.4g}: 1 is noise, not 1000.")


def scale_gradients(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply what flows back into each of the tensors, in the next backward pass, by a factor of their shape."""
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: gradient * factor)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, without dropout, and at the end back into the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def stratified_times(u: Tensor, batch_size: int) -> Tensor:
    """`(u + k / batch_size) mod 1` for k = 0, ..., batch_size - 1, shape `(batch_size,)`: one uniform draw `u`, spread evenly.

    Every time is uniform on [0, 1), so an average over the batch is unbiased, at a fraction of the variance (appendix I.1).
    """
    return (u + torch.arange(batch_size, device=u.device) / batch_size) % 1
