"""Symbolic links as output folders and checkpoints: they work, or a true sentence says why not."""

import re
import shutil
from pathlib import Path

import pytest

from vdm_diffusers.training.checkpoints.folders import find_checkpoint, find_checkpoints, remove


@pytest.mark.parametrize("link", ["out", "parent"])
def test_a_link_that_leads_nowhere_is_refused(train, tmp_path, link):
    (tmp_path / link).symlink_to(tmp_path / "missing")
    folder = tmp_path / "out" if link == "out" else tmp_path / "parent" / "out"
    with pytest.raises(SystemExit, match=f"/{link}' is a symbolic link to '.*missing', which leads nowhere: make that folder"):
        train(output_dir=folder)
    assert not (tmp_path / "missing").exists()


def test_links_in_a_circle_are_refused(train, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(SystemExit, match="/a' is a symbolic link to '.*/b', which leads nowhere"):
        train(output_dir=tmp_path / "a")


def test_runs_go_on_and_are_replaced_by_links(train, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there")
    train(max_train_steps=1)
    assert (tmp_path / "there" / "metrics.json").exists()
    best = tmp_path / "best"
    best.symlink_to(tmp_path / "out" / "checkpoint-1")
    train(max_train_steps=2, resume_from_checkpoint=best)
    shutil.move(tmp_path / "there" / "checkpoint-2", tmp_path / "elsewhere")
    (tmp_path / "there" / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    train(max_train_steps=4, checkpointing_steps=1, resume_from_checkpoint="latest")
    assert [path.name for path in find_checkpoints(tmp_path / "out")] == ["checkpoint-3", "checkpoint-4"]
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    train("--overwrite_output_dir", max_train_steps=1)
    assert (tmp_path / "out").is_symlink() and find_checkpoints(tmp_path / "there")[-1].name == "checkpoint-1"


def test_a_link_that_leads_to_no_checkpoint_is_none(tmp_path):
    (tmp_path / "missing").symlink_to(tmp_path / "nothing")
    (tmp_path / "checkpoint-1").symlink_to(tmp_path / "checkpoint-1")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("missing", "checkpoint-1", "folder"):
        with pytest.raises(ValueError, match=re.escape("but there is no such checkpoint")):
            find_checkpoint(str(tmp_path / name), tmp_path / "out")


def test_what_a_link_leads_to_is_not_deleted(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["folder"]
