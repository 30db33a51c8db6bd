"""Loss weightings: what a noise level counts for in training, relative to the bound (Kingma & Gao 2023, table 1).

In continuous time the diffusion term of the bound is `½ ∫ E||eps - eps_hat||² dgamma`. A weighting `w(gamma)` trains
`½ ∫ w(gamma) E||eps - eps_hat||² dgamma` in its place. It is a function of the noise level alone, so a noise schedule, which
decides how often a level is drawn, doesn't change what is trained. Constant factors are left out.
"""

from collections.abc import Callable

import torch
from torch import Tensor


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "elbo": torch.ones_like,
    "epsilon": lambda gamma: 1 / torch.cosh(gamma / 2),
    "min_snr": lambda gamma: torch.clamp(5 * gamma.exp(), max=1) / torch.cosh(gamma / 2),
    "sigmoid": lambda gamma: torch.sigmoid(gamma + 2),
    "edm": lambda gamma: torch.exp(-((gamma + 2.4) ** 2) / (2 * 2.4**2)) * (gamma.exp() + 0.25),
}
"""`w(gamma)`, shaped as `gamma`.

`elbo` is the bound itself; `epsilon` the plain squared error of the noise under the cosine schedule (Nichol & Dhariwal 2021);
`min_snr` that error times `min(1, 5 / SNR)` (Hang et al. 2023); `sigmoid` discounts the finest details (Kingma & Gao 2023, with
k = 2); `edm` is that of Karras et al. 2022. A new weighting is one entry.
"""


def check_weighting(weighting: str) -> None:
    """Raise `ValueError` for a `weighting` that is not in `WEIGHTINGS`."""
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"`weighting` is {weighting!r}, but it must be one of {', '.join(f'`{name}`' for name in WEIGHTINGS)}."
        )
