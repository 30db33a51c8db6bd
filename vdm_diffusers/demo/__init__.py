"""A page that shows what a model does: images drawn from it, the bits that images cost, and images encoded and decoded again.

Gradio serves it: here with `python -m vdm_diffusers.demo`, elsewhere as a Space.
"""

from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline

from ..guards.loading import reason_of
from .model import DemoModel


if TYPE_CHECKING:
    import gradio


__all__ = ["demo"]


def demo(pipeline: DiffusionPipeline, title: str = "A variational diffusion model") -> "gradio.Blocks":
    """
    The page of a model, to be served by `demo(pipeline).launch()`.

    Visitors wait in one queue for one model, and what they may ask for is bounded. The page sends nothing anywhere, and its
    visitors' browsers ask nobody but its server.

    Args:
        pipeline ([`VDMPipeline`], or any that [`~VDMPipeline.from_pipe`] takes): On the device where it is to run. Models of
            latents and of real-valued data are sampled alone.
        title (`str`): Its heading.

    Returns:
        `gradio.Blocks`: In which other blocks may be put, too.

    Raises:
        `ValueError`: for a model whose samples are no images, and if Gradio is not installed.
    """
    model = DemoModel(pipeline)
    try:
        from .page import page
    except ImportError as error:
        raise ValueError(f"{reason_of(error)} `pip install 'vdm-diffusers[demo]'` installs what the demo needs.") from error
    return page(model, title)
