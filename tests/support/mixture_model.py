"""A mixture of Gaussians, of which every noisy marginal and hence the optimal denoiser is known in closed form."""

import math

import torch
from torch import Tensor, nn

from vdm_diffusers import VDM, LinearSchedule, gaussian
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.timestep_maps import AffineTimesteps


class Mixture:
    """`Σ_k w_k N(mean_k, diag(scale_k²))` over images of shape (1, 1, 2), narrow enough to lie within (-1, 1)."""

    def __init__(self, weights: list[float], means: list[list[float]], scales: list[list[float]]):
        self.weights, self.means, self.scales = (torch.tensor(values).double() for values in (weights, means, scales))

    def sample(self, num_images: int, generator: torch.Generator) -> Tensor:
        """`(N, 2)`."""
        component = torch.multinomial(self.weights, num_images, replacement=True, generator=generator)
        noise = torch.randn(num_images, 2, generator=generator, dtype=torch.float64)
        return self.means[component] + self.scales[component] * noise

    def log_marginal(self, z: Tensor, gamma: Tensor) -> Tensor:
        """`log q(z_gamma)`, `(...,)`, for `z` `(..., 2)` and `gamma` that broadcasts against its leading dimensions."""
        alpha, sigma_sq = gaussian.alpha(gamma)[..., None, None], torch.sigmoid(gamma)[..., None, None]
        variance = alpha**2 * self.scales**2 + sigma_sq
        square = (z[..., None, :] - alpha * self.means) ** 2 / variance
        log_p = -0.5 * (square + variance.log() + math.log(2 * math.pi)).sum(-1)
        return torch.logsumexp(log_p + self.weights.log(), -1)

    def entropy(self, gamma: Tensor) -> float:
        """Of `z_gamma`, in nats, by quadrature."""
        return -self._expectation(lambda z: self.log_marginal(z, gamma), gamma)

    def prior_mismatch(self, gamma: Tensor) -> float:
        """`KL(q(z_gamma) || N(0, I))`, in nats, by quadrature."""
        cross = self._expectation(lambda z: 0.5 * (z**2).sum(-1) + math.log(2 * math.pi), gamma)
        return cross - self.entropy(gamma)

    def _expectation(self, function, gamma: Tensor) -> float:
        axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
        z = torch.cartesian_prod(axis, axis)
        cell = (axis[1] - axis[0]).item() ** 2
        return sum((self.log_marginal(part, gamma).exp() * function(part)).sum().item() * cell for part in z.split(200_000))


GAUSSIAN = Mixture([1.0], [[0.1, -0.2]], [[0.2, 0.15]])
MIXTURE = Mixture([0.3, 0.5, 0.2], [[-0.5, -0.4], [0.1, 0.5], [0.4, -0.3]], [[0.08, 0.1], [0.1, 0.06], [0.06, 0.1]])


class MixtureDenoiser(nn.Module):
    """The optimal denoiser, `eps_hat = -sigma ∇ log q(z)`, in any parameterisation."""

    def __init__(self, mixture: Mixture, timestep_map: AffineTimesteps, prediction_type: str):
        super().__init__()
        self.mixture, self.timestep_map, self.prediction_type = mixture, timestep_map, prediction_type

    def forward(self, sample: Tensor, timestep: Tensor, class_labels=None, return_dict: bool = True) -> tuple[Tensor]:
        gamma = self.timestep_map.inverse(timestep.double()).expand(len(sample))
        alpha, sigma_sq = gaussian.alpha(gamma)[:, None, None], torch.sigmoid(gamma)[:, None, None]
        z = sample.flatten(1)[:, None]
        variance = alpha**2 * self.mixture.scales**2 + sigma_sq
        difference = (z - alpha * self.mixture.means) / variance
        log_p = -0.5 * (difference**2 * variance + variance.log()).sum(-1) + self.mixture.weights.log()
        eps = (sigma_sq.sqrt() * log_p.softmax(-1)[..., None] * difference).sum(1).reshape(sample.shape)
        x = (sample - sigma_sq.sqrt()[..., None] * eps) / alpha[..., None]
        return (gaussian.target(self.prediction_type, x, eps, gamma),)


def mixture_vdm(
    mixture: Mixture, num_levels: int, prediction_type: str = "epsilon", gamma_min: float = -6.0, gamma_max: float = 9.0
) -> VDM:
    schedule = LinearSchedule(gamma_min, gamma_max).double()
    denoiser = MixtureDenoiser(mixture, AffineTimesteps(schedule.gamma_min, schedule.gamma_max), prediction_type)
    return VDM(denoiser, schedule, prediction_type, num_levels)


def mixture_images(mixture: Mixture, num_images: int, num_levels: int, seed: int) -> ImageDataset:
    """Samples, rounded to levels."""
    x = mixture.sample(num_images, torch.Generator().manual_seed(seed))
    levels = ((x + 1) / 2 * num_levels).floor().clamp(0, num_levels - 1).int()
    return ImageDataset([{"image": image[None].numpy()} for image in levels])
