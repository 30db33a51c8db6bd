"""The timestep maps, against their formulas, numpy's interpolation and finite differences."""

import numpy as np
import pytest
import torch

from vdm_diffusers.timestep_maps import AffineTimesteps, ChainTimesteps


CHAIN = torch.tensor([-9.0, -7.5, -7.0, -2.0, 1.0, 5.0], dtype=torch.float64)
MAPS = {
    "affine": AffineTimesteps(gamma_min=-13.3, gamma_max=5.0),
    "affine_short": AffineTimesteps(gamma_min=-2.0, gamma_max=6.0, num_train_timesteps=10),
    "chain": ChainTimesteps(CHAIN, {}),
    "chain_of_two": ChainTimesteps(torch.tensor([-1.0, 3.0], dtype=torch.float64), {}),
}


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def timestep_map(request):
    return request.param


def gammas(low: float = -15.0, high: float = 15.0) -> torch.Tensor:
    """A grid that reaches beyond both ends of every map and holds none of the knots."""
    return torch.linspace(low, high, 997, dtype=torch.float64)


def test_each_map_and_its_inverse_undo_each_other(timestep_map):
    timesteps = torch.linspace(-4, 14, 501, dtype=torch.float64)
    torch.testing.assert_close(timestep_map.inverse(timestep_map(gammas())), gammas(), rtol=0, atol=1e-11)
    torch.testing.assert_close(timestep_map(timestep_map.inverse(timesteps)), timesteps, rtol=0, atol=1e-11)


def test_each_map_increases_strictly(timestep_map):
    assert (timestep_map(gammas()).diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_shape_and_dtype_are_those_of_the_argument(timestep_map, shape, dtype):
    argument = torch.rand(shape, dtype=dtype)
    for function in (timestep_map, timestep_map.inverse):
        value = function(argument)
        assert value.shape == shape and value.dtype == dtype
        torch.testing.assert_close(value.double(), function(argument.double()), rtol=1e-5, atol=1e-5)


def test_gradient_is_the_finite_difference(timestep_map):
    for function in (timestep_map, timestep_map.inverse):
        at = gammas(-3.0, 8.0).requires_grad_()
        (gradient,) = torch.autograd.grad(function(at).sum(), at)
        with torch.no_grad():
            expected = (function(at + 1e-6) - function(at - 1e-6)) / 2e-6
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_train_timesteps", [1000, 250])
def test_affine_map_is_a_share_of_the_range(num_train_timesteps):
    timestep_map = AffineTimesteps(-13.3, 5.0, num_train_timesteps)
    expected = num_train_timesteps * (gammas() + 13.3) / 18.3
    torch.testing.assert_close(timestep_map(gammas()), expected, rtol=1e-12, atol=1e-12)
    ends = timestep_map(torch.tensor([-13.3, 5.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, num_train_timesteps], dtype=torch.float64))


def test_chain_map_is_exact_at_the_indices_of_the_chain():
    indices = torch.arange(len(CHAIN), dtype=torch.float64)
    assert torch.equal(MAPS["chain"](CHAIN), indices)
    assert torch.equal(MAPS["chain"].inverse(indices), CHAIN)


def test_chain_map_is_the_linear_interpolant_between_indices():
    inside = gammas(-9.0, 5.0)
    expected = np.interp(inside, CHAIN, np.arange(len(CHAIN)))
    np.testing.assert_allclose(MAPS["chain"](inside), expected, rtol=0, atol=1e-12)
    timesteps = torch.linspace(0, 5, 301, dtype=torch.float64)
    expected = np.interp(timesteps, np.arange(len(CHAIN)), CHAIN)
    np.testing.assert_allclose(MAPS["chain"].inverse(timesteps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma, timestep", [(-9.75, -0.5), (-12.0, -2.0), (7.0, 5.5), (13.0, 7.0)])
def test_chain_map_goes_on_beyond_the_chain_along_its_first_and_last_interval(gamma, timestep):
    gamma, timestep = torch.tensor(gamma, dtype=torch.float64), torch.tensor(timestep, dtype=torch.float64)
    torch.testing.assert_close(MAPS["chain"](gamma), timestep)
    torch.testing.assert_close(MAPS["chain"].inverse(timestep), gamma)


def test_chain_map_of_an_affine_chain_is_affine():
    affine = AffineTimesteps(-10.0, 8.0, 90)
    chain = ChainTimesteps(torch.linspace(-10.0, 8.0, 91, dtype=torch.float64), {})
    torch.testing.assert_close(chain(gammas()), affine(gammas()), rtol=0, atol=1e-10)
