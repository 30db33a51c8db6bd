"""The stack of bits against scipy: what is pushed comes back, costs what the distribution says, and draws follow it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import norm

from vdm_diffusers import VDM, LinearSchedule
from vdm_diffusers.compression.ans import MAX_BIN, SHEPPARD, BitStack, ImpossibleDraw, Levels, Normal


def stack_of_random_bits(num_words: int, seed: int = 0) -> BitStack:
    return BitStack.of_random_bits(np.random.default_rng(seed).integers(0, 1 << 32, num_words, dtype=np.uint32))


def test_a_normal_number_costs_the_logarithm_of_its_bin():
    source = np.random.default_rng(0)
    normal = Normal(source.normal(0, 50, 2000), source.uniform(0.5, 9, 2000))
    numbers = np.rint(source.normal(normal.mean, normal.std)).astype(np.int64)
    rounded = norm(normal.mean, np.sqrt(normal.std**2 - SHEPPARD))
    expected = -np.log2(rounded.cdf(numbers + 0.5) - rounded.cdf(numbers - 0.5)).sum()
    stack = stack_of_random_bits(10)
    before = stack.num_bits
    stack.push_normal(numbers, normal)
    assert stack.num_bits - before == pytest.approx(expected, rel=1e-3)
    assert (stack.pop_normal(normal) == numbers).all() and stack.num_bits == before


@pytest.mark.parametrize("std", [0.5, 0.7, 1.0, 4.0])
@pytest.mark.parametrize("bits", ["random", "none", "ones"])
def test_draws_have_the_moments_of_the_distribution(std, bits):
    """Of wide bins too, where rounding without a correction would add a third of the variance, and whatever the bits."""
    size = 200_000
    mean = np.linspace(-1, 1, size)
    words = {"random": size, "none": 0, "ones": np.full(size, 2**32 - 1, np.uint32)}[bits]
    stack = stack_of_random_bits(words) if isinstance(words, int) else BitStack.of_random_bits(words)
    draws = stack.draw(Normal(mean, np.full(size, std)), 1) - mean
    assert abs(draws.mean()) < 4.5 * std / size**0.5
    assert abs(draws.var() / std**2 - 1) < 4.5 * (2 / size) ** 0.5


def test_a_level_costs_what_the_bound_says_of_it():
    """The decoder of the VDM, `p(v|z_0)` over all levels."""
    vdm = VDM(torch.nn.Identity(), LinearSchedule(-4.0, 5.0), num_levels=17)
    gamma_0 = torch.tensor(-4.0)
    image = torch.arange(17).repeat(50)
    eps = torch.randn(len(image))
    z_0 = torch.sigmoid(-gamma_0).sqrt() * vdm.scale(image[None, None])[0, 0] + torch.sigmoid(gamma_0).sqrt() * eps
    center = (z_0 / torch.sigmoid(-gamma_0).sqrt() + 1) * 17 / 2 - 0.5
    levels = Levels(center.double().numpy(), 17 / 2 * np.exp(-2.0), 17)
    stack = stack_of_random_bits(10)
    before = stack.num_bits
    stack.push_levels(image.numpy(), levels)
    expected = vdm.reconstruction(image[None, None], eps[None, None]).item() / np.log(2)
    assert stack.num_bits - before == pytest.approx(expected, rel=2e-3)
    log_p = log_softmax(-0.5 * ((np.arange(17) - levels.center[:, None]) / levels.width) ** 2, axis=1)
    assert -log_p[np.arange(len(image)), image].sum() / np.log(2) == pytest.approx(expected, rel=1e-4)
    assert (stack.pop_levels(levels) == image.numpy()).all() and stack.num_bits == before


@given(st.data())
def test_whatever_is_pushed_comes_back(data):
    """Also numbers that a distribution holds for impossible, and from a stack that has too few bits for its draws."""
    size = data.draw(st.integers(1, 40))
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    stack = stack_of_random_bits(data.draw(st.sampled_from([0, 1, 3, 200])), 1)
    before, expected = stack.num_bits, []
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["normal", "draw", "levels", "uniform"]))
        scale = 10 ** source.uniform(-3, 8)
        normal = Normal(source.normal(0, scale, size), 0.5 + 10 ** source.uniform(-2, 2, size))
        if kind == "draw":
            expected.append(("draw", normal, stack.draw(normal, 3)))
        elif kind == "normal":
            numbers = np.rint(source.normal(0, 10 ** source.uniform(0, 8), size)).clip(-MAX_BIN, MAX_BIN).astype(np.int64)
            stack.push_normal(numbers, normal)
            expected.append(("pop_normal", normal, numbers))
        elif kind == "levels":
            num_levels = int(2 ** source.uniform(1, 24))
            levels = Levels(source.uniform(-1, num_levels, size), 10 ** source.uniform(-3, 3), num_levels)
            numbers = source.integers(0, num_levels, size)
            stack.push_levels(numbers, levels)
            expected.append(("pop_levels", levels, numbers))
        else:
            count = int(2 ** source.uniform(1, 32))
            numbers = source.integers(0, count, size)
            stack.push_uniform(numbers, count)
            expected.append(("uniform", count, numbers))
    for kind, distribution, numbers in reversed(expected):
        if kind == "draw":
            stack.give_back(numbers, distribution, 3)
        elif kind == "uniform":
            assert (stack.pop_uniform(size, distribution) == numbers).all()
        else:
            assert (getattr(stack, kind)(distribution) == numbers).all()
    assert stack.num_bits == before


def test_what_no_draw_gives_is_refused():
    with pytest.raises(ImpossibleDraw):
        BitStack().give_back(np.array([10]), Normal(np.zeros(1), np.ones(1)), 1)
