"""The files of a checkpoint by their names: those written now, and those of the first versions."""

from collections.abc import Set

from ..resuming import Placement, Run


MANIFEST = "manifest.json"
STATE = "run_state.json"
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.bin", "moving_average.safetensors"
SHARDED_MODEL, SHARDED_OPTIMIZER, SHARDED_AVERAGE = "pytorch_model_fsdp_0", "optimizer_0", "moving_average"
"""Folders of shards."""

OF_PLACEMENT = {
    Placement.WHOLE: {MODEL, OPTIMIZER, AVERAGE},
    Placement.SHARDED: {f"{folder}/.metadata" for folder in (SHARDED_MODEL, SHARDED_OPTIMIZER, SHARDED_AVERAGE)},
    Placement.DEEPSPEED: {MODEL, AVERAGE},
}
"""What has the weights, the optimiser's state and the moving average."""

EARLIER = {
    "lr_scheduler": "custom_checkpoint_0.pkl",
    "moving_average": "custom_checkpoint_1.pkl",
    "history": "custom_checkpoint_2.pkl",
    "stream": "custom_checkpoint_3.pkl",
    "gradient_scaler": "scaler.pt",
}
"""What had the parts of [`STATE`], and `AVERAGE`, in the first versions."""


def random_states(process_index: int, earlier: bool = False) -> str:
    """The file of one process's random states."""
    return f"random_states_{process_index}.{'pkl' if earlier else 'json'}"


def needed_files(listed: Set[str], run: Run) -> set[str]:
    """The files without which a checkpoint of this run is none; `listed` are those that it has."""
    earlier = STATE not in listed
    needed = OF_PLACEMENT[run.placement] | {random_states(index, earlier) for index in range(run.num_processes)}
    if earlier:
        return needed - {AVERAGE} | {EARLIER[name] for name in ("lr_scheduler", "moving_average", "history")}
    return needed | {STATE}
