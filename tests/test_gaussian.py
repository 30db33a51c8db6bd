"""The Gaussians of the diffusion, against Bayes' rule, torch.distributions, diffusers and 60-digit arithmetic."""

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vdm_diffusers import gaussian


SHAPE = (3, 2, 4, 4)
GAMMAS = torch.tensor([-13.3, -2.0, 4.9], dtype=torch.float64)
"""One gamma for each image of a batch."""

pairs_of_gammas = st.tuples(st.floats(-13.3, 5.0), st.floats(1e-3, 10.0)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or SHAPE), dtype=torch.float64)


def float64(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def marginal(gamma: float) -> tuple[float, float]:
    """`alpha` and `sigma²` of `q(z|x)` from the definition of gamma."""
    alpha_sq = 1 / (1 + np.exp(gamma))
    return np.sqrt(alpha_sq), alpha_sq * np.exp(gamma)


def test_alpha_sigma_and_snr_are_those_of_a_variance_preserving_diffusion():
    gamma = torch.linspace(-13.3, 5.0, 101, dtype=torch.float64)
    alpha, sigma = gaussian.alpha(gamma), gaussian.sigma(gamma)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(gamma))
    torch.testing.assert_close(-torch.log(alpha**2 / sigma**2), gamma)
    torch.testing.assert_close(gaussian.snr(gamma), alpha**2 / sigma**2)


def test_diffused_data_have_the_mean_and_deviation_of_the_marginal():
    x, zero, one = randn(), torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)
    alpha, sigma_sq = marginal(-1.5)
    torch.testing.assert_close(gaussian.diffuse(x, zero, float64(-1.5)), alpha * x)
    torch.testing.assert_close(gaussian.diffuse(zero, one, float64(-1.5)), np.sqrt(sigma_sq) * one)


def test_transitions_of_a_chain_compose_to_the_marginal():
    gammas = torch.linspace(-13.3, 5.0, 501, dtype=torch.float64)
    scale, variance = marginal(-13.3)
    for gamma_s, gamma_t in zip(gammas[:-1], gammas[1:]):
        alpha_ts, var_ts = gaussian.transition(gamma_s, gamma_t)
        scale, variance = alpha_ts * scale, alpha_ts**2 * variance + var_ts
    alpha, sigma_sq = marginal(5.0)
    torch.testing.assert_close(scale, float64(alpha), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, float64(sigma_sq), rtol=1e-12, atol=0)


@given(gammas=st.lists(st.floats(-20.0, 20.0), min_size=3, max_size=3, unique=True).map(sorted))
def test_two_transitions_compose_to_one(gammas):
    gamma_r, gamma_s, gamma_t = float64(gammas)
    alpha_sr, var_sr = gaussian.transition(gamma_r, gamma_s)
    alpha_ts, var_ts = gaussian.transition(gamma_s, gamma_t)
    alpha_tr, var_tr = gaussian.transition(gamma_r, gamma_t)
    torch.testing.assert_close(alpha_ts * alpha_sr, alpha_tr, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha_ts**2 * var_sr + var_ts, var_tr, rtol=1e-10, atol=1e-14)


def conditioned(x: np.ndarray, z_t: np.ndarray, gamma_s: float, gamma_t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of `z_s` given `z_t` and `x`, by conditioning the joint Gaussian of both latents of every pixel."""
    (alpha_s, var_s), (alpha_t, var_t) = marginal(gamma_s), marginal(gamma_t)
    eye = np.eye(x.size)
    map_s, map_t = alpha_s * eye, alpha_t * eye
    cov_ss, cov_tt = var_s * eye, var_t * eye
    cov_ts = alpha_t / alpha_s * cov_ss
    gain = np.linalg.solve(cov_tt, cov_ts).T
    return map_s @ x + gain @ (z_t - map_t @ x), cov_ss - gain @ cov_ts


@given(gammas=pairs_of_gammas)
def test_posterior_is_the_conditional_of_the_joint_gaussian(gammas):
    x, z_t = randn(6), randn(6)
    mean, variance = gaussian.posterior(x, z_t, *map(float64, gammas))
    expected_mean, expected_covariance = conditioned(x.numpy(), z_t.numpy(), *gammas)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(variance * np.eye(6), expected_covariance, rtol=1e-9, atol=1e-14)


def test_posterior_is_proportional_to_transition_times_marginal():
    x, z_t, z_s = randn(1), randn(1), randn(64)
    gamma_s, gamma_t = float64(-3.0), float64(-1.0)
    alpha_ts, var_ts = gaussian.transition(gamma_s, gamma_t)
    log_joint = Normal(gaussian.alpha(gamma_s) * x, gaussian.sigma(gamma_s)).log_prob(z_s)
    log_joint = log_joint + Normal(alpha_ts * z_s, var_ts.sqrt()).log_prob(z_t)
    log_evidence = Normal(gaussian.alpha(gamma_t) * x, gaussian.sigma(gamma_t)).log_prob(z_t)
    mean, variance = gaussian.posterior(x, z_t, gamma_s, gamma_t)
    torch.testing.assert_close(Normal(mean, variance.sqrt()).log_prob(z_s), log_joint - log_evidence, rtol=1e-10, atol=1e-10)


@given(gammas=pairs_of_gammas)
def test_ancestral_step_has_the_mean_and_variance_of_the_posterior(gammas):
    gamma_s, gamma_t = map(float64, gammas)
    x, eps = randn(), randn()
    z_t = gaussian.diffuse(x, eps, gamma_t)
    mean, variance = gaussian.posterior(x, z_t, gamma_s, gamma_t)
    without = gaussian.reverse_step(x, eps, gamma_s, gamma_t, torch.zeros_like(x))
    spread = gaussian.reverse_step(x, eps, gamma_s, gamma_t, torch.ones_like(x)) - without
    torch.testing.assert_close(without, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(spread**2, variance.expand(SHAPE), rtol=1e-6, atol=1e-12)  # a difference of O(1) values


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_reverse_step_keeps_the_marginal_whatever_eta(eta):
    gamma_s, gamma_t = float64(-3.0), float64(-1.0)
    x, zero, one = randn(), torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)
    mean = gaussian.reverse_step(x, zero, gamma_s, gamma_t, zero, eta)
    by_eps = gaussian.reverse_step(zero, one, gamma_s, gamma_t, zero, eta)
    by_noise = gaussian.reverse_step(zero, zero, gamma_s, gamma_t, one, eta)
    alpha, sigma_sq = marginal(-3.0)
    torch.testing.assert_close(mean, alpha * x)
    torch.testing.assert_close(by_eps**2 + by_noise**2, sigma_sq * one)


def in_float64(scheduler):
    """A scheduler that steps through the same chain in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def gamma_of(scheduler, index: int) -> torch.Tensor:
    """Gamma of an index of a chain of diffusers; before the first, that of data without noise."""
    alpha_bar = scheduler.alphas_cumprod[index] if index >= 0 else float64(1.0)
    return torch.log1p(-alpha_bar) - alpha_bar.log()


BETAS = np.linspace(1e-4, 0.02, 1000).tolist()
DIFFUSERS_PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]


def estimates(prediction_type: str, output: torch.Tensor, z_t: torch.Tensor, gamma_t: torch.Tensor) -> tuple:
    x = gaussian.predicted_sample(prediction_type, output, z_t, gamma_t)
    return x, gaussian.predicted_epsilon(prediction_type, output, z_t, gamma_t)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", DIFFUSERS_PREDICTION_TYPES)
def test_a_chain_of_reverse_steps_is_ddim_of_diffusers(prediction, eta):
    ddim = in_float64(DDIMScheduler(trained_betas=BETAS, clip_sample=False, prediction_type=prediction))
    ddim.set_timesteps(10)
    ours = theirs = randn()
    for t in ddim.timesteps.tolist():
        noise, output = randn(), torch.tanh(theirs + t / 1000)
        theirs = ddim.step(output, t, theirs, eta=eta, variance_noise=noise).prev_sample
        gamma_s, gamma_t = gamma_of(ddim, t - 100), gamma_of(ddim, t)
        x, eps = estimates(prediction, output, ours, gamma_t)
        ours = gaussian.reverse_step(x, eps, gamma_s, gamma_t, noise, eta)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", DIFFUSERS_PREDICTION_TYPES)
def test_a_chain_of_ancestral_steps_is_ddpm_of_diffusers(prediction):
    ddpm = in_float64(DDPMScheduler(trained_betas=BETAS, clip_sample=False, prediction_type=prediction))
    ddpm.set_timesteps(10)
    ours = theirs = randn()
    for t in ddpm.timesteps.tolist():
        output = torch.tanh(theirs + t / 1000)
        theirs = ddpm.step(output, t, theirs, generator=torch.Generator().manual_seed(t)).prev_sample
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        gamma_s, gamma_t = gamma_of(ddpm, t - 100), gamma_of(ddpm, t)
        x, eps = estimates(prediction, output, ours, gamma_t)
        ours = gaussian.reverse_step(x, eps, gamma_s, gamma_t, noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_posterior_mean_is_that_of_ddpm_of_diffusers():
    ddpm = in_float64(DDPMScheduler(trained_betas=BETAS, clip_sample=False, prediction_type="sample"))
    x, z_t = randn(), randn()
    for t in (1, 10, 500, 999):
        mean, variance = gaussian.posterior(x, z_t, gamma_of(ddpm, t - 1), gamma_of(ddpm, t))
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        theirs = ddpm.step(x, t, z_t, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(mean + variance.sqrt() * noise, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma_1", [-2.0, 0.0, 5.0, 12.0])
def test_prior_kl_is_the_divergence_of_the_two_normals(gamma_1):
    x = randn()
    alpha, sigma_sq = marginal(gamma_1)
    expected = kl_divergence(Normal(alpha * x, np.sqrt(sigma_sq)), Normal(torch.zeros_like(x), 1.0))
    torch.testing.assert_close(gaussian.prior_kl(x, float64(gamma_1)), expected, rtol=1e-9, atol=1e-14)


@given(gammas=pairs_of_gammas)
def test_denoising_kl_weight_gives_the_divergence_of_posterior_and_reverse_transition(gammas):
    gamma_s, gamma_t = map(float64, gammas)
    x, eps, x_hat = randn(), randn(), randn()
    z_t = gaussian.diffuse(x, eps, gamma_t)
    eps_hat = (z_t - gaussian.alpha(gamma_t) * x_hat) / gaussian.sigma(gamma_t)
    (mean_q, variance), (mean_p, _) = (gaussian.posterior(guess, z_t, gamma_s, gamma_t) for guess in (x, x_hat))
    expected = kl_divergence(Normal(mean_q, variance.sqrt()), Normal(mean_p, variance.sqrt())).sum()
    weight = gaussian.denoising_kl_weight(gamma_s, gamma_t)
    torch.testing.assert_close(weight * ((eps - eps_hat) ** 2).sum(), expected, rtol=1e-6, atol=0)
    in_x = (gaussian.snr(gamma_s) - gaussian.snr(gamma_t)) / 2
    torch.testing.assert_close(in_x * ((x - x_hat) ** 2).sum(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sample", lambda x, eps, alpha, sigma: x),
        ("epsilon", lambda x, eps, alpha, sigma: eps),
        ("score", lambda x, eps, alpha, sigma: -eps / sigma),
        ("v_prediction", lambda x, eps, alpha, sigma: alpha * eps - sigma * x),
    ],
)
def test_target_is_the_textbook_one(name, expected):
    x, eps = randn(), randn()
    alpha, sigma_sq = marginal(0.7)
    torch.testing.assert_close(gaussian.target(name, x, eps, float64(0.7)), expected(x, eps, alpha, np.sqrt(sigma_sq)))


def test_score_is_the_gradient_of_the_log_density_of_the_marginal():
    x, eps = randn(), randn()
    alpha, sigma_sq = marginal(-1.2)
    z_t = (alpha * x + np.sqrt(sigma_sq) * eps).requires_grad_()
    (gradient,) = torch.autograd.grad(Normal(alpha * x, np.sqrt(sigma_sq)).log_prob(z_t).sum(), z_t)
    torch.testing.assert_close(gaussian.target("score", x, eps, float64(-1.2)), gradient)


def test_velocity_is_the_one_of_diffusers():
    ddpm = in_float64(DDPMScheduler(trained_betas=BETAS))
    x, eps, t = randn(), randn(), torch.tensor([3, 400, 999])
    gamma_t = torch.stack([gamma_of(ddpm, index) for index in t.tolist()])
    torch.testing.assert_close(gaussian.target("v_prediction", x, eps, gamma_t), ddpm.get_velocity(x, eps, t))


def test_the_ideal_output_gives_back_data_and_noise(prediction_type):
    x, eps = randn(), randn()
    z_t = gaussian.diffuse(x, eps, GAMMAS)
    output = gaussian.target(prediction_type, x, eps, GAMMAS)
    x_hat, eps_hat = estimates(prediction_type, output, z_t, GAMMAS)
    torch.testing.assert_close(x_hat, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(eps_hat, eps, rtol=1e-9, atol=1e-9)


def test_any_output_is_the_target_of_the_estimates_that_it_stands_for(prediction_type):
    z_t, output = randn(), randn()
    x_hat, eps_hat = estimates(prediction_type, output, z_t, GAMMAS)
    torch.testing.assert_close(gaussian.diffuse(x_hat, eps_hat, GAMMAS), z_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gaussian.target(prediction_type, x_hat, eps_hat, GAMMAS), output, rtol=1e-9, atol=1e-9)


def test_epsilon_error_scale_turns_errors_of_the_output_into_errors_of_eps(prediction_type):
    x, eps, error = randn(), randn(), randn()
    z_t = gaussian.diffuse(x, eps, GAMMAS)
    output = gaussian.target(prediction_type, x, eps, GAMMAS) - error
    eps_hat = gaussian.predicted_epsilon(prediction_type, output, z_t, GAMMAS)
    scale = gaussian.epsilon_error_scale(prediction_type, GAMMAS)
    assert scale.shape == GAMMAS.shape
    torch.testing.assert_close(scale[:, None, None, None] * error, eps - eps_hat, rtol=1e-9, atol=1e-9)


BATCHED = {
    "diffuse": lambda x, eps, gamma: gaussian.diffuse(x, eps, gamma),
    "prior_kl": lambda x, eps, gamma: gaussian.prior_kl(x, gamma),
    "posterior": lambda x, eps, gamma: gaussian.posterior(x, eps, gamma - 1, gamma)[0],
    "reverse_step": lambda x, eps, gamma: gaussian.reverse_step(x, eps, gamma - 1, gamma, x + eps),
    "target": lambda x, eps, gamma: gaussian.target("v_prediction", x, eps, gamma),
    "predicted_sample": lambda x, eps, gamma: gaussian.predicted_sample("v_prediction", x, eps, gamma),
    "predicted_epsilon": lambda x, eps, gamma: gaussian.predicted_epsilon("v_prediction", x, eps, gamma),
}


@pytest.mark.parametrize("function", BATCHED.values(), ids=BATCHED.keys())
def test_a_gamma_for_each_image_is_a_loop_over_the_images(function):
    x, eps = randn(), randn()
    one_by_one = [function(image, noise, gamma) for image, noise, gamma in zip(x, eps, GAMMAS)]
    torch.testing.assert_close(function(x, eps, GAMMAS), torch.stack(one_by_one), rtol=1e-14, atol=1e-14)


READERS_OF_PREDICTIONS = {
    "check_prediction_type": gaussian.check_prediction_type,
    "target": lambda name: gaussian.target(name, randn(), randn(), float64(0.0)),
    "predicted_sample": lambda name: gaussian.predicted_sample(name, randn(), randn(), float64(0.0)),
    "predicted_epsilon": lambda name: gaussian.predicted_epsilon(name, randn(), randn(), float64(0.0)),
    "epsilon_error_scale": lambda name: gaussian.epsilon_error_scale(name, float64(0.0)),
}


@pytest.mark.parametrize("function", READERS_OF_PREDICTIONS.values(), ids=READERS_OF_PREDICTIONS.keys())
def test_an_unknown_prediction_type_is_refused_with_the_known_ones(function, prediction_type):
    with pytest.raises(ValueError, match=f"'velocity'.*`{prediction_type}`"):
        function("velocity")


EXTREMES = [-60.0, -30.0, -13.3, -1.0, 0.0, 1.0, 5.0, 30.0, 60.0]


def exactly(function, *gammas: torch.Tensor) -> float:
    """A definition, evaluated with 60 digits at float32 gammas."""
    with mpmath.workdps(60):
        return float(function(*(mpmath.mpf(gamma.item()) for gamma in gammas)))


def alpha_sq(gamma):
    return 1 / (1 + mpmath.exp(gamma))


def sigma_sq(gamma):
    return 1 - alpha_sq(gamma)


def float32(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def assert_precise(value: torch.Tensor, expected: float, rtol: float) -> None:
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=rtol, abs=0)


@pytest.mark.parametrize("gamma", EXTREMES)
def test_float32_marginals_are_precise_at_extreme_gammas(gamma):
    gamma = float32(gamma)
    assert_precise(gaussian.alpha(gamma), exactly(lambda g: mpmath.sqrt(alpha_sq(g)), gamma), 1e-6)
    assert_precise(gaussian.sigma(gamma), exactly(lambda g: mpmath.sqrt(sigma_sq(g)), gamma), 1e-6)
    assert_precise(gaussian.snr(gamma), exactly(lambda g: alpha_sq(g) / sigma_sq(g), gamma), 1e-6)
    x = float32(0.5)
    expected = exactly(lambda g: (alpha_sq(g) * mpmath.mpf(0.25) - mpmath.log(sigma_sq(g)) - alpha_sq(g)) / 2, gamma)
    assert_precise(gaussian.prior_kl(x, gamma), expected, 1e-5)


@pytest.mark.parametrize("gamma_s, gamma_t", [*zip(EXTREMES, EXTREMES[1:]), (-60.0, 20.0), (-20.0, 60.0)])
def test_float32_steps_are_precise_at_extreme_gammas(gamma_s, gamma_t):
    """The logarithms of the coefficients are as large as gamma, so 60 * 2^-24 of rounding is the relative error."""
    pair, rtol = (float32(gamma_s), float32(gamma_t)), 1e-5
    one, zero = torch.ones(()), torch.zeros(())
    alpha_ts, var_ts = gaussian.transition(*pair)
    assert_precise(alpha_ts, exactly(lambda s, t: mpmath.sqrt(alpha_sq(t) / alpha_sq(s)), *pair), rtol)
    assert_precise(var_ts, exactly(lambda s, t: 1 - alpha_sq(t) / alpha_sq(s), *pair), rtol)

    by_x, variance = gaussian.posterior(one, zero, *pair)
    by_z_t, _ = gaussian.posterior(zero, one, *pair)
    kept = exactly(lambda s, t: mpmath.sqrt(alpha_sq(t) / alpha_sq(s)) * sigma_sq(s) / sigma_sq(t), *pair)
    assert_precise(by_z_t, kept, rtol)
    renewed = exactly(lambda s, t: mpmath.sqrt(alpha_sq(s)) * (1 - alpha_sq(t) / alpha_sq(s)) / sigma_sq(t), *pair)
    assert_precise(by_x, renewed, rtol)
    fresh = exactly(lambda s, t: sigma_sq(s) * (1 - alpha_sq(t) / alpha_sq(s)) / sigma_sq(t), *pair)
    assert_precise(variance, fresh, rtol)

    weight = exactly(lambda s, t: (alpha_sq(s) / sigma_sq(s) / (alpha_sq(t) / sigma_sq(t)) - 1) / 2, *pair)
    assert_precise(gaussian.denoising_kl_weight(*pair), weight, rtol)


@pytest.mark.parametrize("gamma_t", [-13.3, -5.0, 0.0, 5.0])
def test_float32_posterior_is_precise_between_neighbours_of_a_long_chain(gamma_t):
    pair = (float32(gamma_t - 0.0183), float32(gamma_t))
    _, variance = gaussian.posterior(torch.zeros(()), torch.zeros(()), *pair)
    assert_precise(variance, exactly(lambda s, t: sigma_sq(s) * (1 - alpha_sq(t) / alpha_sq(s)) / sigma_sq(t), *pair), 1e-6)
    weight = exactly(lambda s, t: mpmath.expm1(t - s) / 2, *pair)
    assert_precise(gaussian.denoising_kl_weight(*pair), weight, 1e-6)


@pytest.mark.parametrize("gamma_t", [-13.3, -5.0, 0.0, 5.0])
def test_float32_transition_is_precise_between_neighbours_of_a_long_chain(gamma_t):
    pair = (float32(gamma_t - 0.0183), float32(gamma_t))
    _, var_ts = gaussian.transition(*pair)
    assert_precise(var_ts, exactly(lambda s, t: 1 - alpha_sq(t) / alpha_sq(s), *pair), 1e-6)


@pytest.mark.parametrize("gamma", EXTREMES)
def test_float32_predictions_are_finite_and_consistent_at_extreme_gammas(prediction_type, gamma):
    gamma, x, eps = float32(gamma), torch.full((1, 1), 0.5), torch.full((1, 1), -1.25)
    z_t = gaussian.diffuse(x, eps, gamma)
    output = gaussian.target(prediction_type, x, eps, gamma)
    x_hat, eps_hat = estimates(prediction_type, output, z_t, gamma)
    for value in (z_t, output, x_hat, eps_hat, gaussian.epsilon_error_scale(prediction_type, gamma)):
        assert value.isfinite().all()
    torch.testing.assert_close(gaussian.diffuse(x_hat, eps_hat, gamma), z_t, rtol=1e-5, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("gamma_s, gamma_t", [(-60.0, -59.0), (-60.0, 60.0), (59.0, 60.0)])
def test_float32_reverse_steps_are_finite_at_extreme_gammas(gamma_s, gamma_t, eta):
    x, eps, noise = torch.full((1, 1), 0.5), torch.full((1, 1), -1.25), torch.full((1, 1), 0.75)
    z_s = gaussian.reverse_step(x, eps, float32(gamma_s), float32(gamma_t), noise, eta)
    expected = gaussian.reverse_step(x.double(), eps.double(), float64(gamma_s), float64(gamma_t), noise.double(), eta)
    torch.testing.assert_close(z_s, expected.float(), rtol=1e-6, atol=0)
