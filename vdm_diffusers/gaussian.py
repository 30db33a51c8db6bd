"""The Gaussians of a variance-preserving diffusion, as pure functions of `gamma = -log SNR`.

    alpha² = sigmoid(-gamma)    sigma² = sigmoid(gamma)    SNR = alpha² / sigma² = exp(-gamma)

Nothing here knows where a gamma came from. Throughout, `s < t`: t = 0 is data and t = 1 is noise. A `gamma` is a scalar
tensor or one value per image, `(B,)`; it is broadcast against samples `(B, *shape)`. `1 - alpha²` is never formed: every
coefficient goes through `sigmoid`, `softplus` or `expm1`, so it keeps its relative precision at both ends of the diffusion.
Sections are those of Kingma et al. 2021, "Variational Diffusion Models".
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def expand(gamma: Tensor, x: Tensor) -> Tensor:
    """Append dimensions to a per-image `gamma` `(B,)` until it broadcasts against `x` `(B, ...)`; a scalar stays one."""
    return gamma.reshape(gamma.shape + (1,) * (x.ndim - gamma.ndim)) if gamma.ndim else gamma


def alpha(gamma: Tensor) -> Tensor:
    """Scale of the signal, `alpha = sqrt(sigmoid(-gamma))` (section 3.2)."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Scale of the noise, `sigma = sqrt(sigmoid(gamma))` (section 3.2)."""
    return torch.sigmoid(gamma).sqrt()


def snr(gamma: Tensor) -> Tensor:
    """Signal-to-noise ratio, `alpha² / sigma² = exp(-gamma)` (section 3.1)."""
    return torch.exp(-gamma)


def diffuse(x: Tensor, eps: Tensor, gamma_t: Tensor) -> Tensor:
    """A sample of `q(z_t|x) = N(alpha_t x, sigma_t² I)` (section 3.1) made of the noise `eps`, all shaped as `x`."""
    gamma_t = expand(gamma_t, x)
    return alpha(gamma_t) * x + sigma(gamma_t) * eps


def transition(gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and variance of the forward transition `q(z_t|z_s) = N(alpha_ts z_s, var_ts I)` (appendix A.1).

    Between neighbours of the chain, `s = (i-1)/T` and `t = i/T`, it is `q(x_i|x_{i-1}) = N(√α_i x_{i-1}, (1-α_i) I)`:
    `alpha_ts = √α_i` and `var_ts = 1 - α_i`.
    """
    alpha_ts = torch.exp(0.5 * (softplus(gamma_s) - softplus(gamma_t)))
    return alpha_ts, torch.sigmoid(gamma_t) * -torch.expm1(gamma_s - gamma_t)


def posterior(x: Tensor, z_t: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, shaped as `x`, and variance, broadcastable to it, of `q(z_s|z_t, x)` (appendix A.2).

    With the denoiser's estimate in the place of `x` it is the reverse transition `p(z_s|z_t)` (section 3.3).
    """
    gamma_s, gamma_t = expand(gamma_s, x), expand(gamma_t, x)
    alpha_ts, _ = transition(gamma_s, gamma_t)
    kept = torch.exp(logsigmoid(gamma_s) - logsigmoid(gamma_t)) * alpha_ts  # alpha_ts sigma_s² / sigma_t²
    renewed = -torch.expm1(gamma_s - gamma_t)  # var_ts / sigma_t²
    return kept * z_t + alpha(gamma_s) * renewed * x, torch.sigmoid(gamma_s) * renewed


def reverse_step(x: Tensor, eps: Tensor, gamma_s: Tensor, gamma_t: Tensor, noise: Tensor, eta: float = 1.0) -> Tensor:
    """One reverse step from `t` to `s`, written in the estimates `x` and `eps` of data and noise at `t`.

    `z_s = alpha_s x + sigma_s (√(1 - eta² c) eps + eta √c noise)` with `c = 1 - exp(gamma_s - gamma_t)`. `eta = 1` samples
    `q(z_s|z_t, x)`, the ancestral step (appendix A.4); `eta = 0` is the deterministic step of DDIM (Song et al. 2020).
    """
    gamma_s, gamma_t = expand(gamma_s, x), expand(gamma_t, x)
    fresh = -torch.expm1(gamma_s - gamma_t) * eta**2
    return alpha(gamma_s) * x + sigma(gamma_s) * ((1 - fresh).sqrt() * eps + fresh.sqrt() * noise)


def prior_kl(x: Tensor, gamma_1: Tensor) -> Tensor:
    """`KL(q(z_1|x) || N(0, I))` of every element in nats, shaped as `x` (the prior loss, section 3.5)."""
    gamma_1 = expand(gamma_1, x)
    alpha_sq = torch.sigmoid(-gamma_1)
    return 0.5 * (alpha_sq * x**2 + softplus(-gamma_1) - alpha_sq)


def denoising_kl_weight(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Factor of `||eps - eps_hat||²` in `KL(q(z_s|z_t, x) || p(z_s|z_t))`, in nats: `expm1(gamma_t - gamma_s) / 2` (section 4).

    Equivalently, `(SNR(s) - SNR(t)) / 2` is the factor of `||x - x_hat||²`.
    """
    return 0.5 * torch.expm1(gamma_t - gamma_s)


def reverse_kl(step: Tensor, square: Tensor, moment: Tensor) -> Tensor:
    """`KL(q(z_s|z_t, x) || p(z_s|z_t))` of coordinates, in nats, where p has `1 + step * moment` times the variance of q.

    `step` is `expm1(gamma_t - gamma_s)`, and `square` that of the coordinate of `eps - eps_hat`. The expectation is least where
    `moment` is that of `square`, and then `½ log1p(step * moment)` (Bao et al. 2022); for `moment` 0 it is `½ step * square`.
    """
    excess = step * moment
    return 0.5 * (torch.log1p(excess) + (step * square - excess) / (1 + excess))


Coefficients = tuple[Tensor | float, Tensor | float]

PREDICTIONS: dict[str, Callable[[Tensor, Tensor], Coefficients]] = {
    "sample": lambda alpha, sigma: (1.0, 0.0),
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "score": lambda alpha, sigma: (0.0, -1.0 / sigma),
    "v_prediction": lambda alpha, sigma: (-sigma, alpha),
}
"""What a denoiser may predict, as `(a, b)` such that its ideal output is `a x + b eps`, given `(alpha_t, sigma_t)`.

`x` and `eps` follow from an output because `z_t = alpha x + sigma eps` is known: two linear equations with the determinant
`alpha b - sigma a`. A new parameterisation is one entry.
"""


def check_prediction_type(prediction_type: str) -> None:
    """Raise `ValueError` for a `prediction_type` that is not in `PREDICTIONS`."""
    if not isinstance(prediction_type, str) or prediction_type not in PREDICTIONS:
        known = ", ".join(f"`{name}`" for name in PREDICTIONS)
        raise ValueError(f"`prediction_type` is {prediction_type!r}, but it must be one of {known}.")


def _system(prediction_type: str, gamma_t: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor | float]:
    """`alpha, sigma` of `z_t` and `a, b` of the output: the rows of the two equations in `x` and `eps`."""
    check_prediction_type(prediction_type)
    alpha_t, sigma_t = alpha(gamma_t), sigma(gamma_t)
    return alpha_t, sigma_t, *PREDICTIONS[prediction_type](alpha_t, sigma_t)


def target(prediction_type: str, x: Tensor, eps: Tensor, gamma_t: Tensor) -> Tensor:
    """The ideal output for data `x` and noise `eps`, shaped as `x`."""
    _, _, a, b = _system(prediction_type, expand(gamma_t, x))
    return a * x + b * eps


def predicted_sample(prediction_type: str, output: Tensor, z_t: Tensor, gamma_t: Tensor) -> Tensor:
    """The estimate of `x` that an `output` at `z_t` stands for, shaped as `z_t`."""
    from_z, from_output, divisor = sample_equation(prediction_type, expand(gamma_t, z_t))
    return (from_z * z_t + from_output * output) / divisor


def sample_equation(prediction_type: str, gamma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(p, q, r)`, each shaped as `gamma_t`, such that `x = (p z_t + q output) / r`."""
    alpha_t, sigma_t, a, b = _system(prediction_type, gamma_t)
    return b * torch.ones_like(gamma_t), -sigma_t, alpha_t * b - sigma_t * a


def predicted_epsilon(prediction_type: str, output: Tensor, z_t: Tensor, gamma_t: Tensor) -> Tensor:
    """The estimate of `eps` that an `output` at `z_t` stands for, shaped as `z_t`."""
    alpha_t, sigma_t, a, b = _system(prediction_type, expand(gamma_t, z_t))
    return (alpha_t * output - a * z_t) / (alpha_t * b - sigma_t * a)


def epsilon_error_scale(prediction_type: str, gamma_t: Tensor) -> Tensor:
    """Factor, shaped as `gamma_t`, that turns an error of the output into the error of `eps` that it stands for.

    Multiplying `target - output` by it avoids the cancellation in `eps - predicted_epsilon(...)`.
    """
    alpha_t, sigma_t, a, b = _system(prediction_type, gamma_t)
    return alpha_t / (alpha_t * b - sigma_t * a)
