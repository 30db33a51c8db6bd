"""Which of the ways to divide a model among processes accelerate is configured for, if any."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ...vdm import VDM
from ..config import TrainingConfig
from ..resuming import WHOLE
from .sharding import Replicated, Sharded, refused_by_fsdp
from .zero import Partitioned, refused_by_zero, zero_stage


def placement_of(accelerator: Accelerator, vdm: VDM, config: TrainingConfig) -> Replicated:
    """Where the model is while it trains."""
    if accelerator.is_fsdp2:
        return Sharded(accelerator, vdm, config)
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        return Partitioned(accelerator, vdm, config)
    return Replicated(accelerator, vdm, config)


def describe_placement(accelerator: Accelerator) -> str:
    """What the manifest of a checkpoint says of it."""
    if accelerator.is_fsdp2:
        return "sharded by FSDP"
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        return f"trained by DeepSpeed at ZeRO stage {zero_stage(accelerator)}"
    return WHOLE


def check_placement(accelerator: Accelerator, config: TrainingConfig) -> None:
    """`ValueError` if accelerate is configured to divide a model in a way, or with options, that this can't follow."""
    kind = accelerator.distributed_type
    if kind is DistributedType.MEGATRON_LM or (kind is DistributedType.FSDP and not accelerator.is_fsdp2):
        raise ValueError(
            f"accelerate is configured for {kind.value}{' version 1' * (kind is DistributedType.FSDP)}, but only FSDP version 2"
            " and DeepSpeed can divide a model here: choose one of them, or `distributed_type: MULTI_GPU`, as in"
            " docs/accelerate/."
        )
    if accelerator.is_fsdp2:
        refused = refused_by_fsdp(accelerator)
    elif kind is DistributedType.DEEPSPEED:
        if zero_stage(accelerator) > 2:
            raise ValueError(
                "accelerate is configured for DeepSpeed's stage 3, which divides the weights too: choose `zero_stage: 2`,"
                " or FSDP version 2 where the weights must be divided, as in docs/accelerate/."
            )
        refused = refused_by_zero(accelerator, config)
    else:
        return
    refused |= {
        "--mixed_precision fp16": config.mixed_precision == "fp16",
        "--optimizer adamw_8bit": config.optimizer == "adamw_8bit",
        "--torch_compile": config.torch_compile,
    }
    if found := [f"`{option}`" for option, present in refused.items() if present]:
        raise ValueError(f"A model that {kind.value} divides can't be trained with {', '.join(found)}: leave it out.")
