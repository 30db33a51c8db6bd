"""Error profiles: how large the errors of a frozen denoiser are at each noise level, which says how best to step with it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from .guards.loading import loading
from .precision import FullPrecisionModule


Basis = Literal["isotropic", "entries", "dct", "principal"]
"""Coordinates of a residual: all alike; its entries; its cosine transform; its principal axes, which are uncorrelated."""

TENSORS, DESCRIPTION = "error_profile.safetensors", "error_profile.json"


class ErrorProfile(FullPrecisionModule):
    """
    The second moments `m_k(gamma) = E c_k²` of the residual `c = A (eps - eps_hat)` in orthonormal coordinates.

    Between the gammas that it was measured at, `log m` is interpolated linearly; beyond them `m` is constant.

    Args:
        gammas (`Tensor` of shape `(G,)`): Where it was measured, increasing.
        moments (`Tensor` of shape `(G, K)`): `m_k`, positive; K = 1 for all coordinates alike, else the number of dimensions.
        standard_errors (`Tensor` of shape `(G, K)`): Of the moments, over the draws.
        basis (`str`): One of `Basis`.
        axes (`Tensor` of shape `(D, D)`, *optional*): A, its rows orthonormal; by default the entries themselves.

    Raises:
        `ValueError`: for tensors that contradict this.
    """

    def __init__(
        self, gammas: Tensor, moments: Tensor, standard_errors: Tensor, basis: Basis = "isotropic", axes: Tensor | None = None
    ):
        super().__init__()
        check_basis(basis)
        if gammas.ndim != 1 or len(gammas) < 2 or not (gammas.diff() > 0).all():
            raise ValueError("`gammas` must be an increasing vector of at least two numbers.")
        if moments.ndim != 2 or len(moments) != len(gammas) or not (moments.isfinite() & (moments > 0)).all():
            raise ValueError(f"`moments` must be positive, of shape ({len(gammas)}, K), but have {tuple(moments.shape)}.")
        if axes is not None and axes.shape != (moments.shape[1],) * 2:
            raise ValueError(f"`axes` have the shape {tuple(axes.shape)}, but there are {moments.shape[1]} moments.")
        if axes is not None and not torch.allclose(axes.double() @ axes.double().T, torch.eye(len(axes)).to(axes).double()):
            raise ValueError("`axes` must be orthonormal rows.")
        self.basis = basis
        for name, tensor in (("gammas", gammas), ("moments", moments), ("standard_errors", standard_errors), ("axes", axes)):
            self.register_buffer(name, None if tensor is None else tensor.double(), persistent=False)

    def forward(self, gamma: Tensor) -> Tensor:
        """`m(gamma)`, `(..., K)`, in the dtype of `gamma`."""
        value = gamma.detach().to(self.gammas.dtype).clamp(self.gammas[0], self.gammas[-1])
        index = torch.searchsorted(self.gammas, value.contiguous()).clamp(1, len(self.gammas) - 1)
        low, high = self.gammas[index - 1], self.gammas[index]
        weight = ((value - low) / (high - low))[..., None]
        return torch.lerp(self.moments[index - 1].log(), self.moments[index].log(), weight).exp().to(gamma.dtype)

    def coordinates(self, residual: Tensor) -> Tensor:
        """Residuals `(B, *shape)` in the coordinates of the moments, `(B, D)`; `ValueError` for another number of them."""
        num_dims, expected = residual[0].numel(), self.moments.shape[1]
        if self.basis != "isotropic" and num_dims != expected:
            raise ValueError(f"The error profile is one of {expected} dimensions, but the samples have {num_dims}.")
        return along(self.axes, residual)

    def widening(self, gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
        """The optimal variances of a step over q's, 1 + d m with d = expm1(gamma_t - gamma_s), `(..., K)` (Bao et al. 2022)."""
        return 1 + torch.expm1(gamma_t - gamma_s)[..., None] * self(gamma_t)

    def widened(self, noise: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
        """
        Noise for the optimal variances of a step, `(B, *shape)`: its coordinates have the variances [`~ErrorProfile.widening`].

        Args:
            noise (`Tensor` of shape `(B, *shape)`): Standard normal.
            gamma_s, gamma_t (`Tensor` of shape `()`): Where the step leads and where it starts.
        """
        factors = self.widening(gamma_s, gamma_t).sqrt().to(noise)
        wide = self.coordinates(noise) * factors
        return (wide if self.axes is None else wide @ self.axes.to(noise)).reshape(noise.shape)

    def to_config(self) -> dict[str, object]:
        """What a configuration holds of it: all of an isotropic one, of others the basis alone, because they may be large."""
        if self.basis != "isotropic":
            return {"basis": self.basis}
        return {"basis": self.basis, "gammas": self.gammas.tolist(), "moments": self.moments[:, 0].tolist()}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "ErrorProfile | None":
        """The isotropic profile that a configuration holds, or `None` for another; `ValueError` for what is none."""
        with loading("The `error_profile` of the configuration"):
            check_basis(config["basis"])
            if config["basis"] != "isotropic":
                return None
            gammas = torch.as_tensor(config["gammas"], dtype=torch.float64)
            moments = torch.as_tensor(config["moments"], dtype=torch.float64)[:, None]
            return cls(gammas, moments, torch.full_like(moments, torch.nan))

    def mean(self) -> Tensor:
        """The mean over the dimensions, `(G,)`."""
        return self.moments.mean(1)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write it into a folder, as safetensors and JSON."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.named_buffers()}
        save_file(tensors, folder / TENSORS)
        (folder / DESCRIPTION).write_text(json.dumps({"basis": self.basis}) + "\n")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str | None = None, **kwargs
    ) -> "ErrorProfile":
        """
        Read what [`~ErrorProfile.save_pretrained`] wrote, from a folder or the Hub, which gets `kwargs`.

        Raises `OSError` if it is missing, `ValueError` if it is damaged.
        """
        name = str(pretrained_model_name_or_path)
        with loading(f"The error profile in {name!r}"):
            if Path(name).is_dir():
                paths = [Path(name, subfolder or "", file) for file in (DESCRIPTION, TENSORS)]
            else:
                paths = [Path(hf_hub_download(name, file, subfolder=subfolder, **kwargs)) for file in (DESCRIPTION, TENSORS)]
            description = json.loads(paths[0].read_text())
            return cls(**load_file(paths[1]), basis=description["basis"])


def check_basis(basis: str) -> None:
    """Raise `ValueError` for a `basis` that is none of `Basis`."""
    if basis not in get_args(Basis):
        raise ValueError(f"`basis` is {basis!r}, but must be one of {', '.join(get_args(Basis))}.")


def along(axes: Tensor | None, residual: Tensor) -> Tensor:
    """Residuals `(B, *shape)` in coordinates along `axes` `(D, D)`, its rows, or else entry by entry: `(B, D)`."""
    flat = residual.flatten(1)
    return flat if axes is None else flat @ axes.T.to(flat)


def cosine_axes(size: Sequence[int]) -> Tensor:
    """The axes of an orthonormal cosine transform (DCT-II) of arrays `size`, `(D, D)`, float64."""
    axes = torch.ones(1, 1, dtype=torch.float64)
    for length in size:
        frequency, place = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
        cosines = torch.cos(torch.pi / length * (place + 0.5) * frequency) * (2 / length) ** 0.5
        cosines[0] /= 2**0.5
        axes = torch.kron(axes, cosines)
    return axes
