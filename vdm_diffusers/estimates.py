"""The mean of something random over images, and how far it is to be trusted."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor

from .units import BITS_PER_DIM, Unit


@dataclass(kw_only=True)
class Estimate:
    """
    The mean over images of an expectation over draws (times, noises), estimated from independent repeats.

    Two errors are kept apart. The images are a sample of a population; the draws are one of many that the same images could
    have had. A figure for *these* images has the second error alone, one for the population that they come from both.

    Attributes:
        per_dim (`float`): Mean over images and repeats, in `unit`, as are the errors.
        standard_error (`float`): Of the mean, as one of the population: both errors.
        standard_error_images (`float`, *optional*): What remains of it with ever more repeats.
        standard_error_draws (`float`, *optional*): What remains of it for these images; from the spread of the repeats' means.
        variance (`float`): Of a single value, that is, of an estimate from one image and one draw.
        unit ([`Unit`]): Bits per dimension of integer images, nats per dimension of real-valued data, such as latents.

    With a single repeat the two errors can't be told from each other: they are `None`, and `standard_error`, from the spread of
    all values, is an upper bound where the draws are stratified.
    """

    per_dim: float
    standard_error: float
    standard_error_images: float | None
    standard_error_draws: float | None
    variance: float
    unit: Unit = BITS_PER_DIM

    @classmethod
    def from_repeats(cls, values: Tensor, **facts: Any) -> Self:
        """Of float64 `values` `(R, N)` for R repeats and N images. Within a repeat the draws may depend on each other.

        `facts` are the attributes that a subclass has besides.
        """
        num_repeats, num_images = values.shape
        spread_of_images = values.mean(0).var().item()
        if num_repeats == 1:
            total, images, draws = math.sqrt(spread_of_images / num_images), None, None
        else:
            from_draws = values.mean(1).var().item() / num_repeats
            from_images = max(spread_of_images - values.var(0).mean().item() / num_repeats, 0.0) / num_images
            total, images, draws = math.sqrt(from_images + from_draws), math.sqrt(from_images), math.sqrt(from_draws)
        return cls(
            per_dim=values.mean().item(),
            standard_error=total,
            standard_error_images=images,
            standard_error_draws=draws,
            variance=values.var().item(),
            **facts,
        )

    @property
    def bits_per_dim(self) -> float:
        """`per_dim` of integer images; `ValueError` for real-valued data."""
        if self.unit is not BITS_PER_DIM:
            raise ValueError("The bound of real-valued data is one of a density, which counts no bits: use `per_dim`.")
        return self.per_dim

    def record(self) -> dict:
        """All of it for JSON, with the name of the unit for `per_dim`."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("unit", "per_dim")}
        return {self.unit.name: self.per_dim} | fields
