"""Dequantisation: integer images as latents `z_0`, which have a density where images have a probability.

    log P(v) = log ∫ P(v|z_0) p(z_0) dz_0 >= E_q[log p(z_0) + log P(v|z_0) - log q(z_0|v)]

where `P(v|z_0)` says which image a latent is read as. With K draws the mean of `p P / q` in the place of one is nearer to
`P(v)`: its log is a bound that rises in K and tends to `log P(v)` (Burda et al. 2016).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal

from .. import gaussian
from ..precision import highest_precision
from ..vdm import VDM


Dequantization = Callable[[VDM, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(vdm, images, u) -> (z_0, log P(v|z_0) - log q(z_0|v))`: latents, shaped as the integer `images` `(B, C, *size)`, and the
rest of each image's bound but `log p(z_0)`, `(B,)`, in nats, both in float64 where the device has it; `u`, shaped as `images`
and of that dtype, is uniform on (0, 1)."""


def decoder(vdm: VDM, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`z_0 = alpha_0 x + sigma_0 eps` and the `P(v|z_0)` of the variational bound, of which only the other terms change."""
    x, alpha, sigma = _data_and_scales(vdm, images)
    eps = _standard_normal(u)
    log_q = Normal(0, sigma).log_prob(sigma * eps).flatten(1).sum(1)
    return alpha * x + sigma * eps, -vdm.reconstruction(images, eps) - log_q


def truncated_normal(vdm: VDM, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`z_0 = alpha_0 x + sigma_0 eps` with `eps` cut off where the level's bin ends, each latent being read as its bin's level.

    The flow gets latents as the denoiser knows them (Zheng et al. 2023). What it puts into a neighbour's bin is lost: where
    `sigma_0` is not small beside the bins, much.
    """
    x, alpha, sigma = _data_and_scales(vdm, images)
    limit = alpha / (vdm.num_levels * sigma)
    outside = Normal(0, 1).cdf(-limit)
    eps = _standard_normal(outside + u * (1 - 2 * outside)).clamp(-limit, limit)
    log_q = Normal(0, sigma).log_prob(sigma * eps) - torch.log1p(-2 * outside)
    return alpha * x + sigma * eps, -log_q.flatten(1).sum(1)


def uniform(vdm: VDM, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """`z_0` anywhere in the level's bin, each latent being read as its bin's level."""
    x, alpha, _ = _data_and_scales(vdm, images)
    log_width = torch.log(2 * alpha / vdm.num_levels) * x[0].numel()
    return alpha * (x + (2 * u - 1) / vdm.num_levels), log_width.expand(len(x))


def _data_and_scales(vdm: VDM, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The data x, `(B, C, *size)`, and `alpha_0`, `sigma_0`, of which `z_0 = alpha_0 x + sigma_0 eps`."""
    x = vdm.scale(images)
    x = x.to(highest_precision(x.device))
    gamma_0 = vdm.noise_schedule.end_points()[0].to(x)
    return x, gaussian.alpha(gamma_0), gaussian.sigma(gamma_0)


def _standard_normal(u: Tensor) -> Tensor:
    eps = torch.finfo(u.dtype).eps
    return torch.special.ndtri(u.clamp(eps, 1 - eps))


DEQUANTIZATIONS: dict[str, Dequantization] = {
    "decoder": decoder,
    "truncated_normal": truncated_normal,
    "uniform": uniform,
}
"""Every dequantisation by the name that options give it."""
