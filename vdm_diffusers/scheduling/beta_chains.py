"""β-chains, as diffusers has them: `ᾱ_i = (1 - β_0) ⋯ (1 - β_i)` in float32, whose index is the timestep of a stock model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from torch import Tensor


CHAIN_OPTIONS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "timestep_spacing", "steps_offset",
)  # fmt: skip
"""The part of a configuration that says what a chain is and which of its indices are visited, as diffusers has it."""


def _cosine(t: np.ndarray) -> np.ndarray:
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


def _laplace(t: np.ndarray) -> np.ndarray:
    log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
    return np.sqrt(1 / (1 + np.exp(-log_snr)))


def _of_alphas_cumprod(function: Callable[[np.ndarray], np.ndarray], length: int) -> Tensor:
    """The chain that discretises ᾱ, a function of time, with no β above 0.999."""
    alphas_cumprod = function(np.arange(length + 1) / length)
    return torch.from_numpy(np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)).float()


BETA_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, length: torch.linspace(start, end, length, dtype=torch.float32),
    "scaled_linear": lambda start, end, length: torch.linspace(start**0.5, end**0.5, length, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": lambda start, end, length: _of_alphas_cumprod(_cosine, length),
    "laplace": lambda start, end, length: _of_alphas_cumprod(_laplace, length),
    "sigmoid": lambda start, end, length: torch.sigmoid(torch.linspace(-6, 6, length)) * (end - start) + start,
}
"""`(beta_start, beta_end, length) -> β`, by the names that [`~diffusers.DDPMScheduler`] gives them."""


def chain_betas(
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    beta_schedule: str | None,
    trained_betas: Sequence[float] | None,
    rescale_betas_zero_snr: bool,
) -> Tensor:
    """The β of a configuration, float32, `(N,)`: `trained_betas`, or else those of the named schedule.

    Raises `ValueError` for a β outside (0, 1); the last may be 1.
    """
    if trained_betas is not None:
        betas = torch.tensor(trained_betas, dtype=torch.float32)
    else:
        betas = BETA_SCHEDULES[beta_schedule](beta_start, beta_end, num_train_timesteps)
    inside = (betas > 0) & (betas < 1)
    inside[-1:] |= betas[-1:] == 1
    if not inside.all():
        index = int(inside.logical_not().nonzero()[0])
        raise ValueError(
            f"β_{index} of the chain is {betas[index].item():g}, but a β is a share of variance, between 0 and 1: correct"
            " `trained_betas`, or `beta_start` and `beta_end`."
        )
    return rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas


def chain_gammas(alphas_cumprod: Tensor) -> Tensor:
    """`log((1 - ᾱ_i) / ᾱ_i)` of a chain, float64, `(N,)`, strictly increasing; it may end in infinity.

    Raises `ValueError` for a chain of one index, and for one whose ᾱ float32 can't tell from 1, from each other or from 0.
    """
    alphas_cumprod = alphas_cumprod.double()
    gammas = torch.log1p(-alphas_cumprod) - torch.log(alphas_cumprod)
    if len(gammas) < 2:
        raise ValueError("A β-chain has at least two indices, but this one has only one.")
    if not (gammas[:-1].isfinite().all() and (gammas.diff() > 0).all()):
        raise ValueError(
            "ᾱ of the chain must fall strictly between 1 and 0, but in float32 it is constant somewhere or 0 before its end:"
            " its β are too small or too large for its length."
        )
    return gammas


def betas_of(gammas: Tensor) -> Tensor:
    """The chain with `ᾱ_i = sigmoid(-gammas_i)`, `(N,)`, for arithmetic in float32: all β are multiples of 2⁻²⁴.

    `1 - β` is then exact. Sums of β are rounded, not each β, so that the errors of their products do not add up.
    """
    gammas = gammas.double()
    log_alphas_cumprod = -torch.nn.functional.softplus(gammas)
    betas = -torch.expm1(torch.diff(log_alphas_cumprod, prepend=log_alphas_cumprod.new_zeros(1)))
    sums = (betas.cumsum(0) * 2**24).round()
    return torch.diff(sums, prepend=sums.new_zeros(1)) / 2**24


def _leading(num_steps: int, length: int, offset: int) -> np.ndarray:
    return np.arange(num_steps)[::-1] * (length // num_steps) + offset


def _linspace(num_steps: int, length: int, offset: int) -> np.ndarray:
    return np.linspace(0, length - 1, num_steps).round()[::-1]


def _trailing(num_steps: int, length: int, offset: int) -> np.ndarray:
    return np.round(np.arange(length, 0, -length / num_steps))[:num_steps] - 1  # rounding may add an index of -1


SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}
"""`(num_steps, length, offset) -> indices` of a chain, decreasing, by the names that diffusers gives them."""
