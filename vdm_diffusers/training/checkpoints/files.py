"""The files of a checkpoint by their names: those written now, and those of the first versions."""

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.bin", "moving_average.safetensors"
SHARDED_MODEL, SHARDED_OPTIMIZER, SHARDED_AVERAGE = "pytorch_model_fsdp_0", "optimizer_0", "moving_average"
"""Folders, where the model is in shards."""
STATE = "run_state.json"

EARLIER = {
    "lr_scheduler": "custom_checkpoint_0.pkl",
    "moving_average": "custom_checkpoint_1.pkl",
    "history": "custom_checkpoint_2.pkl",
    "stream": "custom_checkpoint_3.pkl",
    "gradient_scaler": "scaler.pt",
}
"""Where the parts of a run's state were before it had a file of its own."""


def optimizer_part(process_index: int) -> str:
    """What a process has of the optimiser's state where DeepSpeed divides it."""
    return f"optimizer_{process_index}.bin"


def random_states(process_index: int, earlier: bool = False) -> str:
    """Those of one process."""
    return f"random_states_{process_index}.{'pkl' if earlier else 'json'}"


def needed_files(listed: set[str], placement: str, num_processes: int) -> set[str]:
    """What a checkpoint can't be without.

    Args:
        listed (`set[str]`): What it has.
        placement (`str`): Where its model was, as its manifest says.
        num_processes (`int`): Of its run.
    """
    earlier, sharded = STATE not in listed, "FSDP" in placement
    needed = {random_states(index, earlier) for index in range(num_processes)}
    needed |= {EARLIER[name] for name in ("lr_scheduler", "moving_average", "history")} if earlier else {STATE}
    if sharded:
        return needed | {f"{folder}/.metadata" for folder in (SHARDED_MODEL, SHARDED_OPTIMIZER, SHARDED_AVERAGE)}
    needed |= {MODEL} if earlier else {MODEL, AVERAGE}
    if "DeepSpeed" not in placement:
        return needed | {OPTIMIZER}
    return needed | {optimizer_part(index) for index in range(1 if placement.endswith("stage 0") else num_processes)}
