"""The placement that accelerate is configured for, and whether a model can be trained there."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ...vdm import VDM
from ..config import TrainingConfig
from ..resuming import Placement
from .fsdp import Sharded, refused_by_fsdp
from .whole import Replicated


def placement_of(accelerator: Accelerator) -> Placement:
    """Where a model is while it trains."""
    return Placement.SHARDED if accelerator.is_fsdp2 else Placement.WHOLE


def place(accelerator: Accelerator, vdm: VDM, config: TrainingConfig) -> Replicated:
    """Put a model there."""
    kind = Sharded if placement_of(accelerator) is Placement.SHARDED else Replicated
    return kind(accelerator, vdm, config)


def check_placement(accelerator: Accelerator, config: TrainingConfig) -> None:
    """`ValueError` if accelerate is configured to divide a model in a way, or with options, that are not supported."""
    kind = accelerator.distributed_type
    if not accelerator.is_fsdp2:
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise ValueError(
                f"accelerate is configured for {kind.value}{' version 1' * (kind is DistributedType.FSDP)}, but only FSDP"
                " version 2 divides a model here: choose it, or `distributed_type: MULTI_GPU`, as docs/training.md shows."
            )
        return
    refused = refused_by_fsdp(accelerator) | {
        "--mixed_precision fp16": config.mixed_precision == "fp16",
        "--optimizer adamw_8bit": config.optimizer == "adamw_8bit",
        "--torch_compile": config.torch_compile,
    }
    if found := [f"`{option}`" for option, present in refused.items() if present]:
        raise ValueError(f"A model that FSDP divides can't be trained with {', '.join(found)}: leave it out.")
