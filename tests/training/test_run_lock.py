"""A folder belongs to one run, by real processes: two at once, one that is killed, ranks that outlive their first."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from processes import Ranks, train_vdm_with

from vdm_diffusers.training.checkpoints.folders import find_checkpoints
from vdm_diffusers.training.output_files import LOCKS
from vdm_diffusers.training.run_lock import RunLock, in_use, is_in_use


def hold(folder: Path, process_index: int = 0) -> None:
    """The lock, until killed."""
    with RunLock(folder, process_index):
        (folder / f"held-{process_index}").touch()
        time.sleep(600)


def holder(folder: Path, process_index: int = 0) -> Ranks:
    """A process that has it."""
    ranks = Ranks(hold, folder, process_index, log=folder.with_suffix(".log"))
    while not (folder / f"held-{process_index}").exists():
        assert ranks.processes[0].is_alive(), ranks.log.read_text()
        time.sleep(0.01)
    return ranks


def test_a_lock_lives_as_long_as_every_process_of_its_run(tmp_path):
    """And says whose it is."""
    folder = tmp_path / "out"
    assert not is_in_use(folder) and not folder.exists()
    first, second = holder(folder, 0), holder(folder, 1)
    try:
        assert is_in_use(folder)
        message = rf"'{folder}' is in use by another run, that of process {first.processes[0].pid} on .*: wait for its end"
        with pytest.raises(ValueError, match=message), RunLock(folder, 0):
            pass
        first.signal(signal.SIGKILL)
        assert first.join() == [-signal.SIGKILL] and is_in_use(folder)
        with pytest.raises(ValueError, match="is in use by another run"), RunLock(folder, 0):
            pass
    finally:
        for ranks in (first, second):
            ranks.signal(signal.SIGKILL)
            ranks.join()
    assert not is_in_use(folder)
    with RunLock(folder, 0), RunLock(folder, 1):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x", "host": 1}', '{"pid": 1}'])
def test_a_holder_that_is_unknown_is_left_out(tmp_path, content):
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / "holder.json").write_text(content)
    assert "is in use by another run: wait" in str(in_use(tmp_path))


def test_a_folder_in_use_is_left_alone_and_one_with_a_stale_lock_is_free(train, tmp_path, capsys):
    folder = tmp_path / "out"
    ranks = holder(folder)
    try:
        (folder / "held-0").unlink()
        for options in ([], ["--overwrite_output_dir"]):
            with pytest.raises(SystemExit, match="is in use by another run, that of process"):
                train(*options)
        train("--dry_run")
        assert "is in use by another run" in capsys.readouterr().out
        assert [path.name for path in folder.iterdir()] == [LOCKS]
    finally:
        ranks.signal(signal.SIGKILL)
        ranks.join()
    train(max_train_steps=1)
    train("--overwrite_output_dir", max_train_steps=1)
    assert (folder / "metrics.json").exists() and not is_in_use(folder)


def test_of_two_runs_at_once_one_is_refused(tmp_path):
    options = {"output_dir": tmp_path / "out", "max_train_steps": 4, "validation_steps": 4}
    runs = [Ranks(train_vdm_with, options, log=tmp_path / f"log-{i}") for i in range(2)]
    codes = [run.join()[0] for run in runs]
    assert sorted(codes) == [0, 1]
    refused = runs[codes.index(1)].log.read_text()
    assert "is in use by another run" in refused or "holds another run" in refused
    assert [path.name for path in find_checkpoints(tmp_path / "out")] == ["checkpoint-3", "checkpoint-4"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["step"] == 4


def test_a_process_that_outlives_the_first_of_its_run_keeps_the_folder(tmp_path):
    options = {"output_dir": tmp_path / "out", "max_train_steps": 10_000, "validation_steps": 10_000, "checkpointing_steps": 3}
    ranks = Ranks(train_vdm_with, options, num_processes=2, log=tmp_path / "log")
    try:
        while not find_checkpoints(tmp_path / "out"):
            assert all(process.is_alive() for process in ranks.processes), ranks.log.read_text()
            time.sleep(0.01)
        first, second = ranks.processes
        os.kill(second.pid, signal.SIGSTOP)
        first.kill()
        first.join()
        again = options | {"resume_from_checkpoint": "latest"}
        alone = Ranks(train_vdm_with, again, log=tmp_path / "alone")
        assert alone.join() == [1]
        assert f"in use by another run, that of process {first.pid}" in (tmp_path / "alone").read_text()
    finally:
        ranks.signal(signal.SIGKILL)
        ranks.join()
    assert not is_in_use(tmp_path / "out")
