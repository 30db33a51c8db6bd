"""Means over images of random estimates, with their errors."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from scipy.special import stdtrit
from torch import Tensor

from ..units import BITS_PER_DIM, Unit


@dataclass(kw_only=True)
class Estimate:
    """
    The mean over images of an expectation over draws (times, noises), estimated from independent repeats.

    There are two sources of error: the images are only a sample of a population, and the draws are only some of many possible.
    A figure for these images has the second error only; a figure for the population has both.

    Attributes:
        per_dim (`float`): Mean over images and repeats, in `unit`, as are the errors.
        standard_error (`float`): Of the mean as a figure for the population, from both sources.
        standard_error_images (`float`, *optional*): The part of the images, which more repeats don't reduce.
        standard_error_draws (`float`, *optional*): The part of the draws, from the spread of the repeats' means.
        interval_95 (`list[float]`): Lower and upper end of an interval that covers the population's figure in 95 % of cases or
            more, by Student's t. For the figure of these images take `standard_error_draws` times the `t` of R - 1 degrees of
            freedom, which is far above 1.96 for few repeats: the error is then itself uncertain.
        variance (`float`): Of a single estimate, from one image and one draw.
        unit ([`Unit`]): Bits per dimension of integer images, nats per dimension of real-valued data, such as latents.
        of_images (`Tensor` of shape `(N,)`): The mean over the repeats, of each image; not part of records.

    With a single repeat the two errors can't be told from each other: they are `None`, and `standard_error`, from the spread of
    all values, is an upper bound where the draws are stratified.
    """

    per_dim: float
    standard_error: float
    standard_error_images: float | None
    standard_error_draws: float | None
    interval_95: list[float]
    variance: float
    of_images: Tensor = field(compare=False, repr=False)
    unit: Unit = BITS_PER_DIM

    @classmethod
    def from_repeats(cls, values: Tensor, **facts: Any) -> Self:
        """Of float64 `values` `(R, N)` for R repeats and N images. Within a repeat the draws may depend on each other.

        `facts` are the attributes that a subclass has besides. Raises `ValueError` for fewer than two images or no repeat.
        """
        num_repeats, num_images = values.shape
        check_sizes(num_images, num_repeats)
        spread_of_images = values.mean(0).var().item()
        if num_repeats == 1:
            total, images, draws = math.sqrt(spread_of_images / num_images), None, None
            margin = _t_of_95(num_images - 1) * total
        else:
            from_draws = values.mean(1).var().item() / num_repeats
            from_images = max(spread_of_images - values.var(0).mean().item() / num_repeats, 0.0) / num_images
            total, images, draws = math.sqrt(from_images + from_draws), math.sqrt(from_images), math.sqrt(from_draws)
            margin = math.hypot(_t_of_95(num_images - 1) * images, _t_of_95(num_repeats - 1) * draws)
        mean = values.mean().item()
        return cls(
            per_dim=mean,
            standard_error=total,
            standard_error_images=images,
            standard_error_draws=draws,
            interval_95=[mean - margin, mean + margin],
            variance=values.var().item(),
            of_images=values.mean(0),
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
        fields = {name: value for name, value in asdict(self).items() if name not in ("unit", "per_dim", "of_images")}
        return {self.unit.name: self.per_dim} | fields


@dataclass(frozen=True)
class Difference:
    """
    The mean difference of two estimates for the same images.

    Attributes:
        per_dim (`float`): In their unit.
        standard_error (`float`): From the differences of the images, whose draws are independent.
    """

    per_dim: float
    standard_error: float

    @classmethod
    def between(cls, more: Estimate, less: Estimate) -> "Difference":
        """That of `more` minus `less`, whose images are the same in the same order."""
        differences = more.of_images - less.of_images
        return cls(differences.mean().item(), differences.std().item() / math.sqrt(len(differences)))


def check_sizes(num_images: int, num_repeats: int) -> None:
    """Raise `ValueError` unless a mean over so many images and repeats has an error that can be estimated."""
    if num_images < 2:
        raise ValueError(f"A standard error needs at least two images, but the data set has {num_images}.")
    if num_repeats < 1:
        raise ValueError(f"`num_repeats` is {num_repeats}, but every image is needed at least once.")


def _t_of_95(degrees_of_freedom: int) -> float:
    """Within plus and minus this, Student's t lies in 95 % of cases."""
    return float(stdtrit(degrees_of_freedom, 0.975))
