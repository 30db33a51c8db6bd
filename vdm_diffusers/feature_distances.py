"""Distances between sets of images, by the features that an extractor of yours gives: FID and KID where that is Inception."""

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """
    The Fréchet distance of Gaussians fitted to the features, `||μ_a - μ_b||² + tr(C_a + C_b - 2 (C_a C_b)^½)` (Heusel et al.
    2017).

    Args:
        features_a, features_b (`Tensor` of shape `(N, D)` and `(M, D)`): One row an image. Computed in float64.

    Raises:
        `ValueError`: for features of other shapes, or of fewer than two images.
    """
    a, b = _checked(features_a, features_b)
    covariance_a, covariance_b = (torch.atleast_2d(features.T.cov()) for features in (a, b))
    root_trace = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * root_trace
    return distance.item()


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """
    The squared maximum mean discrepancy with the kernel `(x·y / D + 1)³`, unbiased (Bińkowski et al. 2018).

    Arguments and errors are those of [`frechet_distance`]. For features of one distribution its expectation is 0, whatever the
    numbers of images, so it may be negative.
    """
    a, b = _checked(features_a, features_b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return (mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean()).item()


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"Features have the shapes {tuple(a.shape)} and {tuple(b.shape)}, but must be (N, D) and (M, D), with N and M at"
            " least 2."
        )
    return a.detach().cpu().double(), b.detach().cpu().double()
