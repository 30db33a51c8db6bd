"""Dequantisation: integer images as latents `z_0` with a density, each level spread over its own bin and no further.

    log P(v) = log ∫_bin p(z_0) dz_0 >= E_q[log p(z_0) - log q(z_0|v)]

for any density q on the bin. With K draws the mean of `p / q` in the place of one is nearer to `P(v)`: its log is a bound
that rises in K and tends to `log P(v)` (Burda et al. 2016).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import gaussian


Dequantization = Callable[[Tensor, float, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(x, half_width, gamma_0, u) -> (z_0, log q(z_0|v))`: latents, shaped as the data `x` `(B, C, H, W)`, the midpoints of
their bins, and a density of each image, `(B,)`, in nats; `u`, shaped as `x`, is uniform on (0, 1)."""


def uniform(x: Tensor, half_width: float, gamma_0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`z_0 = alpha_0 (x + (2u - 1) half_width)`."""
    alpha = gaussian.alpha(gamma_0)
    log_q = -torch.log(2 * half_width * alpha) * x[0].numel()
    return alpha * (x + (2 * u - 1) * half_width), log_q.expand(len(x))


def truncated_normal(x: Tensor, half_width: float, gamma_0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`z_0 = alpha_0 x + sigma_0 eps`, as in the diffusion itself but with `eps` cut off where the bin ends.

    That is `q(z_0|x)` conditioned on the bin, so the flow gets latents as the denoiser knows them (Zheng et al. 2023).
    """
    alpha, sigma = gaussian.alpha(gamma_0), gaussian.sigma(gamma_0)
    limit = half_width * alpha / sigma
    mass = torch.erf(limit / math.sqrt(2))
    eps = math.sqrt(2) * torch.erfinv((2 * u - 1) * mass)
    eps = torch.clamp(eps, -limit, limit)  # rounding may reach infinity
    log_q = -0.5 * eps**2 - torch.log(math.sqrt(2 * math.pi) * mass * sigma)
    return alpha * x + sigma * eps, log_q.flatten(1).sum(1)


DEQUANTIZATIONS: dict[str, Dequantization] = {"truncated_normal": truncated_normal, "uniform": uniform}
"""By the names that options have."""
