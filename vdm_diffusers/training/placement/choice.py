"""The placement that accelerate is configured for, and whether a model can be trained there."""

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ...guards.messages import refuse_if
from ...vdm import VDM
from ..config import TrainingConfig
from ..resuming import Placement
from .fsdp import Sharded, refused_by_fsdp
from .whole import Replicated


LIBRARIES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
"""Libraries that divide a model, but not here, by the variable with which `accelerate launch` chooses each."""


def check_launch() -> None:
    """`ValueError` if accelerate was launched for one of [`LIBRARIES`]. Call it first: building an `Accelerator` imports it."""
    for variable, library in LIBRARIES.items():
        if os.environ.get(variable, "").lower() == "true":
            raise _not_supported(library)


def placement_of(accelerator: Accelerator) -> Placement:
    """Where a model is while it trains."""
    return Placement.SHARDED if accelerator.is_fsdp2 else Placement.WHOLE


def place(accelerator: Accelerator, vdm: VDM, config: TrainingConfig) -> Replicated:
    """Put a model there."""
    return (Sharded if accelerator.is_fsdp2 else Replicated)(accelerator, vdm, config)


def check_placement(accelerator: Accelerator, config: TrainingConfig) -> None:
    """`ValueError` if accelerate is configured for version 1 of FSDP, or for options that version 2 doesn't support here."""
    if accelerator.distributed_type is not DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise _not_supported("FSDP version 1")
    refused = {f"`{name}`": is_on for name, is_on in refused_by_fsdp(accelerator).items()} | {
        "{mixed_precision:fp16}": config.mixed_precision == "fp16",
        "{optimizer:adamw_8bit}": config.optimizer == "adamw_8bit",
        "{torch_compile}": config.torch_compile,
        "{lora_rank}": config.lora_rank is not None,
    }
    found = ", ".join(name for name, is_on in refused.items() if is_on)
    refuse_if(bool(found), f"A model that FSDP divides can't be trained with {found}: leave it out.")


def _not_supported(library: str) -> ValueError:
    return ValueError(
        f"accelerate is configured for {library}, but only FSDP version 2 divides a model here: launch with the configuration"
        " `docs/accelerate/fsdp.yaml`, or with `docs/accelerate/one_machine.yaml` if the model fits on each GPU."
    )
