"""Checkpoints: whole or not there, verified, rotated; a run that is killed anywhere goes on as if it had not been."""

import copy
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY
from paths import SCRIPT
from processes import Ranks, shard_models, train_vdm_with
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from vdm_diffusers import VDM
from vdm_diffusers.data import load_digits
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.checkpoints import folders, writing
from vdm_diffusers.training.checkpoints.folders import find_checkpoints, latest_checkpoint
from vdm_diffusers.training.checkpoints.state import RunState
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.resuming import Run
from vdm_diffusers.training.sample_grids import draw_samples, save_samples


LONG = {"max_train_steps": 12, "checkpointing_steps": 2, "logging_steps": 3, "validation_steps": 4}


def run(folder: Path, prepare=None, num_processes: int = 1, **options) -> list[int]:
    """Exit codes of a training run, resumed if there is something to resume."""
    resume = {"resume_from_checkpoint": "latest"} if find_checkpoints(folder) else {}
    options = LONG | {"output_dir": folder} | resume | options
    return Ranks(train_vdm_with, options, prepare, num_processes=num_processes, log=folder.with_suffix(".log")).join()


def state(checkpoint: Path) -> dict[str, object]:
    """Everything in a checkpoint: weights, optimiser, average, schedule of the learning rate, history, random states."""
    return {path.name: load(path) for path in sorted(checkpoint.iterdir()) if path.name != folders.MANIFEST}


def load(path: Path) -> object:
    """A file of a checkpoint, or what a folder has the shards of."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.is_file():
        return torch.load(path, weights_only=False)
    with tempfile.NamedTemporaryFile() as joined:
        dcp_to_torch_save(path, joined.name)
        return torch.load(joined.name, weights_only=False)


def assert_identical(value: object, expected: object, place: str = "") -> None:
    """Bit by bit, however nested."""
    assert type(value) is type(expected), place
    if isinstance(value, dict):
        assert value.keys() == expected.keys(), place
        for key in value:
            assert_identical(value[key], expected[key], f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        assert len(value) == len(expected), place
        for index, pair in enumerate(zip(value, expected)):
            assert_identical(*pair, f"{place}/{index}")
    elif hasattr(value, "tobytes"):
        assert value.tobytes() == expected.tobytes(), place
    elif isinstance(value, torch.Tensor):
        assert torch.equal(value, expected), place
    else:
        assert value == expected, place


def assert_same_run(folder: Path, expected: Path, last: str = "checkpoint-12") -> None:
    assert_identical(state(folder / last), state(expected / last))
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (folder, expected)]
    assert metrics[0] | {"seconds": 0} == metrics[1] | {"seconds": 0}
    assert (folder / "samples.png").read_bytes() == (expected / "samples.png").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(folder) == [0], folder.with_suffix(".log").read_text()
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The folder of a run of two processes with shards of the model, which nothing happened to."""
    folder = tmp_path_factory.mktemp("shards") / "out"
    assert run(folder, shard_models, num_processes=2) == [0, 0], folder.with_suffix(".log").read_text()
    return folder


def all_of(*functions: Callable[[], None]) -> None:
    for function in functions:
        function()


def die(*args, **kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_a_validation() -> None:
    bound = Trainer._bound
    Trainer._bound = lambda self, *args: die() if self.history.step == 4 else bound(self, *args)


def kill_in_a_step() -> None:
    step = Trainer._optimizer_step
    Trainer._optimizer_step = lambda self, batches: die() if self.history.step == 5 else step(self, batches)


def half_a_checkpoint(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")


def kill_in_a_file() -> None:
    RunState.snapshot = lambda self, folder: lambda: die(half_a_checkpoint(folder))


def kill_before_the_manifest() -> None:
    writing._publish = die


def kill_before_the_name() -> None:
    Path.rename = die


def kill_after_the_name() -> None:
    rename = Path.rename
    Path.rename = lambda *args: die(rename(*args))


def kill_in_a_deletion() -> None:
    def half(folder, **kwargs):
        next(Path(folder).iterdir()).unlink()
        die()

    shutil.rmtree = half


def kill_in_the_step_beside_a_file() -> None:
    """The thread that writes is left waiting in the midst of a file."""
    halved, step = threading.Event(), Trainer._optimizer_step

    def snapshot(self, folder):
        return lambda: (half_a_checkpoint(folder), halved.set(), threading.Event().wait())

    def die_when_halved(self, batches):
        if self.checkpoints.step is not None and self.history.step > self.checkpoints.step:
            die(halved.wait())
        step(self, batches)

    RunState.snapshot, Trainer._optimizer_step = snapshot, die_when_halved


def test_a_run_that_is_killed_anywhere_goes_on_bit_by_bit(whole, tmp_path):
    kills = [
        kill_in_a_validation, kill_in_a_step, kill_in_a_file, kill_before_the_manifest, kill_before_the_name,
        kill_after_the_name, kill_in_a_deletion, kill_in_the_step_beside_a_file,
    ]  # fmt: skip
    for kill in kills:
        assert run(tmp_path / "out", kill) == [-signal.SIGKILL], kill.__name__
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-8"
    assert [path.name for path in (tmp_path / "out" / "partial-checkpoint-10").iterdir()] == ["model.safetensors"]
    assert run(tmp_path / "out") == [0], (tmp_path / "out.log").read_text()
    assert_same_run(tmp_path / "out", whole)
    names = {path.name for path in (tmp_path / "out").glob("*checkpoint-*")}
    assert names == {"checkpoint-10", "checkpoint-12"}


def send(number: int, step: int, process_index: int = 0) -> None:
    """To one process, in the middle of that step."""
    text = Trainer._text

    def _text(self, batch, draws):
        if self.history.step == step and self.accelerator.process_index == process_index:
            os.kill(os.getpid(), number)
        return text(self, batch, draws)

    Trainer._text = _text


def test_a_signal_ends_a_run_within_a_step_with_a_checkpoint(whole, tmp_path):
    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 8)):
        assert run(tmp_path / "out", partial(send, number, step)) == [0]
        assert find_checkpoints(tmp_path / "out")[-1].name == f"checkpoint-{step + 1}"
        assert f"{number.name} at step {step + 1}: checkpoint-{step + 1} is written" in (tmp_path / "out.log").read_text()
        assert not (tmp_path / "out" / "metrics.json").exists()
    assert run(tmp_path / "out") == [0]
    assert_same_run(tmp_path / "out", whole)


def test_two_processes_are_killed_and_stopped_and_go_on_bit_by_bit(tmp_path):
    """The signal reaches one of them, and both stop at the same step."""
    assert run(tmp_path / "whole", num_processes=2) == [0, 0], (tmp_path / "whole.log").read_text()
    assert run(tmp_path / "out", kill_in_a_step, num_processes=2) == [-signal.SIGKILL] * 2
    assert run(tmp_path / "out", partial(send, signal.SIGTERM, 6, process_index=1), num_processes=2) == [0, 0]
    assert find_checkpoints(tmp_path / "out")[-1].name == "checkpoint-7"
    assert run(tmp_path / "out", num_processes=2) == [0, 0]
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    assert "random_states_1.json" in state(tmp_path / "out" / "checkpoint-12")


@pytest.mark.slow
def test_shards_of_a_model_are_killed_and_stopped_and_go_on_bit_by_bit(shards, tmp_path):
    stop = partial(send, signal.SIGTERM, 6, process_index=1)
    assert run(tmp_path / "out", partial(all_of, shard_models, kill_in_a_step), num_processes=2) == [-signal.SIGKILL] * 2
    assert run(tmp_path / "out", partial(all_of, shard_models, stop), num_processes=2) == [0, 0]
    assert find_checkpoints(tmp_path / "out")[-1].name == "checkpoint-7"
    assert run(tmp_path / "out", shard_models, num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    assert_same_run(tmp_path / "out", shards)
    assert {"pytorch_model_fsdp_0", "optimizer_0", "moving_average"} <= state(shards / "checkpoint-12").keys()


@pytest.mark.slow
def test_shards_end_in_a_model_with_the_bound_and_the_images_of_whole_weights(shards, tmp_path):
    assert run(tmp_path / "out", num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    sharded, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (shards, tmp_path / "out"))
    for name in ("bits_per_dim", "prior", "reconstruction", "diffusion", "standard_error"):
        assert sharded[name] == pytest.approx(expected[name], rel=1e-4)
    config = TrainingConfig(**json.loads((shards / "training_config.json").read_text()))
    vdm = VDM.from_pretrained(shards)
    save_samples(draw_samples(Accelerator(cpu=True), vdm, config), vdm, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes() == (shards / "samples.png").read_bytes()


@pytest.mark.slow
def test_shards_go_on_divided_among_more_processes(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "out")
    options = {"max_train_steps": 14, "train_batch_size": 4, "num_processes": 4}
    assert run(tmp_path / "out", shard_models, **options) == [0] * 4, (tmp_path / "out.log").read_text()
    assert "A step takes 4 processes × batch 4 × 1 = 16 images instead of 2" in (tmp_path / "out.log").read_text()
    before, after = (load(path / "moving_average") for path in find_checkpoints(tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], value, atol=0.1) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [None, shard_models], ids=["whole", "sharded"])
def test_shards_and_whole_weights_do_not_go_on_from_one_another(whole, shards, tmp_path, prepare):
    shutil.copytree(shards if prepare is None else whole, tmp_path / "out")
    size = {"train_batch_size": 8} if prepare is None else {"train_batch_size": 4}
    assert run(tmp_path / "out", prepare, num_processes=2, **size) == [1, 1]
    then, now = ("sharded by FSDP", "whole on every process")[:: 1 if prepare is None else -1]
    assert f"goes on from a run whose model was {then}, but here it is {now}:" in (tmp_path / "out.log").read_text()


def full_for_one_process_at_step_4() -> None:
    take = RunState.snapshot

    def snapshot(self, folder):
        with files_of_at_most(10_000 if folder.name.endswith("-4") and self.accelerator.process_index == 1 else -1):
            return take(self, folder)

    RunState.snapshot = snapshot


@pytest.mark.slow
def test_a_shard_that_can_not_be_written_costs_a_checkpoint_and_not_the_run(shards, tmp_path):
    prepare = partial(all_of, shard_models, full_for_one_process_at_step_4)
    assert run(tmp_path / "out", prepare, num_processes=2) == [0, 0], (tmp_path / "out.log").read_text()
    assert re.search("step 4: warning: no checkpoint could be written: .*File too large", (tmp_path / "out.log").read_text())
    assert_same_run(tmp_path / "out", shards)


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_passed_over(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "out")
    for shard in ("moving_average/.metadata", "optimizer_0/__1_0.distcp"):
        last = find_checkpoints(tmp_path / "out")[-1]
        flip_a_bit(last, shard)
        with pytest.warns(UserWarning, match=f"{shard} has changed since it was written"):
            assert latest_checkpoint(tmp_path / "out") != last
        shutil.rmtree(last)


def test_more_processes_go_on_with_the_same_images_and_say_what_is_drawn_anew(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    options = {"max_train_steps": 14, "train_batch_size": 4, "num_processes": 2}
    assert run(tmp_path / "out", **options) == [0, 0], (tmp_path / "out.log").read_text()
    assert "A step takes 2 processes × batch 4 × 1 = 8 images instead of 1" in (tmp_path / "out.log").read_text()
    states = state(tmp_path / "out" / "checkpoint-14")
    first, second = (states[f"random_states_{rank}.json"]["torch"] for rank in range(2))
    assert first != second
    assert run(tmp_path / "out", max_train_steps=15) == [0], (tmp_path / "out.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_ten_kills_at_random_moments(tmp_path, num_processes):
    """Every other one while a checkpoint is written."""
    options = LONG | {"max_train_steps": 500, "checkpointing_steps": 3, "validation_steps": 50, "output_dir": tmp_path / "out"}
    whole = options | {"output_dir": tmp_path / "whole"}
    log, moments, left = tmp_path / "log", random.Random(0), []
    assert Ranks(train_vdm_with, whole, num_processes=num_processes, log=log).join() == [0] * num_processes, log.read_text()
    for kill in range(10):
        before = find_checkpoints(tmp_path / "out")
        resume = {"resume_from_checkpoint": "latest"} if before else {}
        ranks = Ranks(train_vdm_with, options | resume, num_processes=num_processes, log=log)
        wait_until(lambda before=before: find_checkpoints(tmp_path / "out")[-1:] != before[-1:], ranks)
        if kill % 2:
            wait_until(lambda: any((tmp_path / "out").glob("partial-checkpoint-*")), ranks)
        time.sleep(moments.uniform(0, 0.02 if kill % 2 else 0.5))
        ranks.signal(signal.SIGKILL)
        assert ranks.join() == [-signal.SIGKILL] * num_processes, log.read_text()
        left.append(sorted(path.name for path in (tmp_path / "out").glob("*checkpoint-*")))
    print(*left, sep="\n")
    assert any(name.startswith("partial") for names in left for name in names)
    assert run(tmp_path / "out", num_processes=num_processes, **options) == [0] * num_processes
    assert_same_run(tmp_path / "out", tmp_path / "whole", "checkpoint-500")


def wait_until(condition: Callable[[], bool], ranks: Ranks) -> None:
    while not condition():
        assert ranks.processes[0].is_alive(), ranks.log.read_text()
        time.sleep(0.002)


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 1000)


def flip_a_bit(checkpoint: Path, file: str = "optimizer.bin") -> None:
    content = bytearray((checkpoint / file).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / file).write_bytes(content)


def remove_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def cut_the_manifest(checkpoint: Path) -> None:
    os.truncate(checkpoint / "manifest.json", 100)


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"files": {}}')


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "random_states_0.json").unlink()


DAMAGES = {
    truncate: "model.safetensors has 1000 bytes instead of",
    flip_a_bit: "optimizer.bin has changed since it was written",
    remove_the_manifest: "checkpoint-12 has no manifest.json",
    cut_the_manifest: "manifest.json is damaged",
    empty_the_manifest: "manifest.json is damaged",
    remove_a_file: "random_states_0.json is missing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_passed_over(whole, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "out")
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-12"
    damage(tmp_path / "out" / "checkpoint-12")
    with pytest.warns(UserWarning, match=f"checkpoint-12 is damaged and passed over: .*{re.escape(DAMAGES[damage])}"):
        assert latest_checkpoint(tmp_path / "out").name == "checkpoint-10"
    with pytest.raises(ValueError, match="`latest` takes the newest that is whole"):
        folders.find_checkpoint(str(tmp_path / "out" / "checkpoint-12"), tmp_path / "out")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "metrics.json").unlink()
    flip_a_bit(tmp_path / "out" / "checkpoint-12")
    assert run(tmp_path / "out") == [0]
    assert "checkpoint-12 is damaged and passed over" in (tmp_path / "out.log").read_text()
    assert_same_run(tmp_path / "out", whole)
    assert (tmp_path / "out" / "unused-checkpoint-12").is_dir()


def test_nothing_is_resumed_where_every_checkpoint_is_damaged(whole, tmp_path, train):
    shutil.copytree(whole, tmp_path / "out")
    for checkpoint in find_checkpoints(tmp_path / "out"):
        remove_the_manifest(checkpoint)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(SystemExit, match="with `--overwrite_output_dir` where a run"),
    ):
        train(resume_from_checkpoint="latest")


@contextmanager
def files_of_at_most(num_bytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def hold_back(monkeypatch, checkpoint: int, until: int, num_bytes: int = -1) -> list[dict]:
    """Let a checkpoint be written only when a later step is done, with files of at most so many bytes; what it must hold."""
    take, step, is_done, expected = RunState.snapshot, Trainer._optimizer_step, threading.Event(), []

    def snapshot(self, folder):
        write = take(self, folder)
        if not folder.name.endswith(f"-{checkpoint}"):
            return write
        expected.extend(copy.deepcopy([self.placement.vdm.state_dict(), self.placement.optimizer.state_dict()]))

        def write_late():
            assert is_done.wait(timeout=60), "the steps wait for the writing"
            with files_of_at_most(num_bytes):
                write()

        return write_late

    def note(self, batches):
        step(self, batches)
        if self.history.step == until:
            is_done.set()

    monkeypatch.setattr(RunState, "snapshot", snapshot)
    monkeypatch.setattr(Trainer, "_optimizer_step", note)
    return expected


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(train, tmp_path, monkeypatch):
    expected = hold_back(monkeypatch, 3, until=5)
    train(validation_steps=6)
    written = state(tmp_path / "out" / "checkpoint-3")
    assert_identical(dict(written["model.safetensors"]), dict(expected[0]))
    assert_identical(written["optimizer.bin"], expected[1])
    assert written["run_state.json"]["history"]["step"] == 3


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(train, tmp_path, monkeypatch, capsys):
    hold_back(monkeypatch, 4, until=5, num_bytes=10_000)
    train(**LONG | {"max_train_steps": 6, "checkpoints_total_limit": 3, "validation_steps": 6})
    assert re.search(
        "step 4: warning: no checkpoint could be written: .*Training goes on; the last good one is .*checkpoint-2.",
        capsys.readouterr().out,
    )
    assert [path.name for path in find_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-6"]
    assert not list((tmp_path / "out").glob("partial-*"))
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-6"


def test_an_error_ends_a_run_when_the_checkpoint_is_finished(train, tmp_path, monkeypatch):
    take, step, is_over = RunState.snapshot, Trainer._optimizer_step, threading.Event()

    def snapshot(self, folder):
        write = take(self, folder)
        return lambda: (is_over.wait(timeout=60), time.sleep(0.3), write())

    def fail(self, batches):
        if self.history.step == 4:
            is_over.set()
            raise ZeroDivisionError
        step(self, batches)

    monkeypatch.setattr(RunState, "snapshot", snapshot)
    monkeypatch.setattr(Trainer, "_optimizer_step", fail)
    with pytest.raises(ZeroDivisionError):
        train(validation_steps=6)
    assert latest_checkpoint(tmp_path / "out").name == "checkpoint-3"


def test_a_stop_whose_checkpoint_can_not_be_written_says_so(train, tmp_path, monkeypatch):
    take, step = RunState.snapshot, Trainer._optimizer_step

    def snapshot(self, folder):
        return partial(limited, take(self, folder))

    def limited(write):
        with files_of_at_most(10_000):
            write()

    def stop(self, batches):
        step(self, batches)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunState, "snapshot", snapshot)
    monkeypatch.setattr(Trainer, "_optimizer_step", stop)
    with pytest.raises(SystemExit, match="OSError: .*File too large|SafetensorError.*File too large"):
        train()
    assert not list((tmp_path / "out").glob("*checkpoint*"))


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
HAS_TMPFS = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


def on_a_disk_of_its_own(options: str, folder: Path, script: str) -> subprocess.CompletedProcess:
    """Run a script of the shell where `folder` is a tmpfs with these options; `$TRAIN` trains there, in `out`."""
    flags = [part for name, value in (TINY | LONG).items() for part in (f"--{name}", str(value))]
    train = shlex.join([sys.executable, SCRIPT, *flags, "--output_dir", f"{folder}/out"])
    script = f"mount -t tmpfs -o {options} tmpfs {folder}; cd {folder}; TRAIN='{train}'; {script}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as the processes of `Ranks` have
    return subprocess.run([*NAMESPACE, "bash", "-c", script], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TMPFS, reason="tmpfs can't be mounted here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=600k", "is on a disk with 600 KiB free, but the run keeps"),
        ("size=16m,ro", "can't be written: Read-only file system"),
    ],
)
def test_a_disk_without_room_is_noticed_before_training(tmp_path, options, message):
    ended = on_a_disk_of_its_own(options, tmp_path, "$TRAIN; echo exit $?; ls")
    assert re.search(message, ended.stderr) and ended.stdout.split() == ["exit", "1"], ended


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TMPFS, reason="tmpfs can't be mounted here")
def test_a_disk_that_fills_up_while_training_loses_nothing(tmp_path, whole):
    script = """
        $TRAIN > ../log 2>&1 &
        for i in $(seq 12000); do [ -e out/checkpoint-4 ] && break; sleep 0.01; done
        head -c 100000000 /dev/zero > filler 2> /dev/null
        wait %1; echo exit $?
        cat ../log; rm filler
        $TRAIN --resume_from_checkpoint latest > ../log 2>&1; echo exit $?
        cp -r out ../left
    """
    ended = on_a_disk_of_its_own("size=4m", tmp_path, script)
    assert "no checkpoint could be written:" in ended.stdout and "Training goes on; the last good one is" in ended.stdout
    assert "lacks something: " in ended.stdout and "No space left on device" in ended.stdout
    assert re.findall("^exit .*", ended.stdout, re.MULTILINE) == ["exit 1", "exit 0"], ended
    assert_same_run(tmp_path.parent / "left", whole)


def test_pictures_that_can_not_be_written_do_not_end_a_run(train, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vdm_diffusers.training.trainer.save_noise_schedule", full)
    train()
    assert "warning: the log and the pictures could not be written: [Errno 28] No space left" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("folder", ["/proc/out", "/sys/out"])
def test_a_folder_that_can_not_be_written_is_noticed_before_training(train, folder):
    with pytest.raises(SystemExit, match=f"`--output_dir` '{folder}' can't be written: .*"):
        train(output_dir=folder)


def test_other_options_are_refused_unless_allowed(whole, tmp_path, train, capsys):
    shutil.copytree(whole, tmp_path / "out")
    options = LONG | {"max_train_steps": 13, "resume_from_checkpoint": "latest"}
    with pytest.raises(SystemExit, match="with other options: dropout 0.0 -> 0.1, learning_rate 0.004 -> 0.001. Give it"):
        train(**options, learning_rate=1e-3, dropout=0.1)
    train("--allow_config_change", **options, learning_rate=1e-3, dropout=0.1)
    assert "Options have changed: dropout 0.0 -> 0.1, learning_rate 0.004 -> 0.001." in capsys.readouterr().out
    assert find_checkpoints(tmp_path / "out")[-1].name == "checkpoint-13"


@pytest.mark.parametrize(("lr_scheduler", "differences"), [("constant_with_warmup", 0), ("cosine", 1)])
def test_a_later_end_is_another_option_where_the_learning_rate_depends_on_it(lr_scheduler, differences):
    then, now = (Run.of(TrainingConfig(max_train_steps=steps, lr_scheduler=lr_scheduler), load_digits(), 1) for steps in (6, 7))
    assert len(now.changes_since(then, allow_config_change=True)) == differences


def test_another_model_is_refused_even_if_options_may_change(whole, tmp_path, train):
    shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(SystemExit, match="is one of another model than these options make: size mismatch"):
        train("--allow_config_change", **LONG, block_channels=16, resume_from_checkpoint="latest")


def test_other_images_are_refused(whole, tmp_path, train, monkeypatch):
    shutil.copytree(whole, tmp_path / "out")
    monkeypatch.setattr("vdm_diffusers.data.digits.TRAIN_SIZE", 1499)
    with pytest.raises(SystemExit, match="with other options: label_column None -> label. Give it the options of that run"):
        train(**LONG, label_column="label", resume_from_checkpoint="latest")
    with pytest.raises(SystemExit, match="goes on from a run on 'digits', but these are other images, those of 'digits'"):
        train("--allow_config_change", **LONG, resume_from_checkpoint="latest")


def test_batches_of_a_step_may_be_others_of_the_same_sum(whole, tmp_path, train, capsys):
    shutil.copytree(whole, tmp_path / "out")
    options = LONG | {"max_train_steps": 13, "resume_from_checkpoint": "latest"}
    train(**options, train_batch_size=4, gradient_accumulation_steps=2)
    sentence = "A step takes 1 processes × batch 4 × 2 = 8 images instead of 1 processes × batch 8 × 1 = 8: the same images"
    assert sentence in capsys.readouterr().out
    with pytest.raises(SystemExit, match="images a step 1 processes × batch 4 × 2 = 8 -> 1 processes × batch 4 × 1 = 4"):
        train(**options, train_batch_size=4)
