"""The latents of a VDM of T steps as whole numbers, and the distributions of each by which they are coded."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import gaussian
from ..conditioning import Condition
from ..error_profiles import along
from ..precision import compute_dtype
from ..vdm import VDM
from .ans import MAX_BIN, Levels, Normal


class CodedLatents:
    """
    The chain z_0, ..., z_T of a model in whole numbers: `z_i = Aᵀ (w_i n_i)`, w_i the width of a bin.

    Bins depend on neither an image nor a latent, so that a latent can be popped before the one before it is pushed. A is the
    basis of the error profile, in which the optimal variances are those of single numbers; q is the same in any.

    Args:
        vdm ([`VDM`]): In pixel space, on any device, in evaluation mode. Reverse steps have the variances that are optimal by
            its error profile, or without one q's.
        gammas (`Sequence[float]`): gamma_0, ..., gamma_T, increasing.
        bin_precision (`int`): A bin is `2^-bin_precision` of the smallest standard deviation that its latent is coded with.
        shape (`tuple[int, ...]`): `(C, *size)` of an image.

    Raises `ValueError` for a chain whose latents have more bins than can be counted.
    """

    def __init__(self, vdm: VDM, gammas: Sequence[float], bin_precision: int, shape: tuple[int, ...]):
        self.vdm, self.shape = vdm, shape
        self.prompt_encoder = None if vdm.prompt_encoder is None else vdm.prompt_encoder.without_memory()
        self.gammas = torch.tensor(gammas, dtype=torch.float64)
        self.profile = None if vdm.error_profile is None else copy.deepcopy(vdm.error_profile).double().cpu()
        self.axes = None if self.profile is None else self.profile.axes
        self.num_dims = int(np.prod(shape))
        self.bins = self._deviations().amin(0) / 2**bin_precision
        if (largest := self.num_dims**0.5 + 100) / self.bins.min() > MAX_BIN:
            raise ValueError(
                f"The chain begins at gamma = {gammas[0]:.4g}, where latents up to {largest:.4g} would have bins of"
                f" {self.bins.min():.4g}, which are too many to count: let it begin at more noise, or lower `bin_precision`."
            )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.gammas) - 1

    def _deviations(self) -> Tensor:
        """Those of `q(z_i|z_{i-1})` and `q(z_i|z_{i+1}, x)`, `(2, T + 1)`; at the ends of `q(z_0|x)` and `p(z_T)`."""
        low, high = self.gammas[:-1], self.gammas[1:]
        forward = torch.cat([torch.sigmoid(self.gammas[:1]), gaussian.transition(low, high)[1]])
        backward = torch.cat([torch.sigmoid(low) * -torch.expm1(low - high), torch.ones(1, dtype=torch.float64)])
        return torch.stack([forward, backward]).sqrt()

    def given_image(self, image: Tensor) -> Normal:
        """`q(z_0|x)` of an integer image `(C, *size)`."""
        x = along(self.axes, self.vdm.scale(image[None]).double().cpu())[0]
        gamma_0 = self.gammas[0]
        return self._normal(0, gaussian.alpha(gamma_0) * x, gaussian.sigma(gamma_0))

    def given_previous(self, i: int, numbers: np.ndarray) -> Normal:
        """`q(z_i|z_{i-1})`."""
        scale, variance = gaussian.transition(self.gammas[i - 1], self.gammas[i])
        return self._normal(i, scale * self._values(i - 1, numbers), variance.sqrt())

    def given_next(self, i: int, numbers: np.ndarray, condition: Condition) -> Normal:
        """`p(z_{i-1}|z_i)`, by the denoiser; `FloatingPointError` if what it says is not finite."""
        gamma_s, gamma_t = self.gammas[i - 1], self.gammas[i]
        coordinates = self._values(i, numbers)
        z_t = self._latent(coordinates)
        output = self._denoised(z_t, gamma_t, condition)
        x = gaussian.predicted_sample(self.vdm.prediction_type, output, z_t, gamma_t)
        mean, variance = gaussian.posterior(along(self.axes, x)[0], coordinates, gamma_s, gamma_t)
        if not mean.isfinite().all():
            raise FloatingPointError(f"The denoiser's output is not finite at gamma = {gamma_t:.4g}: check its weights.")
        if self.profile is not None:
            variance = variance * self.profile.widening(gamma_s, gamma_t)
        return self._normal(i - 1, mean, variance.sqrt())

    def last(self) -> Normal:
        """`p(z_T)`, standard normal."""
        return self._normal(self.num_steps, torch.zeros(self.num_dims, dtype=torch.float64), torch.ones(()))

    def image_given_first(self, numbers: np.ndarray) -> Levels:
        """`p(x|z_0)`, the decoder of the bound (section 3.3)."""
        gamma_0, num_levels = self.gammas[0], self.vdm.num_levels
        x = self._latent(self._values(0, numbers)) / gaussian.alpha(gamma_0)
        center = (x.flatten() + 1) * (num_levels / 2) - 0.5
        return Levels(center.numpy(), num_levels / 2 * torch.exp(gamma_0 / 2).item(), num_levels)

    def initial_bits(self) -> float:
        """How many bits have to be there before an image is pushed: those of z_0 and of z_1 given z_0, with a margin for draws
        that take more than they do in expectation."""
        stds = self._deviations()[0, :2] / self.bins[:2]
        expected = self.num_dims * (stds * (2 * torch.pi * torch.e) ** 0.5).log2().sum().item()
        return expected + 4 * (2 * self.num_dims) ** 0.5 + 64

    def _values(self, i: int, numbers: np.ndarray) -> Tensor:
        """Coordinates of z_i, float64 `(D,)`."""
        return torch.from_numpy(numbers).double() * self.bins[i]

    def _normal(self, i: int, mean: Tensor, std: Tensor) -> Normal:
        std = (std.double() / self.bins[i]).expand(self.num_dims)
        return Normal((mean / self.bins[i]).numpy(), np.ascontiguousarray(std.numpy()))

    def _latent(self, coordinates: Tensor) -> Tensor:
        """The latent `(1, C, *size)` of coordinates `(D,)`, float64."""
        z = coordinates if self.axes is None else coordinates @ self.axes
        return z.reshape(1, *self.shape)

    def _denoised(self, z_t: Tensor, gamma_t: Tensor, condition: Condition) -> Tensor:
        """The denoiser's output for one latent, float64 on the CPU."""
        device, dtype = self.vdm.noise_schedule.device, torch.promote_types(compute_dtype(self.vdm.unet), torch.float32)
        return self.vdm.denoise(z_t.to(device, dtype), gamma_t.to(device, dtype)[None], condition).double().cpu()
