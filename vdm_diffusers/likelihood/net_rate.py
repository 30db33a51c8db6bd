"""What the lossless codec takes for images: its net rate, to be compared with the bound."""

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from ..compression.ans import BitStack
from ..compression.bits_back import push_image
from ..compression.codec import BIN_PRECISION
from ..compression.latents import CodedLatents
from ..conditioning import Condition, row
from ..vdm import VDM, evaluating
from .estimates import Estimate, check_sizes
from .per_image import for_each_image, generators


@torch.no_grad()
def net_rate(
    vdm: VDM,
    dataset: Dataset,
    num_repeats: int = 1,
    batch_size: int | None = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: PartialState | None = None,
    description: str | None = None,
    bin_precision: int = BIN_PRECISION,
) -> Estimate:
    """
    Bits per dimension that every image of a data set adds to a stack of random bits, `num_repeats` times.

    An image's bits depend on `seed` and its index alone; images are coded one by one, whatever the `batch_size`. `vdm` is one
    of T steps in pixel space, `bin_precision` that of [`compress`]; the other arguments are those of [`variational_bound`]. Its
    expectation is this rate, but that the codec takes less for outliers.
    """
    check_sizes(len(dataset), num_repeats)
    gammas = vdm.noise_schedule.chain(vdm.num_timesteps).double().tolist()
    latents = CodedLatents(vdm, gammas, bin_precision, tuple(dataset[0]["images"].shape))

    def bits(images: Tensor, condition: Condition, indices: Tensor) -> Tensor:
        """Bits per dimension, `(B, R)`."""
        rates = torch.empty(len(images), num_repeats, dtype=torch.float64)
        with evaluating(vdm):
            for place, (image, source) in enumerate(zip(images.cpu(), generators(seed, indices))):
                for repeat in range(num_repeats):
                    stack = _random_stack(latents.initial_bits(), source)
                    before = stack.num_bits
                    key = int(indices[place]) * num_repeats + repeat
                    push_image(stack, latents, image, row(condition, place), key)
                    rates[place, repeat] = (stack.num_bits - before) / latents.num_dims
        return rates

    values = for_each_image(bits, dataset, batch_size or 1, device, processes, description)
    return Estimate.from_repeats(values.transpose(0, 1))


def _random_stack(num_bits: float, source: torch.Generator) -> BitStack:
    words = torch.randint(1 << 32, (int(num_bits / 32) + 1,), generator=source)
    return BitStack.of_random_bits(words.numpy().astype(np.uint32))
