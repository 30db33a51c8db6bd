"""Loss weightings: the papers' own formulas, the invariance to the schedule, the gradients, and the bound left as it is."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from gaussian_model import epsilon_error
from scipy.integrate import quad
from scipy.stats import lognorm
from test_variance_objective import Opaque, draws, gradients, make_vdm
from test_vdm import expected_diffusion, gaussian_vdm, quadrature, tiny_vdm

from vdm_diffusers import VDM, CosineSchedule, LearnedMonotoneSchedule, LearnedUnpinnedSchedule, LinearSchedule
from vdm_diffusers.weightings import WEIGHTINGS


GAMMA = torch.linspace(-8, 8, 33, dtype=torch.float64)


def assert_proportional(measured: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(measured / measured[0], expected / expected[0], rtol=rtol, atol=0)


def test_elbo_is_the_bound():
    loss = tiny_vdm()(torch.randint(0, 16, (4, 2, 6, 6)))
    torch.testing.assert_close(loss.objective, loss.bits_per_dim)


@pytest.mark.parametrize(
    ("weighting", "of_snr"),
    [
        ("epsilon", lambda snr: torch.ones_like(snr)),
        ("min_snr", lambda snr: torch.minimum(snr, torch.tensor(5.0)) / snr),  # as diffusers' training scripts have it
    ],
)
def test_weighted_squared_error_of_a_cosine_chain_is_that_of_diffusers(weighting, of_snr):
    schedule = CosineSchedule(-8.0, 8.0).double()
    alphas = torch.cat([torch.sigmoid(-schedule.chain(1)[:1]), schedule.alphas(1000)])
    chain = DDPMScheduler(num_train_timesteps=1001, trained_betas=(1 - alphas).tolist())
    index = torch.arange(100, 1000, 100)
    snr = compute_snr(chain, index).double()
    gamma, slope = schedule.with_derivative(index.double() / 1000)
    torch.testing.assert_close(snr, torch.exp(-gamma), rtol=1e-3, atol=0)
    assert_proportional(WEIGHTINGS[weighting](gamma) * slope, of_snr(snr), rtol=1e-3)


def test_edm_is_the_loss_of_karras_et_al():
    sigma = torch.exp(GAMMA / 2)
    density = torch.from_numpy(lognorm(s=1.2, scale=torch.exp(torch.tensor(-1.2)).item()).pdf(sigma.numpy()))
    loss_weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2  # of ||x - x_hat||² = sigma² ||eps - eps_hat||²
    assert_proportional(WEIGHTINGS["edm"](GAMMA), density * loss_weight * sigma**2 * sigma)  # dsigma = sigma/2 dgamma


def test_sigmoid_is_a_function_of_the_snr():
    assert_proportional(WEIGHTINGS["sigmoid"](GAMMA), 1 / (1 + torch.exp(-GAMMA) * torch.exp(torch.tensor(-2.0))))


@pytest.mark.parametrize("schedule", [LinearSchedule(-6.0, 4.0), LearnedMonotoneSchedule(-6.0, 4.0)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expected_loss_is_an_integral_over_gamma_whatever_the_schedule(weighting, schedule):
    vdm = gaussian_vdm(schedule, weighting=weighting)
    weight = WEIGHTINGS[weighting]

    def integrand(gamma: float) -> float:
        gamma = torch.tensor(gamma, dtype=torch.float64)
        return (0.5 * weight(gamma) * epsilon_error(gamma)).item()

    measured = sum(
        share * weight(vdm.noise_schedule(torch.tensor(t).double())) * expected_diffusion(vdm, t) for t, share in quadrature()
    )
    kink = -math.log(5)  # of `min_snr`, which a Gauss rule doesn't know of
    expected = quad(integrand, -6, kink)[0] + quad(integrand, kink, 4)[0]
    assert measured.item() == pytest.approx(expected, rel=1e-4 if weighting == "min_snr" else 1e-8)


@pytest.mark.parametrize("weighting", sorted(set(WEIGHTINGS) - {"elbo"}))
def test_one_pass_gives_the_gradients_of_the_weighted_objectives(weighting):
    schedule = LearnedMonotoneSchedule(num_features=5)
    vdm = make_vdm(schedule)
    vdm = VDM(vdm.unet, schedule, num_levels=8, weighting=weighting)
    images, fixed = draws()
    loss = vdm(images, **fixed)
    loss.objective.mean().backward()
    assert schedule.gamma_0.grad is None and schedule.gamma_1.grad is None
    schedule.gamma_0.requires_grad_(True), schedule.gamma_1.requires_grad_(True)
    denoiser = vdm.unet.conv_in.weight.grad.clone()

    plain = VDM(vdm.unet, Opaque(schedule), num_levels=8)
    bound = plain(images, **fixed)
    torch.testing.assert_close(loss.bits_per_dim, bound.bits_per_dim)
    weighted = WEIGHTINGS[weighting](schedule(fixed["times"])) * bound.diffusion / (16 * torch.log(torch.tensor(2.0).double()))
    names = ("log_slope", "bias", "logits")
    parameters = [getattr(schedule, name) for name in names]
    for name, expected in zip(names, torch.autograd.grad(weighted.square().mean(), parameters, retain_graph=True)):
        torch.testing.assert_close(getattr(schedule, name).grad, expected, rtol=1e-8, atol=1e-12)
        assert expected.abs().max() > 0
    (expected,) = torch.autograd.grad(weighted.mean(), vdm.unet.conv_in.weight)
    torch.testing.assert_close(denoiser, expected, rtol=1e-8, atol=1e-14)


def test_end_points_of_the_bound_are_learned():
    vdm = make_vdm(LearnedMonotoneSchedule(num_features=5))
    images, fixed = draws()
    vdm(images, **fixed).objective.mean().backward()
    assert gradients(vdm)["gamma_0"] != 0 and gradients(vdm)["gamma_1"] != 0


@pytest.mark.parametrize(
    ("schedule", "kwargs", "message"),
    [
        (LinearSchedule, {"weighting": "p2"}, "`weighting` is 'p2', but it must be one of `elbo`"),
        (LinearSchedule, {"weighting": "edm", "num_timesteps": 4}, "is one of continuous time: leave out `num_timesteps`"),
        (LearnedUnpinnedSchedule, {"weighting": "edm"}, "can't train LearnedUnpinnedSchedule"),
    ],
)
def test_weightings_that_have_no_meaning_are_refused(schedule, kwargs, message):
    with pytest.raises(ValueError, match=message):
        VDM(tiny_vdm().unet, schedule(), **kwargs)
