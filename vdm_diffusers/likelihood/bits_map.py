"""Where in an image the bits of its bound are spent."""

import torch
from torch import Tensor

from ..conditioning import Condition
from ..vdm import VDM, evaluating, stratified_times


@torch.no_grad()
def bits_per_pixel(
    vdm: VDM,
    images: Tensor,
    condition: Condition | Tensor | None = None,
    times: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_repeats: int = 1,
) -> Tensor:
    """
    The negative variational bound (section 3.5) of every element of images, of which the bound is the sum.

    One draw of time and noise is as [`~VDM.forward`] draws it: the map of the same draws sums to its bound. With several, an
    image's times are stratified over its repeats, `t = (u + r / R) mod 1`, with another u for each image, and the map is the
    mean over them.

    Args:
        vdm ([`VDM`]): It is evaluated without dropout and left in the mode in which it was. With an error profile, its
            coordinates must be the elements: of the basis `"isotropic"` or `"entries"`.
        images, condition, generator: As [`~VDM.forward`] takes them.
        times (`Tensor` of shape `(B,)`, *optional*): Those of a single draw, as [`~VDM.forward`] takes them.
        noise (`Tensor` of shape `(2, B, C, *size)`, *optional*): Likewise.
        num_repeats (`int`, defaults to 1): Draws an image. A single draw is at one noise level, which differs from image to
            image; some dozens show all levels.

    Returns:
        `Tensor` of shape `(B, C, *size)`: In bits, of real-valued data and of latents in nats, in float32 at least. A pixel's
        bits are the sum over its channels.

    Raises:
        `TypeError` and `ValueError`: as [`~VDM.forward`], for `num_repeats < 1`, and for `times` or `noise` of several draws.
    """
    if num_repeats < 1:
        raise ValueError(f"`num_repeats` is {num_repeats}, but every image needs at least one draw.")
    if num_repeats > 1 and not (times is None and noise is None):
        raise ValueError(f"`times` and `noise` are those of one draw, but `num_repeats` is {num_repeats}: leave them out.")
    draws = [times] if num_repeats == 1 else _times(vdm, len(images), num_repeats, generator)
    with evaluating(vdm):
        nats = sum(vdm(images, condition, t, noise, generator, reduction="none").nats / num_repeats for t in draws)
    return nats / vdm.unit.nats


def _times(vdm: VDM, num_images: int, num_repeats: int, generator: torch.Generator | None) -> Tensor:
    """Those of every repeat and image, `(R, B)`: stratified over all, and so over the repeats of each, images in any order."""
    draws = {"generator": generator, "device": vdm.noise_schedule.device}
    times = stratified_times(torch.rand((), **draws), num_repeats * num_images).reshape(num_repeats, num_images)
    return times[:, torch.randperm(num_images, **draws)]
