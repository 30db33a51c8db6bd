"""The mean of something random over images, and how far it is to be trusted."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Estimate:
    """
    The mean over images of an expectation over draws (times, noises), estimated from independent repeats.

    Two errors are kept apart. The images are a sample of a population; the draws are one of many that the same images could
    have had. A figure for *these* images has the second error alone, one for the population that they come from both.

    Attributes:
        mean (`float`): Over images and repeats.
        standard_error (`float`): Of the mean, as one of the population: both errors.
        standard_error_images (`float`, *optional*): What remains of it with ever more repeats.
        standard_error_draws (`float`, *optional*): What remains of it for these images; from the spread of the repeats' means.
        variance (`float`): Of a single value, that is, of an estimate from one image and one draw.

    With a single repeat the two errors can't be told from each other: they are `None`, and `standard_error`, from the spread of
    all values, is an upper bound where the draws are stratified.
    """

    mean: float
    standard_error: float
    standard_error_images: float | None
    standard_error_draws: float | None
    variance: float

    @classmethod
    def from_repeats(cls, values: Tensor) -> "Estimate":
        """Of float64 `values` `(R, N)` for R repeats and N images. Within a repeat the draws may depend on each other."""
        num_repeats, num_images = values.shape
        mean, variance = values.mean().item(), values.var().item()
        spread_of_images = values.mean(0).var().item()
        if num_repeats == 1:
            return cls(mean, math.sqrt(spread_of_images / num_images), None, None, variance)
        from_draws = values.mean(1).var().item() / num_repeats
        from_images = max(spread_of_images - values.var(0).mean().item() / num_repeats, 0.0) / num_images
        return cls(mean, math.sqrt(from_images + from_draws), math.sqrt(from_images), math.sqrt(from_draws), variance)
