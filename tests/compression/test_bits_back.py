"""Bits-back coding of single images: exact, and in expectation at the bound, which a Gaussian has in closed form."""

import numpy as np
import pytest
import torch
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser
from torch import Tensor

from vdm_diffusers import VDM, LinearSchedule
from vdm_diffusers.compression.ans import BitStack
from vdm_diffusers.compression.bits_back import pop_image, push_image
from vdm_diffusers.compression.latents import CodedLatents
from vdm_diffusers.error_profiles import ErrorProfile
from vdm_diffusers.timestep_maps import AffineTimesteps


GAMMAS = torch.tensor([-9.0, -5.0, -3.0, -1.0, 1.0, 5.0], dtype=torch.float64)
NUM_LEVELS = 256


def gaussian_vdm(error_profile: ErrorProfile | None, gammas: Tensor = GAMMAS) -> VDM:
    timesteps = AffineTimesteps(-9.0, 5.0)
    schedule = LinearSchedule(-9.0, 5.0)
    continuous = VDM(GaussianDenoiser(timesteps, "v_prediction"), schedule, "v_prediction", NUM_LEVELS, timestep_map=timesteps)
    return continuous.double().eval().in_steps(gammas.tolist(), error_profile)


def profile_along_axes() -> ErrorProfile:
    """The closed form, in the principal axes of the data."""
    variances, vectors = torch.linalg.eigh(COVARIANCE)
    gammas = torch.linspace(-9, 5, 400, dtype=torch.float64)
    moments = variances / (variances + gammas.exp()[:, None])
    return ErrorProfile(gammas, moments, torch.zeros_like(moments), "principal", vectors.T.contiguous())


def images(number: int) -> Tensor:
    """Levels of the Gaussian, `(number, 3, 1, 1)`."""
    noise = torch.randn(number, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T
    return ((x + 1) * NUM_LEVELS / 2).floor().clamp(0, NUM_LEVELS - 1).int().reshape(number, 3, 1, 1)


def random_stack(latents: CodedLatents, seed: int) -> BitStack:
    num_words = int(latents.initial_bits() / 16) + 40
    return BitStack.of_random_bits(np.random.default_rng(seed).integers(0, 1 << 32, num_words, dtype=np.uint32))


@torch.no_grad()
def chain_bound(vdm: VDM, data: Tensor) -> Tensor:
    """The bound of every image, `(N,)`, in bits: all steps of the chain, not a random one."""
    total = 0
    for step in range(1, vdm.num_timesteps + 1):
        loss = vdm(data, times=torch.full((len(data),), step / vdm.num_timesteps, dtype=torch.float64))
        total = total + (loss.prior + loss.reconstruction + loss.diffusion) / vdm.num_timesteps
    return total / np.log(2)


@pytest.mark.parametrize(
    ("profile", "gammas", "bin_precision"),
    [
        (None, torch.linspace(-9, 5, 15), 5),
        (profile_along_axes(), GAMMAS, 0),
        (profile_along_axes(), GAMMAS, 2),
    ],
)
@torch.no_grad()
def test_the_net_rate_is_the_bound(profile, gammas, bin_precision):
    """Of coarse bins too: rounding changes no moment of the latents."""
    vdm, data = gaussian_vdm(profile, gammas), images(600)
    latents = CodedLatents(vdm, gammas.tolist(), bin_precision, (3, 1, 1))
    rates = []
    for seed, image in enumerate(data):
        stack = random_stack(latents, seed)
        before = stack.num_bits
        push_image(stack, latents, image, {}, seed)
        rates.append(stack.num_bits - before)
    bound = torch.stack([chain_bound(vdm, data) for _ in range(5)]).mean(0)
    difference = torch.tensor(rates, dtype=torch.float64) - bound
    error = difference.std() / len(data) ** 0.5
    assert difference.mean().abs() < 4 * error
    assert error < 0.01 * bound.mean()


@torch.no_grad()
def test_steps_that_are_too_large_for_their_variances_cost_less_than_their_bound():
    """An outlier has no less than the least frequency, 24 bits, where the tail of a Gaussian would take hundreds."""
    vdm, data = gaussian_vdm(None, GAMMAS), images(100)
    latents = CodedLatents(vdm, GAMMAS.tolist(), 1, (3, 1, 1))
    stack = random_stack(latents, 0)
    before = stack.num_bits
    for place, image in enumerate(data):
        push_image(stack, latents, image, {}, place)
    assert stack.num_bits - before < 0.8 * chain_bound(vdm, data).sum()


@pytest.mark.parametrize("profile", [None, profile_along_axes()], ids=["q's variances", "optimal variances"])
@pytest.mark.parametrize("num_words", [0, 1, 5, 1000])
@torch.no_grad()
def test_an_image_comes_back_and_so_do_the_bits(profile, num_words):
    """From any stack: without bits enough draws are bad ones, but no less exact."""
    vdm = gaussian_vdm(profile)
    latents = CodedLatents(vdm, GAMMAS.tolist(), 1, (3, 1, 1))
    words = np.random.default_rng(0).integers(0, 1 << 32, num_words, dtype=np.uint32)
    stack, data = BitStack.of_random_bits(words), images(20)
    before = stack.num_bits
    for place, image in enumerate(data):
        push_image(stack, latents, image, {}, place)
    for place, image in reversed(list(enumerate(data))):
        assert (pop_image(stack, latents, {}, place) == image).all()
    assert stack.num_bits == before


@torch.no_grad()
def test_the_initial_bits_are_those_that_the_first_two_latents_take():
    vdm = gaussian_vdm(None)
    latents = CodedLatents(vdm, GAMMAS.tolist(), 1, (3, 1, 1))
    taken = []
    for seed, image in enumerate(images(300)):
        stack = random_stack(latents, seed)
        before = stack.num_bits
        z_0 = stack.draw(latents.given_image(image), 0)
        stack.draw(latents.given_previous(1, z_0), 1)
        taken.append(before - stack.num_bits)
    margin = 4 * 6**0.5 + 64
    assert max(taken) < latents.initial_bits()
    assert np.mean(taken) == pytest.approx(latents.initial_bits() - margin, abs=4 * np.std(taken) / 300**0.5)


def test_bins_that_are_too_many_to_count_are_refused():
    with pytest.raises(ValueError, match="too many to count: let it begin at more noise"):
        CodedLatents(gaussian_vdm(None), [-60.0, 5.0], 1, (3, 1, 1))


def test_a_denoiser_that_is_not_finite_is_refused():
    vdm = gaussian_vdm(None)
    vdm.unet.forward = lambda sample, **kwargs: (sample * torch.nan,)
    latents = CodedLatents(vdm, GAMMAS.tolist(), 1, (3, 1, 1))
    with pytest.raises(FloatingPointError, match="not finite at gamma"):
        push_image(random_stack(latents, 0), latents, images(1)[0], {}, 0)
