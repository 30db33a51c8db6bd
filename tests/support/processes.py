"""Runs `train_vdm.py`, or another function, in processes of their own: one, or the ranks of a distributed run.

They are forked from a server that has imported everything already, so that a test can afford to kill many of them.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import TINY
from paths import ROOT

from vdm_diffusers.training.config import TrainingConfig


FORKED = multiprocessing.get_context("forkserver")
SPAWNED = multiprocessing.get_context("spawn")
FORKED.set_forkserver_preload(["vdm_diffusers.train", "vdm_diffusers.evaluate", "sklearn.datasets", "matplotlib.figure"])


class Ranks:
    """
    The processes of one run.

    Args:
        function (`Callable`): Called in each of them; of a module, so that it can be found there.
        arguments: For it.
        num_processes (`int`, defaults to 1): More than one are joined by gloo, on the CPU.
        log (`Path`): Receives what they print.
        context: How they begin; one that is `SPAWNED` imports everything anew, and so believes the environment of this test.
    """

    def __init__(self, function: Callable, *arguments: object, num_processes: int = 1, log: Path, context=FORKED):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = log
        self.processes = [
            context.Process(target=_rank, args=(rank, num_processes, port, log, dict(os.environ), function, arguments))
            for rank in range(num_processes)
        ]
        for process in self.processes:
            process.start()

    def join(self) -> list[int]:
        """Their exit codes; negative ones are signals."""
        for process in self.processes:
            process.join(timeout=600)
        assert not any(process.is_alive() for process in self.processes), self.log.read_text()
        return [process.exitcode for process in self.processes]

    def signal(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)


def _rank(
    rank: int, num_processes: int, port: int, log: Path, environment: dict, function: Callable, arguments: Sequence
) -> None:
    os.environ.update(environment | {"ACCELERATE_USE_CPU": "true"})  # the server's is that of an earlier test
    importlib.reload(huggingface_hub.constants)
    if num_processes > 1:
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (of_rank | address).items()})
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def shard_models() -> None:
    """Shard the models that `train_vdm` trains from now on in this process, as configured by `docs/accelerate/fsdp.yaml`.

    Accelerate itself does so on accelerators only.
    """
    configured = ["--config_file", configuration("fsdp"), "train_vdm.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(configured))
    os.environ.update({name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith("FSDP_")})

    from vdm_diffusers import train as train_command

    build = train_command.build_accelerator

    def build_sharding(config: TrainingConfig) -> Accelerator:
        accelerator = build(config)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    train_command.build_accelerator = build_sharding


def configuration(name: str) -> str:
    """Of accelerate, in the documentation."""
    return str(ROOT / "docs" / "accelerate" / f"{name}.yaml")


def train_vdm_with(options: dict, prepare: Callable | None = None) -> None:
    """Run the script with tiny options, after `prepare()`."""
    from vdm_diffusers import train as train_command

    if prepare is not None:
        prepare()
    options = TINY | options
    sys.argv = ["train_vdm.py", *(part for name, value in options.items() for part in (f"--{name}", *str(value).split()))]
    train_command.main()
