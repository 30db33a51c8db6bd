"""Reverse steps as the linear maps that they are, so that a step costs no arithmetic but that of images."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import gaussian


class StepFactors(NamedTuple):
    """
    Of one step. `x = (x_from_z z_t + x_from_output output) / x_divisor`, and with the `x` that is left after clipping,
    `z_s = alpha_s x + eps_from_z z_t + eps_from_output output + noise`.

    A learned variance scales its fresh noise by itself, from `exp(log_noise - log_noise_slope)` for an output of -1 to
    `exp(log_noise + log_noise_slope)` for one of 1; `noise` then says whether there is any.
    """

    x_from_z: float
    x_from_output: float
    x_divisor: float
    alpha_s: float
    eps_from_z: float
    eps_from_output: float
    noise: float
    log_noise: float = 0.0
    log_noise_slope: float = 0.0

    def learned_noise(self, variance_type: str, output: Tensor) -> Tensor:
        """Standard deviation of the fresh noise, shaped as the denoiser's `output` for it (Nichol & Dhariwal 2021)."""
        if variance_type == "learned":
            return output.sqrt()
        return (self.log_noise + self.log_noise_slope * output).exp()


def ddim_steps(prediction_type: str, gammas_s: Tensor, gammas_t: Tensor, eta: float) -> list[StepFactors]:
    """From `gammas_t` to `gammas_s`, `(n,)`, with a share `eta` of fresh noise: what the formulas make of units."""
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


def ddpm_steps(
    prediction_type: str, gammas_s: Tensor, gammas_t: Tensor, variance_type: str | None, noisy: Tensor
) -> list[StepFactors]:
    """Ancestral steps: the mean of `q(z_s|z_t, x)`, and a variance of that type where `noisy`, `(n,)`, says that there is one.

    The small variance is that of `q(z_s|z_t, x)`, the large one that of `q(z_t|z_s)`; a learned one is any, or between the two.
    """
    steps = ddim_steps(prediction_type, gammas_s, gammas_t, eta=1.0)
    if variance_type in (None, "fixed_small", "fixed_small_log"):
        return steps
    large = gaussian.transition(gammas_s, gammas_t)[1]
    small = (torch.sigmoid(gammas_s) * -torch.expm1(gammas_s - gammas_t)).clamp(min=1e-20)  # DDPM's scheduler takes its log
    noise = noisy.double() if is_learned(variance_type) else noisy * large.sqrt()
    columns = (noise, (large.log() + small.log()) / 4, (large.log() - small.log()) / 4)
    return [
        step._replace(noise=noise, log_noise=log_noise, log_noise_slope=slope)
        for step, noise, log_noise, slope in zip(steps, *(column.tolist() for column in columns))
    ]


def is_learned(variance_type: str | None) -> bool:
    """Whether the denoiser has further channels for variances of that type."""
    return variance_type in ("learned", "learned_range")
