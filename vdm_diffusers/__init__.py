"""Variational Diffusion Models (Kingma et al. 2021) for diffusers.

Importing the package makes its classes loadable by [`~diffusers.DiffusionPipeline.from_pretrained`].
"""

import diffusers
from diffusers import ModelMixin, SchedulerMixin  # noqa: F401  diffusers looks for its base classes here
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

from .noise_schedules import (
    BetaLinearSchedule,
    CosineSchedule,
    LearnedChainSchedule,
    LearnedLinearSchedule,
    LearnedMonotoneSchedule,
    LearnedUnpinnedSchedule,
    LinearSchedule,
    NoiseSchedule,
    SigmoidSchedule,
    TableSchedule,
)
from .pipeline_vdm import VDMPipeline
from .scheduling_vdm import VDMScheduler
from .unet_vdm import VDMUNet2DModel
from .vdm import VDM, VDMLoss


__version__ = "0.1.0.dev0"
__all__ = [
    "VDM",
    "VDMLoss",
    "VDMPipeline",
    "VDMScheduler",
    "VDMUNet2DModel",
    "NoiseSchedule",
    "LinearSchedule",
    "CosineSchedule",
    "BetaLinearSchedule",
    "SigmoidSchedule",
    "TableSchedule",
    "LearnedLinearSchedule",
    "LearnedMonotoneSchedule",
    "LearnedChainSchedule",
    "LearnedUnpinnedSchedule",
]


def _register_with_diffusers() -> None:
    """Let diffusers load a pipeline whose `model_index.json` names this package, from a folder or from the Hub."""
    mixins = {name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin")}
    LOADABLE_CLASSES[__name__] = mixins
    ALL_IMPORTABLE_CLASSES.update(mixins)
    for cls in (VDMPipeline, VDMScheduler, VDMUNet2DModel):
        setattr(diffusers, cls.__name__, cls)


_register_with_diffusers()
