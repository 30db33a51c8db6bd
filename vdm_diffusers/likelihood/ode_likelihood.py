"""The likelihood of images under the probability-flow ODE."""

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from ..batching import evaluation_batch_size
from ..conditioning import Condition
from ..probability_flow.likelihood import log_likelihood
from ..units import LOG_2
from ..vdm import VDM
from .estimates import Estimate, check_sizes
from .per_image import for_each_image, generators


@dataclass(kw_only=True)
class ODELikelihood(Estimate):
    """The negative log-likelihood of a data set under the ODE, in bits per dimension.

    Its errors and its variance are an [`Estimate`]'s, whose draws are those of dequantisation and probe.

    Attributes:
        num_evaluations (`float`): Mean number of evaluations of the denoiser, for an image and repeat.
        max_evaluations (`int`): The largest such number.
    """

    num_evaluations: float
    max_evaluations: int


def ode_likelihood(
    vdm: VDM,
    dataset: Dataset,
    num_repeats: int = 1,
    batch_size: int | None = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
    **options,
) -> ODELikelihood:
    """
    [`log_likelihood`] of every image of a data set, `num_repeats` times; `options` are its.

    An image's draws depend on `seed` and its index alone, and it is integrated with steps of its own: neither batches nor
    processes matter. The other arguments are those of [`variational_bound`].
    """
    check_sizes(len(dataset), num_repeats)

    def bits(images: Tensor, condition: Condition, indices: Tensor) -> Tensor:
        """Bits per dimension and number of evaluations, `(B, R, 2)`."""
        sources = generators(seed, indices)
        scale = -1 / (images[0].numel() * LOG_2)
        try:
            repeats = [log_likelihood(vdm, images, condition, generator=sources, **options) for _ in range(num_repeats)]
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} The batch begins with image {indices[0]} of the data set.") from error
        return torch.stack([torch.stack([scale * nats.cpu(), number], dim=1) for nats, number in repeats], dim=1)

    batch_size = batch_size or evaluation_batch_size(vdm.unet, dataset, device, with_gradients=True)
    results = for_each_image(bits, dataset, batch_size, device, processes, description)
    values, num_evaluations = results.transpose(0, 1).unbind(2)
    return ODELikelihood.from_repeats(
        values, num_evaluations=num_evaluations.mean().item(), max_evaluations=int(num_evaluations.max())
    )
