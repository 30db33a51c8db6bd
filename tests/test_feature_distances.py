"""Feature distances: the closed form for Gaussians, SciPy's matrix root, plain loops, and their expectations."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vdm_diffusers.feature_distances import frechet_distance, kernel_distance


def test_frechet_distance_of_independent_gaussians():
    """(μ_a - μ_b)² + (σ_a - σ_b)² of each dimension, here of features whitened to have exactly these moments."""
    white = torch.randn(200, 3, dtype=torch.float64)
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov()).T)
    mean, scale = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    expected = (mean**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet_distance(white, white * scale + mean) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_of_correlated_features_is_scipy_s():
    a, b = torch.randn(50, 4) @ torch.randn(4, 4), torch.randn(70, 4) @ torch.randn(4, 4) + 1
    cov_a, cov_b = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
    root = sqrtm(cov_a @ cov_b).real
    expected = ((a.double().mean(0) - b.double().mean(0)) ** 2).sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_the_mean_over_pairs():
    a, b = torch.randn(5, 3).double(), torch.randn(6, 3).double() + 1

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within_a = np.mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([kernel(b[i], b[j]) for i in range(6) for j in range(6) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-9)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(torch.randn(10, 2), torch.randn(15, 2)) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5
    assert kernel_distance(torch.randn(100, 2), torch.randn(100, 2) + 1) > 10 * abs(np.mean(values))


@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((5,), (5,)), ((1, 2), (5, 2))])
@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_of_other_shapes_are_refused(distance, shapes):
    with pytest.raises(ValueError, match="must be"):
        distance(*(torch.zeros(shape) for shape in shapes))
