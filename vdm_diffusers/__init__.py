"""Variational Diffusion Models (Kingma et al. 2021) for diffusers.

Importing the package makes its classes loadable by [`~diffusers.DiffusionPipeline.from_pretrained`]. Its modules are imported
when one of their names is first used, as in diffusers itself.
"""

import sys
from typing import TYPE_CHECKING

import diffusers
from diffusers.utils import _LazyModule


__version__ = "0.1.0.dev0"

_import_structure = {
    "vdm": ["VDM", "VDMLoss"],
    "pipeline_vdm": ["VDMPipeline"],
    "scheduling_vdm": ["VDMScheduler"],
    "unet_vdm": ["VDMUNet2DModel"],
    "noise_schedules": [
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
    ],
}
__all__ = [name for names in _import_structure.values() for name in names]


if TYPE_CHECKING:
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


def _register_with_diffusers(package: _LazyModule) -> None:
    """Make the package one of diffusers' pipeline modules: there it looks for the classes that a `model_index.json` names."""
    alias = f"pipelines.{__name__}"
    sys.modules[f"diffusers.{alias}"] = package
    setattr(diffusers.pipelines, __name__, package)
    for name in ("VDMPipeline", "VDMScheduler", "VDMUNet2DModel"):
        if isinstance(diffusers, _LazyModule):
            diffusers._class_to_module[name] = alias
        else:  # DIFFUSERS_SLOW_IMPORT
            setattr(diffusers, name, getattr(package, name))


sys.modules[__name__] = _LazyModule(
    __name__, __file__, _import_structure, module_spec=__spec__, extra_objects={"__version__": __version__}
)
sys.modules[__name__].__doc__ = __doc__
_register_with_diffusers(sys.modules[__name__])
