"""The variational bound in the convention of DDPM, in which most published bits per dimension of stock models are.

    -log p(x) <= KL(q(x_T|x) || N(0, I)) + Σ_t KL(q(x_{t-1}|x_t, x) || p(x_{t-1}|x_t)) - E log p(x|x_1)

(Ho et al. 2020, equation 5), term by term as Nichol & Dhariwal 2021 evaluate it. It differs from [`VDM`]'s in three things: the
data are `x = 2 v / (num_levels - 1) - 1`, the outer levels at -1 and 1; `p(x_{t-1}|x_t)` has a variance of its own, fixed or
learned, also where `t = 1` leads to x; and there `p(x|x_1)` is that Gaussian, integrated over the bin of each level.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.data import Dataset

from .. import gaussian
from ..batching import evaluation_batch_size
from ..conditioning import Condition
from ..denoisers import predict
from ..pixel_space import check_pixel_space
from ..precision import FullPrecisionModule
from ..scheduling_vdm import VDMScheduler
from ..units import LOG_2
from ..vdm import evaluating
from .bound import shuffled_times
from .estimates import Estimate, check_sizes
from .per_image import for_each_image, generators


VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned", "learned_range")
"""`p(x_{t-1}|x_t)` has the variance of `q(x_{t-1}|x_t, x)`; β_t; what the denoiser says; or between the two as it says."""


class Prediction(NamedTuple):
    """The denoiser's estimate of `x` and `log` of the variance of `p(x_{t-1}|x_t)`, both broadcastable to `(B, C, *size)`."""

    x: Tensor
    log_variance: Tensor


class Chain(FullPrecisionModule):
    """What a β-chain's gammas `(T,)` say, of each index; never in less than float32, whatever the denoiser is moved to.

    Attributes:
        gammas, gammas_before (`Tensor`): Of the index and of the one below it, where the lowest has `x` itself.
        log_posterior, log_beta (`Tensor`): `log` of the variance of `q(x_{t-1}|x_t, x)` and of β_t.
    """

    def __init__(self, gammas: Tensor):
        super().__init__()
        before = torch.cat([gammas.new_tensor([-torch.inf]), gammas[:-1]])
        log_posterior = (torch.sigmoid(before) * -torch.expm1(before - gammas)).log()
        log_beta = gaussian.transition(before, gammas)[1].log()
        values = {"gammas": gammas, "gammas_before": before, "log_posterior": log_posterior, "log_beta": log_beta}
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)


class DDPM(nn.Module):
    """
    A model of a β-chain, with DDPM's bound. Index t = 0, ..., T - 1 of the chain is the latent x_{t+1} of the paper.

    Args:
        unet (`nn.Module`): The denoiser, called as `unet(z_t, timestep=t, return_dict=False, **condition)[0]`.
        gammas (`Tensor` of shape `(T,)`): `log((1 - ᾱ_t) / ᾱ_t)` of the chain, increasing.
        prediction_type (`str`, defaults to `"epsilon"`): What it estimates.
        variance_type (`str`, defaults to `"fixed_small"`): One of `VARIANCE_TYPES`; a learned one takes further channels.
        clip_denoised (`bool`, defaults to `True`): Clip the estimate of `x` to [-1, 1]; published figures do.
        num_levels (`int`, defaults to 256): Images are integers in `[0, num_levels)`.
    """

    def __init__(
        self,
        unet: nn.Module,
        gammas: Tensor,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
        clip_denoised: bool = True,
        num_levels: int = 256,
    ):
        super().__init__()
        gaussian.check_prediction_type(prediction_type)
        if variance_type not in VARIANCE_TYPES:
            raise ValueError(f"`variance_type` is {variance_type!r}, but must be one of {', '.join(VARIANCE_TYPES)}.")
        self.unet, self.prediction_type, self.variance_type = unet, prediction_type, variance_type
        self.clip_denoised, self.num_levels = clip_denoised, num_levels
        self.chain = Chain(gammas)

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline, variance_type: str | None = None, clip_denoised: bool = True) -> "DDPM":
        """The model that a pipeline samples, sharing its denoiser; `variance_type` is by default its scheduler's.

        Raises `ValueError` for pipelines that are not of pixels or not of a β-chain, and for a contradictory `variance_type`.
        """
        check_pixel_space(pipeline)
        config = pipeline.scheduler.config
        gammas = getattr(VDMScheduler.from_config(config).timestep_map, "gammas", None)
        if gammas is None:
            raise ValueError("A VDM is no model of a β-chain, which DDPM's bound is about: evaluate its own bound.")
        variance_type = variance_type or (config.get("variance_type") or "fixed_small").removesuffix("_log")
        channels = pipeline.unet.config.in_channels
        expected = channels * (2 if variance_type.startswith("learned") else 1)
        found = pipeline.unet.config.out_channels or channels
        if found != expected:
            raise ValueError(
                f"`variance_type` is {variance_type!r}, for which the denoiser would have {expected} output channels, but it"
                f" has {found}: learned variances take as many as an image, fixed ones none."
            )
        num_levels = pipeline.config.get("num_levels", 256)
        return cls(pipeline.unet, gammas, config.prediction_type, variance_type, clip_denoised, num_levels)

    def scale(self, images: Tensor) -> Tensor:
        """Integer images as data in [-1, 1], `x = 2 v / (num_levels - 1) - 1`, in float32 at least."""
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"`images` must be integers in [0, {self.num_levels}), but they are {images.dtype}.")
        low, high = (value.item() for value in images.aminmax())
        if low < 0 or high >= self.num_levels:
            raise ValueError(f"`images` must be integers in [0, {self.num_levels}), but they run from {low} to {high}.")
        dtype = torch.promote_types(next(self.unet.parameters()).dtype, torch.float32)
        return images.to(dtype) * (2 / (self.num_levels - 1)) - 1

    def prior(self, x: Tensor) -> Tensor:
        """`KL(q(x_T|x) || N(0, I))`, `(B,)`, in nats."""
        return gaussian.prior_kl(x, self.chain.gammas[-1].to(x.dtype)).flatten(1).sum(1)

    def denoising(self, x: Tensor, index: Tensor, eps: Tensor, condition: Condition | None = None) -> Tensor:
        """`KL(q(x_{t-1}|x_t, x) || p(x_{t-1}|x_t))` at indices `(B,)` above 0 and `z_t = alpha_t x + sigma_t eps`, in nats.

        Both means are that of `q`, one with the estimate in the place of `x`.
        """
        predicted = self.predict(x, index, eps, condition)
        gamma_s, gamma_t = (gammas[index] for gammas in (self.chain.gammas_before, self.chain.gammas))
        factor = (gaussian.alpha(gamma_s) * -torch.expm1(gamma_s - gamma_t)).to(x.dtype)
        square = (gaussian.expand(factor, x) * (x - predicted.x)) ** 2
        log_ratio = gaussian.expand(self.chain.log_posterior[index].to(x.dtype), x) - predicted.log_variance
        kl = 0.5 * (torch.expm1(log_ratio) - log_ratio + square * torch.exp(-predicted.log_variance))
        return kl.flatten(1).sum(1)

    def reconstruction(self, x: Tensor, eps: Tensor, condition: Condition | None = None) -> Tensor:
        """`-log p(x|x_1)` at `x_1 = alpha_0 x + sigma_0 eps`, `(B,)`, in nats: a Gaussian, of which a level has the integral
        over its bin, `1 / (num_levels - 1)` to either side, and the outer levels also what lies beyond."""
        predicted = self.predict(x, torch.zeros(len(x), dtype=torch.long, device=x.device), eps, condition)
        difference, scale = (x - predicted.x).double(), torch.exp(-0.5 * predicted.log_variance.double())
        half_width = 1 / (self.num_levels - 1)
        upper = torch.where(x > 1 - half_width, torch.inf, (difference + half_width) * scale)
        lower = torch.where(x < -1 + half_width, -torch.inf, (difference - half_width) * scale)
        return -_log_normal_mass(lower, upper).flatten(1).sum(1)

    def predict(self, x: Tensor, index: Tensor, eps: Tensor, condition: Condition | None) -> Prediction:
        """What the denoiser says at `z_t` of the indices `(B,)`."""
        gamma_t = self.chain.gammas[index].to(x.dtype)
        z_t = gaussian.diffuse(x, eps, gamma_t)
        output = predict(self.unet, z_t, index, condition)
        estimate, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]
        estimate = gaussian.predicted_sample(self.prediction_type, estimate, z_t, gamma_t)
        estimate = estimate.clamp(-1, 1) if self.clip_denoised else estimate
        return Prediction(estimate, self._log_variance(index, variance))

    def _log_variance(self, index: Tensor, output: Tensor) -> Tensor:
        """At index 0, where `q` has no variance, the small one is that of index 1, and so is the large one if it is fixed."""
        small = gaussian.expand(self.chain.log_posterior[index.clamp(min=1)].to(output.dtype), output)
        large = gaussian.expand(self.chain.log_beta[index].to(output.dtype), output)
        if self.variance_type == "fixed_small":
            return small
        if self.variance_type == "fixed_large":
            return torch.where(gaussian.expand(index == 0, output), small, large)
        if self.variance_type == "learned":
            return output
        fraction = (output + 1) / 2
        return fraction * large + (1 - fraction) * small


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """`log(Φ(upper) - Φ(lower))`, elementwise, precise in both tails."""
    flipped = lower + upper > 0  # in the upper tail, mirrored
    lower, upper = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))


@dataclass(kw_only=True)
class DDPMBound(Estimate):
    """The negative variational bound of a data set in DDPM's convention, everything in bits per dimension.

    Its errors and its variance are an [`Estimate`]'s.

    Attributes:
        prior, reconstruction, diffusion (`float`): `L_T`, `L_0` and the sum of `L_1` to `L_{T-1}`.
        timestep_terms (`list[float]`): `L_0, ..., L_{T-1}` one by one, `None` where no index was drawn.
    """

    prior: float
    reconstruction: float
    diffusion: float
    timestep_terms: list[float | None]


@torch.no_grad()
def ddpm_bound(
    ddpm: DDPM,
    dataset: Dataset,
    num_repeats: int = 1,
    num_indices: int | None = None,
    batch_size: int | None = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
) -> DDPMBound:
    """
    Estimate the bound with every image used exactly `num_repeats` times.

    Args:
        ddpm ([`DDPM`]): On `device`; evaluated without dropout.
        num_indices (`int`, *optional*):
            How many of the `T - 1` denoising terms to take for an image and repeat, their indices stratified over the chain and
            over the images. Defaults to all of them, as in published figures. `L_0` is always taken.
        dataset, num_repeats, batch_size, seed, device, processes, description: As in [`variational_bound`].

    Raises:
        `ValueError`: for `num_indices` outside `[1, T - 1]`, for fewer than two images, and for `num_repeats < 1`.
        `FloatingPointError`: when a term is not finite, naming the image and the timestep.
    """
    check_sizes(len(dataset), num_repeats)
    highest = len(ddpm.chain.gammas) - 1
    num_indices = highest if num_indices is None else num_indices
    if not 1 <= num_indices <= highest:
        raise ValueError(f"`num_indices` is {num_indices}, but there are {highest} denoising terms to take.")
    offsets = shuffled_times(num_repeats, len(dataset), seed).double()
    chosen = 1 + ((torch.arange(num_indices) + offsets[..., None]) * (highest / num_indices)).long().clamp(max=highest - 1)

    def terms(images: Tensor, condition: Condition, indices: Tensor) -> Tensor:
        """Prior, `L_0` and the terms of the chosen indices, in bits per dimension, `(B, R, 2 + num_indices)`."""
        x, sources, repeats = ddpm.scale(images), generators(seed, indices), []
        for repeat in range(num_repeats):
            columns = [ddpm.prior(x)]
            for step in range(-1, num_indices):
                eps = torch.stack([torch.randn(images.shape[1:], generator=source) for source in sources]).to(x)
                index = torch.zeros_like(indices) if step < 0 else chosen[repeat, indices, step]
                with evaluating(ddpm):
                    if step < 0:
                        column = ddpm.reconstruction(x, eps, condition)
                    else:
                        column = ddpm.denoising(x, index.to(device), eps, condition)
                _check_finite(column, index, indices)
                columns.append(column)
            repeats.append(torch.stack(columns, dim=1) / (x[0].numel() * LOG_2))
        return torch.stack(repeats, dim=1)

    batch_size = batch_size or evaluation_batch_size(ddpm.unet, dataset, device)
    bits = for_each_image(terms, dataset, batch_size, device, processes, description).transpose(0, 1)
    prior, reconstruction, steps = bits[..., 0], bits[..., 1], bits[..., 2:]
    diffusion = steps.mean(2) * highest
    sums = torch.zeros(highest + 1, dtype=torch.float64).index_add(0, chosen.flatten(), steps.flatten())
    counts = torch.bincount(chosen.flatten(), minlength=highest + 1)
    timestep_terms = [reconstruction.mean().item()]
    timestep_terms += [(s / n).item() if n else None for s, n in zip(sums[1:], counts[1:])]
    return DDPMBound.from_repeats(
        prior + reconstruction + diffusion,
        prior=prior.mean().item(),
        reconstruction=reconstruction.mean().item(),
        diffusion=diffusion.mean().item(),
        timestep_terms=timestep_terms,
    )


def _check_finite(values: Tensor, index: Tensor, indices: Tensor) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise FloatingPointError(
            f"The bound of image {indices[bad[0]]} is not finite at timestep {index[bad[0]]}: the denoiser's output there is"
            " NaN, infinite or too large. Evaluate in float32, and check the weights."
        )
