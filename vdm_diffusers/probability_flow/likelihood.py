"""The likelihood of a batch under the probability-flow ODE."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning import Condition
from ..precision import highest_precision
from ..vdm import VDM
from .dequantization import DEQUANTIZATIONS
from .ode import exact, hutchinson, integrate


TRACES = ("rademacher", "gaussian", "exact")
"""How the divergence is computed: estimated with a probe of signs or of normals (Hutchinson), or exactly."""


class LogLikelihood(NamedTuple):
    """Of each image.

    Attributes:
        nats (`Tensor` of shape `(B,)`): The estimate of `log P(v)`, float64.
        num_evaluations (`Tensor` of shape `(B,)`): How often the denoiser was evaluated, over all importance samples.
    """

    nats: Tensor
    num_evaluations: Tensor


@torch.no_grad()
def log_likelihood(
    vdm: VDM,
    images: Tensor,
    condition: Condition | None = None,
    dequantization: str = "decoder",
    num_importance_samples: int = 1,
    trace: str = "rademacher",
    tolerance: float = 1e-5,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> LogLikelihood:
    r"""
    An estimate of the log-probability of integer images, `log P(v)`, `P(v) = ∫ P(v|z_0) p(z_0) dz_0`.

    `p(z_0)` is the density that the flow carries the prior `N(0, I)` to, from `gamma(1)` to `gamma(0)`. One draw gives
    `log w = log p(z_0) + log P(v|z_0) - log q(z_0|v)`, whose expectation is a lower bound; K draws give the log of their mean,
    `logsumexp_k(log w) - log K`, a tighter one. It is a bound only with `trace="exact"`: the noise of an estimated
    trace raises it without cause, for large K by about half the variance of that noise.

    Args:
        vdm ([`VDM`]): Only its denoiser, prediction type, `num_levels` and the end points of its schedule matter.
        images (`Tensor` of shape `(B, C, *size)`): Integers in `[0, num_levels)`, of an integer dtype.
        condition (`Condition`, *optional*): What the denoiser is told besides.
        dequantization (`str`, defaults to `"decoder"`): A key of `DEQUANTIZATIONS`.
        num_importance_samples (`int`, defaults to 1): K, each with a trajectory and a probe of its own.
        trace (`str`, defaults to `"rademacher"`): One of `TRACES`; with a probe, one for the whole trajectory.
        tolerance (`float`, defaults to 1e-5): Of the solver, see [`~probability_flow.integrate`].
        generator (`torch.Generator` or a list of them, one an image, *optional*): Of the draws, on the CPU.

    Raises:
        `ValueError`: for options that there are not.
        `FloatingPointError`: when the denoiser's output is not finite.
    """
    _check_options(dequantization, num_importance_samples, trace)
    log_weights, num_evaluations = [], torch.zeros(len(images), dtype=torch.long)
    for _ in range(num_importance_samples):
        z_0, log_weight = DEQUANTIZATIONS[dequantization](vdm, images, _draw(torch.rand, images, generator))
        divergence = exact if trace == "exact" else hutchinson(_probe(trace, images, generator))
        flow = integrate(vdm, z_0, *vdm.noise_schedule.end_points(), condition, divergence, tolerance)
        log_prior = -0.5 * (flow.z**2 + math.log(2 * math.pi)).flatten(1).sum(1)
        log_weights.append(log_prior + flow.log_det + log_weight)
        num_evaluations += flow.num_evaluations.cpu()
    nats = torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(num_importance_samples)
    return LogLikelihood(nats, num_evaluations)


def _probe(trace: str, images: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    if trace == "gaussian":
        return _draw(torch.randn, images, generator)
    return (2 * _draw(torch.rand, images, generator) - 1).sign()


def _draw(distribution, images: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Draws shaped as `images` and on their device, made on the CPU in float64: for a list of generators, image by image."""
    if isinstance(generator, list):
        draws = torch.stack([distribution(images.shape[1:], generator=source, dtype=torch.float64) for source in generator])
    else:
        draws = distribution(images.shape, generator=generator, dtype=torch.float64)
    return draws.to(images.device, highest_precision(images.device))


def _check_options(dequantization: str, num_importance_samples: int, trace: str) -> None:
    for name, value, known in (("dequantization", dequantization, DEQUANTIZATIONS), ("trace", trace, TRACES)):
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}, but must be one of {', '.join(map(repr, known))}.")
    if num_importance_samples < 1:
        raise ValueError(f"`num_importance_samples` is {num_importance_samples}, but must be at least 1.")
