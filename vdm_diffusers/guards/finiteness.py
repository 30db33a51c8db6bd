"""Where numbers that are none come from, told without making the device wait: black pictures are never the answer."""

import torch
from torch import Tensor, nn

from ..precision import compute_dtype


class Trace:
    """What the denoiser and the scheduler made in each step, as a number each, looked at only if the end is not finite."""

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(self, timestep: Tensor, model_output: Tensor, latents: Tensor) -> None:
        """Keep the sums over a step's images, `()`, where they are."""
        self._sums.append((timestep, model_output.sum(), latents.sum()))

    def check(self, latents: Tensor, unet: nn.Module) -> None:
        """Raise `FloatingPointError` unless the latents that sampling ends with are finite, and say since which step."""
        if is_finite(latents):
            return
        found = "the latents are not finite at the end"
        for step, (timestep, output, z) in enumerate(self._sums):
            if not (output.isfinite() and z.isfinite()):
                what = (
                    f"the scheduler's step with {type(unet).__name__}'s output"
                    if output.isfinite()
                    else "the denoiser's output"
                )
                found = f"{what} is not finite at step {step} of {len(self._sums)}, timestep {float(timestep):.6g}"
                break
        raise FloatingPointError(
            f"No images: {found}, with {type(unet).__name__} in {compute_dtype(unet)}. Sample in float32 or bfloat16, which"
            " overflow less than float16, and check the weights, the guidance and what a callback returns."
        )


def check_images(images: Tensor, vae: nn.Module | None) -> None:
    """Raise `FloatingPointError` unless what is to be shown is finite."""
    if is_finite(images):
        return
    if vae is None:
        raise FloatingPointError("No images: the latents to decode are not finite.")
    raise FloatingPointError(
        f"No images: what {type(vae).__name__} decodes in {compute_dtype(vae)} is not finite. Decode in float32, by"
        " `pipe.vae.to(torch.float32)`, or in bfloat16, and check the weights."
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it is; on the meta device, where there are no numbers, it is."""
    return tensor.device.type == "meta" or bool(torch.isfinite(tensor).all())
