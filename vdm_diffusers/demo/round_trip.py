"""Images to latents by the probability-flow ODE, and back."""

from dataclasses import dataclass

from torch import Tensor

from ..conditioning import Condition
from ..pipeline_vdm import VDMPipeline


@dataclass(frozen=True)
class RoundTrip:
    """
    Attributes:
        images, back (`Tensor` of shape `(B, C, H, W)`): Integers in `[0, num_levels)`: what was encoded, and what came back.
        latents (`Tensor` of shape `(B, C, H, W)`): `z_1`, on the CPU.
    """

    images: Tensor
    latents: Tensor
    back: Tensor

    @property
    def num_different(self) -> int:
        """How many elements came back as another level."""
        return (self.images != self.back).sum().item()

    @property
    def largest_difference(self) -> int:
        """By how many levels at most."""
        return (self.images - self.back).abs().max().item()

    def __str__(self) -> str:
        """In two sentences."""
        number, different = self.images.numel(), self.num_different
        back = f"All {number:,} numbers came back as they were."
        if different:
            back = f"{different:,} of {number:,} numbers came back as another level, by {self.largest_difference} at most."
        mean, deviation = self.latents.mean().item(), self.latents.std().item()
        return f"{back} The latents have the mean {mean:.2f} and the standard deviation {deviation:.2f}; noise has 0 and 1."


TOLERANCES = (1e-3, 1e-4, 1e-5)
"""Of the ODE that there is time for on a page: a tenth takes some twice as long."""


def encode_and_decode(pipeline: VDMPipeline, images: Tensor, condition: Condition, tolerance: float = 1e-4) -> RoundTrip:
    """
    Integers `(B, C, H, W)` by [`~VDMPipeline.encode`], and back by [`~VDMPipeline.decode`].

    Raises `ValueError` for a tolerance that is none of `TOLERANCES`, and errors as those two.
    """
    if tolerance not in TOLERANCES:
        raise ValueError(f"`tolerance` is {tolerance!r}, but must be one of {', '.join(map(str, TOLERANCES))}.")
    latents = pipeline.encode(images, condition=condition, tolerance=tolerance)
    shown = pipeline.decode(latents, condition=condition, tolerance=tolerance, output_type="pt")
    back = (shown.cpu() * (pipeline.config.num_levels - 1)).round().to(images.dtype)
    return RoundTrip(images, latents.cpu(), back)
