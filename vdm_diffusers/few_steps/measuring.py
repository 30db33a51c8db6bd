"""Measures the error profile of a frozen denoiser on a data set."""

from collections.abc import Callable
from itertools import islice

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset, IterableDataset, Subset

from ..batching import evaluation_batch_size
from ..conditioning import Condition
from ..error_profiles import Basis, ErrorProfile, along, check_basis, cosine_axes
from ..likelihood.per_image import for_each_image, generators
from ..randomness import counted_generator
from ..vdm import VDM, evaluating


@torch.no_grad()
def error_profile(
    vdm: VDM,
    dataset: Dataset,
    gammas: Tensor,
    basis: Basis = "isotropic",
    num_draws: int = 10_000,
    batch_size: int | None = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
) -> ErrorProfile:
    """
    Estimate `E c_k²` of the residual `eps - eps_hat` at each gamma, the draws shared out evenly among the gammas.

    For principal axes the first half of the draws finds the axes, and the second half the moments along them.

    Args:
        vdm ([`VDM`]): On `device`; it is evaluated without dropout and left in the mode in which it was.
        dataset (`Dataset` or `IterableDataset`): Items as [`ImageDataset`] has them; those of training, if bounds are to be
            reported on others. Of a stream the first `num_draws` are taken, and held in memory.
        gammas (`Tensor` of shape `(G,)`): Increasing.
        basis (`str`): One of `Basis`.
        num_draws (`int`, defaults to 10,000): Denoiser calls for one image, at least two a gamma.
        batch_size, seed, device, processes, description: As [`variational_bound`] takes them.

    Raises:
        `ValueError`: for an unknown basis, and for fewer draws than two a gamma, twice that for principal axes.
        `FloatingPointError`: where a residual is not finite, naming the gamma.
    """
    check_basis(basis)
    num_parts = 2 if basis == "principal" else 1
    needed = MIN_DRAWS * num_parts * len(gammas)
    if num_draws < needed:
        raise ValueError(f"`num_draws` is {num_draws}, but {len(gammas)} gammas in the basis {basis!r} need {needed}.")
    if isinstance(dataset, IterableDataset):
        dataset = list(islice(dataset, num_draws))
    batch_size = batch_size or evaluation_batch_size(vdm.unet, dataset, device, vae=vdm.vae)
    residuals = Residuals(vdm, dataset, gammas, seed, batch_size, device, processes, description)
    *before, draws = torch.arange(num_draws).tensor_split(num_parts)
    axes = None
    if basis == "dct":
        axes = cosine_axes(residuals.shape)
    elif basis == "principal":
        axes = _principal_axes(residuals, *before)
    return _moments(residuals, draws, basis, axes)


MIN_DRAWS = 2
"""At a gamma, for an error."""


class Residuals:
    """
    The residuals `eps - eps_hat` of many draws: the k-th at the gamma of place `k mod G`, on the images in random order, again
    and again, with a noise of its own.
    """

    def __init__(
        self,
        vdm: VDM,
        dataset: Dataset,
        gammas: Tensor,
        seed: int,
        batch_size: int,
        device: str | torch.device,
        processes: PartialState | None,
        description: str | None,
    ):
        self.vdm, self.dataset, self.gammas, self.seed = vdm, dataset, gammas.cpu().double(), seed
        self.batch_size, self.device, self.processes, self.description = batch_size, device, processes, description
        self.shape = vdm.scale(dataset[0]["images"][None].to(device), torch.Generator()).shape[1:]

    def sum(self, draws: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over batches of `function(residuals (B, *shape), places of their gammas (B,))`, float64 on the CPU."""
        total = torch.zeros((), dtype=torch.float64)

        def add(images: Tensor, condition: Condition, indices: Tensor) -> Tensor:
            nonlocal total
            places = draws[indices] % len(self.gammas)
            total = total + function(self._residuals(images, condition, draws[indices], places), places).double().cpu()
            return torch.empty(len(images), 0)

        subset = Subset(self.dataset, self._images(draws))
        for_each_image(add, subset, self.batch_size, self.device, self.processes, self.description)
        return torch.stack(gather_object([total])).sum(0) if self.processes is not None else total

    def _residuals(self, images: Tensor, condition: Condition, draws: Tensor, places: Tensor) -> Tensor:
        sources = generators(self.seed, draws)
        noise = torch.stack([torch.randn(self.shape, generator=source) for source in sources])
        x = self.vdm.scale(images, sources)
        with evaluating(self.vdm):
            residuals = self.vdm.residual(x, self.gammas[places].to(x), noise.to(x), condition)
        if not (finite := residuals.flatten(1).isfinite().all(1).cpu()).all():
            gamma = self.gammas[places[~finite][0]]
            raise FloatingPointError(f"The denoiser's output is not finite at gamma {gamma:.6g}: check the weights.")
        return residuals

    def _images(self, draws: Tensor) -> list[int]:
        """Which image each draw is of."""
        passes, size = int(draws.max()) // len(self.dataset) + 1, len(self.dataset)
        orders = [torch.randperm(size, generator=counted_generator(self.seed, number)) for number in range(passes)]
        return torch.cat(orders)[draws].tolist()


def _principal_axes(residuals: Residuals, draws: Tensor) -> Tensor:
    """The axes `(D, D)` along which residuals, each scaled to length 1, are uncorrelated."""

    def covariance(values: Tensor, places: Tensor) -> Tensor:
        directions = normalize(values.flatten(1).double())
        return directions.T @ directions

    return torch.linalg.eigh(residuals.sum(draws, covariance)).eigenvectors.T


def _moments(residuals: Residuals, draws: Tensor, basis: Basis, axes: Tensor | None) -> ErrorProfile:
    num_gammas = len(residuals.gammas)

    def powers(values: Tensor, places: Tensor) -> Tensor:
        """Of each gamma: how many draws there are, and the sums of their squares and of the squares of these."""
        squares = along(axes, values.double()) ** 2
        squares = squares.mean(1, keepdim=True) if basis == "isotropic" else squares
        terms = torch.stack([torch.ones_like(squares), squares, squares**2], dim=1)
        return terms.new_zeros(num_gammas, *terms.shape[1:]).index_add_(0, places.to(terms.device), terms)

    number, first, second = residuals.sum(draws, powers).unbind(1)
    moments = first / number
    errors = ((second / number - moments**2).clamp(min=0) / (number - 1)).sqrt()
    return ErrorProfile(residuals.gammas, moments, errors, basis, axes)
