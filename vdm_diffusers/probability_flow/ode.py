"""The probability-flow ODE in gamma: a deterministic, invertible map between `z_0` and `z_1` with the same marginals.

    dz/dgamma = ½ sigma (eps_hat(z, gamma) - sigma z)
    d log p(z)/dgamma = -div(dz/dgamma)

(Song et al. 2021, with the drift and diffusion of the variance-preserving process, `d log alpha = -½ sigma² dgamma` and
`g² = sigma²`.) It knows no time: between two gammas the flow is the same for every noise schedule.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchode
from torch import Tensor

from .. import gaussian
from ..conditioning import Condition
from ..precision import highest_precision
from ..vdm import VDM, evaluating


Divergence = Callable[[Tensor, Tensor], Tensor]
"""`divergence(v, z)` of a field `v(z)` whose graph reaches back to `z`, both `(B, C, *size)`, as `(B,)`."""


class Flow(NamedTuple):
    """Where the flow leads.

    Attributes:
        z (`Tensor` of shape `(B, C, *size)`): The latents at the other end.
        log_det (`Tensor` of shape `(B,)`): `∫ div(dz/dgamma) dgamma`, in nats, so that `log p(start) = log p(end) + log_det`;
            zero where no divergence was asked for.
        num_evaluations (`Tensor` of shape `(B,)`): How often the denoiser was evaluated for each image.
    """

    z: Tensor
    log_det: Tensor
    num_evaluations: Tensor


def hutchinson(probe: Tensor) -> Divergence:
    """The unbiased estimate `probeᵀ (∂v/∂z) probe` for a probe of zero mean and unit covariance, `(B, C, *size)`."""

    def divergence(v: Tensor, z: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(v, z, probe.to(v.dtype))
        return (product * probe).flatten(1).sum(1)

    return divergence


def exact(v: Tensor, z: Tensor) -> Tensor:
    """The divergence itself, by as many backward passes as there are dimensions."""
    columns = v.flatten(1).sum(0)
    gradients = (torch.autograd.grad(column, z, retain_graph=True)[0].flatten(1)[:, i] for i, column in enumerate(columns))
    return sum(gradients)


def velocity(vdm: VDM, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
    """`dz/dgamma`, shaped as `z` and in its dtype, at one `gamma` an image, `(B,)`."""
    output = vdm.denoise(z, gamma, condition)
    eps = gaussian.predicted_epsilon(vdm.prediction_type, output, z, gamma)
    sigma = gaussian.expand(gaussian.sigma(gamma), z)
    return 0.5 * sigma * (eps - sigma * z)


@torch.no_grad()
def integrate(
    vdm: VDM,
    z: Tensor,
    gamma_start: Tensor,
    gamma_end: Tensor,
    condition: Condition | None = None,
    divergence: Divergence | None = None,
    tolerance: float = 1e-5,
) -> Flow:
    """
    Follow the flow from one gamma to another, in float64 but for the denoiser.

    Dormand and Prince's method of order 5, each image with steps of its own: what comes out for an image, and the error made,
    don't depend on the others in the batch.

    Args:
        vdm ([`VDM`]): Evaluated without dropout.
        z (`Tensor` of shape `(B, C, *size)`): The latents to start from.
        gamma_start, gamma_end (`Tensor` of shape `()`): In either order.
        condition (`Condition`, *optional*): What the denoiser is told besides.
        divergence (`Divergence`, *optional*): How to compute the divergence, if `log_det` is wanted.
        tolerance (`float`, defaults to 1e-5):
            The largest error of a step, in the root mean square over the dimensions of an image, `log_det` counting in nats per
            dimension. The latents are of order 1, so it is absolute.

    Raises:
        `ValueError`: for a `tolerance` that is not positive.
        `FloatingPointError`: when the denoiser's output is not finite, naming the place in the batch and the timestep.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`tolerance` is {tolerance}, but must be positive and finite.")
    dtype = highest_precision(z.device)
    shape, num_dims = z.shape, z[0].numel()

    def field(gamma: Tensor, state: Tensor) -> Tensor:
        """Of the state `(z, log_det / √dims)`: so scaled, an error of log_det counts in nats per dimension."""
        with torch.set_grad_enabled(divergence is not None):
            z = state[:, :-1].reshape(shape).requires_grad_(divergence is not None)
            v = velocity(vdm, z, gamma, condition)
            change = state.new_zeros(len(state)) if divergence is None else divergence(v, z)
        slope = torch.cat([v.detach().flatten(1), change[:, None] / num_dims**0.5], dim=1)
        _check_finite(slope, vdm, gamma)
        return slope

    start, end = (gamma.detach().to(z.device, dtype).expand(len(z)) for gamma in (gamma_start, gamma_end))
    state = torch.cat([z.to(dtype).flatten(1), z.new_zeros(len(z), 1, dtype=dtype)], dim=1)
    term = torchode.ODETerm(field)
    controller = torchode.IntegralController(atol=tolerance, rtol=0.0, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller).to(z.device)
    with evaluating(vdm):
        solution = solver.solve(torchode.InitialValueProblem(y0=state, t_start=start, t_end=end))
    final = solution.ys[:, -1]
    num_evaluations = 2 + 6 * solution.stats["n_steps"]  # two to find the first step, then the stages of each
    return Flow(final[:, :-1].reshape(shape), final[:, -1] * num_dims**0.5, num_evaluations)


def _check_finite(slope: Tensor, vdm: VDM, gamma: Tensor) -> None:
    bad = (~slope.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        timestep = vdm.timestep_map(gamma[bad[0]]).item()
        raise FloatingPointError(
            f"The denoiser's output for image {bad[0]} of the batch, or its derivative, is not finite at timestep"
            f" {timestep:.6g}: evaluate in float32, and check the weights."
        )
