"""The variational bound of a data set, in bits per dimension."""

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from ..batching import evaluation_batch_size
from ..conditioning import Condition
from ..vdm import VDM, VDMLoss, evaluating, stratified_times
from .estimates import Estimate, check_sizes
from .per_image import for_each_image, generators


MAX_BINS = 50
MIN_VALUES_PER_BIN = 8


@dataclass
class LossProfile:
    """The diffusion term as a function of gamma, `½ E ||eps - eps_hat||²`: its integral over gamma is the term.

    In discrete time it is the KL divergence of a step over the step's gammas.

    Attributes:
        gammas (`list[float]`): Edges of the bins, from `gamma(0)` to `gamma(1)`.
        per_dim (`list[float]`): Mean of each bin, in units of the bound per unit of gamma.
        standard_error (`list[float]`): Of each mean, over images and draws.
    """

    gammas: list[float]
    per_dim: list[float]
    standard_error: list[float]


@dataclass(kw_only=True)
class VariationalBound(Estimate):
    """The negative variational bound of a data set, everything in one unit. Its errors and its variance are an [`Estimate`]'s.

    Attributes:
        prior, reconstruction, diffusion (`float`): Its three terms.
        profile ([`LossProfile`]): The last of them over gamma.
    """

    prior: float
    reconstruction: float
    diffusion: float
    profile: LossProfile

    def record(self) -> dict:
        profile = {"gammas": self.profile.gammas, self.unit.name: self.profile.per_dim}
        return super().record() | {"profile": profile | {"standard_error": self.profile.standard_error}}


@torch.no_grad()
def variational_bound(
    vdm: VDM,
    dataset: Dataset,
    num_repeats: int = 1,
    batch_size: int | None = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
) -> VariationalBound:
    """
    Estimate the bound (section 3.5) with every image used exactly `num_repeats` times.

    In each repeat the times are stratified over all images, `t = (u + k / N) mod 1`, k in random order; u, the order and the
    noises are drawn anew, so that the repeats are independent and their spread is an unbiased measure of the error. An image's
    draws depend on `seed` and its index alone: neither on the batches nor on the processes.

    Args:
        vdm ([`VDM`]): On `device`; it is evaluated without dropout and left in the mode in which it was.
        dataset (`Dataset`): Items as [`ImageDataset`] has them, of which there are at least two.
        num_repeats (`int`, defaults to 1): Times and noises an image.
        batch_size (`int`, *optional*, defaults to 128): Images a batch; as many as memory allows for `None`.
        seed (`int`, defaults to 0): Of the draws.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the model is.
        processes (`PartialState`, *optional*): Those that share the images; each must call this.
        description (`str`, *optional*): For a progress bar.

    Raises:
        `ValueError`: for fewer than two images, and for `num_repeats < 1`.
        `FloatingPointError`: when a term is not finite, naming the image and the timestep.
    """
    check_sizes(len(dataset), num_repeats)
    times = shuffled_times(num_repeats, len(dataset), seed)

    def terms(images: Tensor, condition: Condition, indices: Tensor) -> Tensor:
        """`(B, R, 3)`."""
        sources, repeats = generators(seed, indices), []
        for repeat in range(num_repeats):
            noise = torch.stack([torch.randn(2, *images.shape[1:], generator=source) for source in sources], dim=1)
            t = times[repeat, indices].to(device)
            with evaluating(vdm):
                loss = vdm(images, condition, t, noise.to(device))
            _check_finite(loss, vdm, t, indices)
            repeats.append(torch.stack([loss.prior, loss.reconstruction, loss.diffusion], dim=1) / loss.nats_in_unit)
        return torch.stack(repeats, dim=1)

    batch_size = batch_size or evaluation_batch_size(vdm.unet, dataset, device, vae=vdm.vae)
    values = for_each_image(terms, dataset, batch_size, device, processes, description).transpose(0, 1)
    prior, reconstruction, diffusion = values.mean((0, 1)).tolist()
    return VariationalBound.from_repeats(
        values.sum(2),
        unit=vdm.unit,
        prior=prior,
        reconstruction=reconstruction,
        diffusion=diffusion,
        profile=_profile(vdm, times.flatten().double(), values[:, :, 2].flatten()),
    )


def shuffled_times(num_repeats: int, num_images: int, seed: int) -> Tensor:
    """One time an image and repeat, `(R, N)`, those of a repeat stratified and in random order, independent of the others."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.empty(num_repeats, num_images)
    for row in times:
        stratified = stratified_times(torch.rand((), generator=generator), num_images)
        row.copy_(stratified[torch.randperm(num_images, generator=generator)])
    return times


def _check_finite(loss: VDMLoss, vdm: VDM, times: Tensor, indices: Tensor) -> None:
    bad = (~loss.nats.isfinite()).nonzero().flatten().tolist()
    if bad:
        timestep = vdm.timestep_map(vdm.noise_schedule(times[bad[0]])).item()
        raise FloatingPointError(
            f"The bound of image {indices[bad[0]]} is not finite at timestep {timestep:.6g} (t = {times[bad[0]]:.6g}): the"
            " denoiser's output there is NaN, infinite or too large. Evaluate in float32, and check the weights."
        )


def _profile(vdm: VDM, times: Tensor, diffusion: Tensor) -> LossProfile:
    """From estimates of the diffusion term at float64 times, each `(R N,)`."""
    steps = vdm.num_timesteps
    num_bins = max(1, min(MAX_BINS, len(times) // MIN_VALUES_PER_BIN, steps or MAX_BINS))
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    if steps is not None:
        edges, times = (edges * steps).round() / steps, (times * steps).ceil().clamp(min=1) / steps
    bins = torch.bucketize(times, edges[1:-1])
    gammas = vdm.noise_schedule(edges.to(vdm.noise_schedule.device)).cpu()
    parts = [diffusion[bins == i] for i in range(num_bins)]
    width = edges.diff() / gammas.diff()
    means = torch.stack([part.mean() for part in parts]) * width
    errors = torch.stack([part.std() / len(part) ** 0.5 for part in parts]) * width
    return LossProfile(gammas.tolist(), means.tolist(), errors.tolist())
