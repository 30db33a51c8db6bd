"""Gaussian data, for which everything about a diffusion model is known in closed form, and its optimal denoiser."""

import torch
from torch import Tensor, nn

from vdm_diffusers import gaussian
from vdm_diffusers.timestep_maps import AffineTimesteps


MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.10, 0.00], [0.10, 0.20, -0.05], [0.00, -0.05, 0.10]], dtype=torch.float64)
VARIANCES = torch.linalg.eigvalsh(COVARIANCE)


class GaussianDenoiser(nn.Module):
    """The optimal denoiser of `N(MEAN, COVARIANCE)` data of shape (3, 1, 1), in any parameterisation."""

    def __init__(self, timestep_map: AffineTimesteps, prediction_type: str = "epsilon"):
        super().__init__()
        self.timestep_map, self.prediction_type = timestep_map, prediction_type

    def forward(self, sample: Tensor, timestep: Tensor, class_labels=None, return_dict: bool = True) -> tuple[Tensor]:
        gamma = self.timestep_map.inverse(timestep.double()).expand(len(sample))
        alpha_sq, sigma_sq = torch.sigmoid(-gamma)[:, None, None], torch.sigmoid(gamma)[:, None, None]
        z = sample.flatten(1) - alpha_sq.sqrt()[:, 0] * MEAN
        total = alpha_sq * COVARIANCE + sigma_sq * torch.eye(3, dtype=torch.float64)
        solved = torch.linalg.solve(total, z[:, :, None])[:, :, 0]
        x = (MEAN + alpha_sq.sqrt()[:, 0] * solved @ COVARIANCE).reshape(sample.shape)
        eps = (sigma_sq.sqrt()[:, 0] * solved).reshape(sample.shape)
        return (gaussian.target(self.prediction_type, x, eps, gamma),)


def cubature() -> tuple[Tensor, Tensor]:
    """Twelve pairs `(x, eps)`, each `(12, 3, 1, 1)`, over which the mean of any quadratic function is its expectation."""
    points = 6**0.5 * torch.cat([torch.eye(6), -torch.eye(6)]).double()
    x = MEAN + points[:, :3] @ torch.linalg.cholesky(COVARIANCE).T
    return x.reshape(12, 3, 1, 1), points[:, 3:].reshape(12, 3, 1, 1)


def epsilon_error(gamma: Tensor) -> Tensor:
    """`E ||eps - eps_hat||²` of the optimal denoiser, shaped as `gamma`."""
    return (VARIANCES / (VARIANCES + gamma.exp()[..., None])).sum(-1)


def continuous_diffusion_loss(gamma_0: Tensor, gamma_1: Tensor) -> Tensor:
    """`½ ∫ E ||eps - eps_hat||² dgamma`, in nats."""

    def antiderivative(gamma: Tensor) -> Tensor:
        return (gamma - torch.log(VARIANCES + gamma.exp())).sum()

    return 0.5 * (antiderivative(gamma_1) - antiderivative(gamma_0))


def discrete_diffusion_loss(gamma: Tensor) -> Tensor:
    """The sum of the KL divergences of a chain of gammas `(T + 1,)`, in nats, between Gaussians given their means' spread."""
    return 0.5 * (torch.expm1(gamma.diff()) * epsilon_error(gamma[1:])).sum()
