"""Checkpoints that somebody else has written: nothing in them runs, and what is wrong with them is said in a sentence."""

import dataclasses
import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from processes import Ranks, train_vdm_with
from safetensors.torch import load_file
from test_checkpoints import assert_identical, state

from vdm_diffusers import VDM
from vdm_diffusers.data import ImageDataset, load_digits
from vdm_diffusers.training.checkpoints.folders import find_checkpoint, verify_checkpoint
from vdm_diffusers.training.checkpoints.manifests import read_manifest
from vdm_diffusers.training.checkpoints.state import unusable
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.placement.shards import load_shards, save_shards
from vdm_diffusers.training.resuming import Run


class Payload:
    """Makes a file when it is unpickled without restriction."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a run with one checkpoint."""
    folder = tmp_path_factory.mktemp("written") / "out"
    options = {"output_dir": folder, "max_train_steps": 1}
    assert Ranks(train_vdm_with, options, log=folder.with_suffix(".log")).join() == [0], folder.with_suffix(".log").read_text()
    return folder


@pytest.fixture
def checkpoint(written, tmp_path) -> Path:
    """A copy of it, in `tmp_path / "out"`."""
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out" / "checkpoint-1"


def rewrite_manifest(checkpoint: Path, change: Callable[[dict], object] = lambda manifest: None) -> None:
    """Hash what there is, as whoever forges a file does; then change what else is in the manifest."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    del files["manifest.json"]
    manifest["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    change(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def as_written_earlier(checkpoint: Path) -> None:
    """Turn its state into the files that accelerate wrote."""
    run_state = json.loads((checkpoint / "run_state.json").read_text())
    average = load_file(checkpoint / "moving_average.safetensors")
    average = [average[name] for name, _ in VDM.from_pretrained(checkpoint.parent).named_parameters()]
    states = json.loads((checkpoint / "random_states_0.json").read_text())
    version, numbers, gauss = states["python"]
    numpy_state, key = states["numpy"], np.array(states["numpy"]["state"]["key"], np.uint32)
    random_states = {
        "step": 1,
        "random_state": (version, tuple(numbers), gauss),
        "numpy_random_seed": ("MT19937", key, numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]),
        "torch_manual_seed": torch.tensor(states["torch"], dtype=torch.uint8),
    }
    torch.save(run_state["lr_scheduler"], checkpoint / "custom_checkpoint_0.pkl")
    torch.save(run_state["moving_average"] | {"shadow_params": average}, checkpoint / "custom_checkpoint_1.pkl")
    torch.save(run_state["history"], checkpoint / "custom_checkpoint_2.pkl")
    torch.save(random_states, checkpoint / "random_states_0.pkl")
    for name in ("run_state.json", "moving_average.safetensors", "random_states_0.json"):
        (checkpoint / name).unlink()
    rewrite_manifest(checkpoint)


def pickled(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


FILES = ("model.safetensors", "optimizer.bin", "moving_average.safetensors", "run_state.json", "random_states_0.json")
EARLIER_FILES = (
    "model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "custom_checkpoint_2.pkl",
    "random_states_0.pkl",
)  # fmt: skip


FORGED = [(name, torch.save) for name in (*FILES, *(f"earlier {name}" for name in EARLIER_FILES))]
FORGED += [("optimizer.bin", pickled), ("earlier random_states_0.pkl", pickled)]


@pytest.mark.parametrize("name, dump", FORGED, ids=lambda value: getattr(value, "__name__", value))
def test_a_forged_file_of_a_checkpoint_runs_nothing_and_ends_the_run(checkpoint, train, tmp_path, name, dump):
    if name.startswith("earlier"):
        as_written_earlier(checkpoint)
    dump(Payload(tmp_path / "proof"), checkpoint / name.split()[-1])
    rewrite_manifest(checkpoint)
    verify_checkpoint(checkpoint)
    with pytest.raises(SystemExit, match="checkpoint-1 (is refused: it holds|has a state that can't be gone on from)"):
        train("--dry_run", resume_from_checkpoint="latest", max_train_steps=1)
    assert not (tmp_path / "proof").exists()


def test_files_that_no_checkpoint_has_are_not_read(checkpoint, train, tmp_path):
    for name in ("sampler.bin", "pytorch_model.bin", "custom_checkpoint_3.pkl", "custom_checkpoint_0.pkl"):
        torch.save(Payload(tmp_path / "proof"), checkpoint / name)
        with pytest.raises(ValueError, match=r"/(sampler.bin|pytorch_model.bin|custom_.*.pkl) is not one of its files"):
            find_checkpoint(str(checkpoint), tmp_path / "out")
    rewrite_manifest(checkpoint)
    train("--dry_run", resume_from_checkpoint="latest", max_train_steps=1)
    assert not (tmp_path / "proof").exists()


def test_a_checkpoint_that_was_written_earlier_goes_on_the_same(checkpoint, train, tmp_path):
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    as_written_earlier(tmp_path / "earlier" / "checkpoint-1")
    for folder in ("out", "earlier"):
        random.seed(folder)
        train(resume_from_checkpoint="latest", max_train_steps=3, output_dir=tmp_path / folder)
    assert_identical(state(tmp_path / "earlier" / "checkpoint-3"), state(tmp_path / "out" / "checkpoint-3"))


def replace(*path: str, by: object) -> Callable[[dict], None]:
    def change(manifest: dict) -> None:
        *parents, last = path
        for name in parents:
            manifest = manifest[name]
        manifest[last] = by

    return change


def without(*path: str) -> Callable[[dict], None]:
    def change(manifest: dict) -> None:
        *parents, last = path
        for name in parents:
            manifest = manifest[name]
        del manifest[last]

    return change


@pytest.mark.parametrize("place", ["pipeline", "component", "weights"])
def test_code_beside_a_model_does_not_run(written, tmp_path, place):
    """Neither modules that its configuration names nor objects among its weights."""
    folder, proof = tmp_path / "model", tmp_path / "proof"
    shutil.copytree(written, folder)
    index = json.loads((folder / "model_index.json").read_text())
    if place == "weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        torch.save({"weight": Payload(proof)}, folder / "unet" / "diffusion_pytorch_model.bin")
    else:
        module = folder / ("foreign.py" if place == "pipeline" else "unet/foreign.py")
        module.write_text(f"open({str(proof)!r}, 'w').close()\nclass Foreign: pass\n")
        index["_class_name" if place == "pipeline" else "unet"] = ["foreign", "Foreign"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
        DiffusionPipeline.from_pretrained(folder)
    assert not proof.exists()


HASH = "0" * 64
MANIFESTS = {
    "no files": (replace("files", by={}), "lists 0 files of 1 processes"),
    "files of another kind": (replace("files", by=["model.safetensors"]), "no `files` by name"),
    "a file missing": (without("files", "optimizer.bin"), "doesn't list optimizer.bin"),
    "a text for a file": (replace("files", "optimizer.bin", by="x"), "'optimizer.bin' it says no size"),
    "negative": (replace("files", "optimizer.bin", "size", by=-1), "'optimizer.bin' it says no size"),
    "true": (replace("files", "optimizer.bin", "size", by=True), "'optimizer.bin' it says no size"),
    "fraction": (replace("files", "optimizer.bin", "size", by=1.5), "'optimizer.bin' it says no size"),
    "no hash": (replace("files", "optimizer.bin", "sha256", by=None), "'optimizer.bin' it says no hash"),
    "above": (replace("files", "../x", by={"size": 0, "sha256": HASH}), "'../x' it says that it lies elsewhere"),
    "absolute": (replace("files", "/etc/passwd", by={"size": 0, "sha256": HASH}), "that it lies elsewhere"),
    "no step": (without("step"), "`step` is no number"),
    "another step": (replace("step", by=2), "is of step 2"),
    "no processes": (replace("num_processes", by=0), "`num_processes` is no number"),
    "true processes": (replace("num_processes", by=True), "`num_processes` is no number"),
    "many processes": (replace("num_processes", by=10**9), "of 1000000000 processes"),
    "more than many": (replace("num_processes", by=10**30), "`num_processes` is no number"),
    "not a number": (replace("options", "dropout", by=float("nan")), "manifest.json is damaged"),
    "no batch size": (without("options", "train_batch_size"), "the option `train_batch_size` is no positive number"),
    "options of another kind": (replace("options", by=[]), "no `options` by name"),
    "placement": (replace("placement", by=3), "`placement` is 3, which is none"),
    "a list for a placement": (replace("placement", by=[]), "which is none"),
    "labels": (replace("data", "labels", by=3), "`labels` of `data` is no hash"),
    "captions": (replace("data", "captions", by=[]), "`captions` of `data` is no hash"),
    "data": (replace("data", by={}), "`data` has no `name`"),
    "fingerprint": (replace("data", "fingerprint", by=3), "`data` has no `name`"),
}


@pytest.mark.parametrize("change, message", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_says_nonsense_is_refused_in_a_sentence(checkpoint, tmp_path, change, message):
    rewrite_manifest(checkpoint, change)
    with pytest.raises(ValueError, match=message) as error:
        find_checkpoint(str(checkpoint), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_run_by_deepspeed_is_refused_in_a_sentence(checkpoint, train):
    (checkpoint / "optimizer.bin").rename(checkpoint / "optimizer_0.bin")
    rewrite_manifest(checkpoint, replace("placement", by="trained by DeepSpeed at ZeRO stage 2"))
    with pytest.raises(SystemExit, match="a run by DeepSpeed, which can't be resumed any more: .* sharded by FSDP"):
        train(resume_from_checkpoint="latest", max_train_steps=2)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "[" * 100_000, "{", "\ud800", "1" * 5000])
def test_a_manifest_that_is_none_is_refused_in_a_sentence(checkpoint, content):
    (checkpoint / "manifest.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        read_manifest(checkpoint)


@pytest.mark.parametrize("name, value", [("unheard_of", 1), ("dropout", "0.1"), ("seed", True), ("weighting", "eval")])
def test_options_of_a_manifest_that_are_none_are_refused(name, value):
    now = Run.of(TrainingConfig(), load_digits(), 1)
    then = dataclasses.replace(now, options=now.options | {name: value})
    with pytest.raises(ValueError, match=f"here are no options {name}={value!r}. Train the finished model on"):
        now.changes_since(then, allow_config_change=True)


def test_options_that_came_later_may_be_missing():
    now = Run.of(TrainingConfig(), load_digits(), 1)
    then = dataclasses.replace(now, options={name: value for name, value in now.options.items() if name != "weighting"})
    assert now.changes_since(then, allow_config_change=False) == []


def test_other_labels_are_refused_where_a_checkpoint_knows_its_own():
    data = load_digits("label")
    now = Run.of(TrainingConfig(label_column="label"), data, 1)
    rows = [row | {"label": (row["label"] + 1) % 10} for row in data.train.rows]
    other = dataclasses.replace(data, train=ImageDataset(rows, "image", "label"))
    then = dataclasses.asdict(Run.of(TrainingConfig(label_column="label"), other, 1))
    assert then["data"]["fingerprint"] == now.data.fingerprint
    with pytest.raises(ValueError, match="goes on from a run on 'digits' with other labels than those of 'digits'"):
        now.changes_since(Run.from_manifest(then), allow_config_change=True)
    then["data"].pop("labels")  # as those of earlier versions
    assert now.changes_since(Run.from_manifest(then), allow_config_change=False) == []


def test_other_captions_are_refused():
    data = load_digits(caption_column="caption")
    rows = [row | {"caption": row["caption"].replace("three", "five")} for row in data.train.rows]
    other = dataclasses.replace(data, train=ImageDataset(rows, caption_column="caption"))
    now, then = (Run.of(TrainingConfig(), each, 1) for each in (data, other))
    assert now.changes_since(Run.from_manifest(dataclasses.asdict(now)), allow_config_change=False) == []
    with pytest.raises(ValueError, match="goes on from a run on 'digits' with other captions than those of 'digits'"):
        now.changes_since(Run.from_manifest(dataclasses.asdict(then)), allow_config_change=True)


def test_shards_come_back_as_they_were(tmp_path):
    expected = {
        "tensor": torch.randn(3, 4),
        "half": torch.ones(2).half(),
        "number": 0.5,
        "nested": {"list": [1, (2, None)]},
    }
    save_shards(expected, tmp_path)
    read = {"tensor": torch.zeros(3, 4), "half": torch.zeros(2).half(), "number": 0.0, "nested": {"list": [0, (0, 0)]}}
    load_shards(read, tmp_path)
    assert_identical(read, expected)


@pytest.mark.parametrize("place", ["metadata", "value"])
def test_forged_shards_run_nothing(tmp_path, place):
    value = Payload(tmp_path / "proof") if place == "value" else 0.5
    save_shards({"tensor": torch.zeros(2), "value": value}, tmp_path / "shards")
    if place == "metadata":
        (tmp_path / "shards" / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    with pytest.raises(pickle.UnpicklingError) as error:
        load_shards({"tensor": torch.zeros(2), "value": 0.0}, tmp_path / "shards")
    assert "is refused: it holds something other than tensors" in str(unusable(error.value))
    assert not (tmp_path / "proof").exists()


def test_shards_of_another_model_are_said_to_be_so(tmp_path):
    save_shards({"tensor": torch.zeros(2)}, tmp_path)
    for other in ({"tensor": torch.zeros(3)}, {"weight": torch.zeros(2)}):
        with pytest.raises(Exception) as error:
            load_shards(other, tmp_path)
        assert "is one of another model than these options make" in unusable(error.value)


def test_shards_that_lie_elsewhere_are_refused(tmp_path):
    save_shards({"tensor": torch.zeros(2)}, tmp_path / "shards")
    metadata = pickle.loads((tmp_path / "shards" / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    (tmp_path / "shards" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(pickle.UnpicklingError, match="has shards in another folder"):
        load_shards({"tensor": torch.zeros(2)}, tmp_path / "shards")


def load_without_one_s_metadata(folder: Path) -> None:
    accelerator = Accelerator()
    own = folder if accelerator.is_main_process else folder / "missing"
    with pytest.raises(FileNotFoundError):
        load_shards({"tensor": torch.zeros(2)}, own)


def test_a_process_that_can_not_read_its_shards_lets_no_other_wait(tmp_path):
    save_shards({"tensor": torch.zeros(2)}, tmp_path / "shards")
    ranks = Ranks(load_without_one_s_metadata, tmp_path / "shards", num_processes=2, log=tmp_path / "log")
    assert ranks.join() == [0, 0], (tmp_path / "log").read_text()
