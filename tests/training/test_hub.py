"""From `train_vdm.py --push_to_hub` to `from_pretrained` by name, with the real client and a Hub on 127.0.0.1."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from huggingface_hub import HfApi, ModelCard
from loopback_hub import TOKEN
from packaging.version import Version
from processes import SPAWNED, Ranks, train_vdm_with
from tiny_pipelines import unet, vae

from vdm_diffusers import VDM, LearnedLinearSchedule, LearnedMonotoneSchedule, VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.autoencoders import load_autoencoder
from vdm_diffusers.conditioning import num_classes
from vdm_diffusers.data import load_digits
from vdm_diffusers.error_profiles import ErrorProfile
from vdm_diffusers.evaluate import main as evaluate
from vdm_diffusers.saved_schedules import has_schedule
from vdm_diffusers.training import Trainer
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.hub import Uploads, _classes, save_model_card


def run(function: Callable, *arguments: object, log: Path, **kwargs) -> None:
    """In a new process, which knows the Hub by its environment alone."""
    assert Ranks(function, *arguments, log=log, **kwargs).join() == [0], log.read_text()


def images_of(pipe) -> torch.Tensor:
    return pipe(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images


def save_images_of_what_loads(name: str, path: Path) -> None:
    unet = VDMUNet2DModel.from_pretrained(name, subfolder="unet")
    scheduler = VDMScheduler.from_pretrained(name, subfolder="scheduler")
    stock = DPMSolverMultistepScheduler.from_pretrained(name, subfolder="scheduler")
    assert stock.config.trained_betas == scheduler.config.trained_betas
    pipes = [
        VDMPipeline.from_pretrained(name),
        DiffusionPipeline.from_pretrained(name),
        VDMPipeline(unet, scheduler, num_levels=17),
        VDM.from_pretrained(name).to_pipeline(),
    ]
    assert all(type(pipe) is VDMPipeline for pipe in pipes)
    torch.save([images_of(pipe) for pipe in pipes], path)


def test_a_trained_model_loads_by_its_name(hub, train, tmp_path):
    train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN)
    run(save_images_of_what_loads, "user/digits", tmp_path / "images.pt", log=tmp_path / "log", context=SPAWNED)
    loaded, expected = torch.load(tmp_path / "images.pt"), images_of(VDMPipeline.from_pretrained(tmp_path / "out"))
    assert len(loaded) == 4
    for images in loaded:
        assert torch.equal(images, expected)
    repository = hub.repositories["user/digits"]
    uploaded = repository.commits[repository.head]
    assert not repository.private and not any(path.startswith("checkpoint-") for path in uploaded)
    assert "user/digits" in uploaded["README.md"].decode() and TOKEN.encode() not in b"".join(uploaded.values())


def push(folder: str, value: float, **kwargs) -> None:
    settings = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "num_class_embeds": 3}
    unet = VDMUNet2DModel(8, 1, fourier_powers=(2, 3), **settings)
    torch.nn.init.constant_(unet.conv_in.weight, value)
    pipe = VDMPipeline(unet, VDMScheduler(gamma_min=-8.0), num_levels=17, id2label={0: "cat", 1: "unet"})
    pipe.save_pretrained(folder, push_to_hub=True, repo_id="user/model", **kwargs)


def weight(**kwargs) -> float:
    pipe = VDMPipeline.from_pretrained("user/model", use_safetensors=True, **kwargs)
    assert pipe.labels == {"cat": 0, "unet": 1}
    assert pipe.dtype == (torch.bfloat16 if kwargs.keys() & {"dtype", "torch_dtype"} else torch.float32)
    return pipe.unet.conv_in.weight.mean().item()


def push_and_load(folder: str) -> None:
    push(folder, 1.0)
    first = HfApi().model_info("user/model").sha
    push(folder, 2.0, variant="ema")
    push(folder, 3.0)
    assert weight(revision=first) == 1.0
    assert weight(variant="ema") == 2.0
    assert weight() == 3.0
    names = ["torch_dtype", "dtype"] if Version(diffusers.__version__) >= Version("0.40") else ["torch_dtype"]
    assert {weight(**{name: torch.bfloat16}) for name in names} == {3.0}
    push_and_load_an_error_profile(folder)


def push_and_load_an_error_profile(folder: str) -> None:
    """Which lies beside the configuration of the scheduler."""
    pipe, moments = VDMPipeline.from_pretrained(folder), torch.rand(2, 64) + 0.1
    pipe.scheduler.set_error_profile(ErrorProfile(torch.tensor([-8.0, 5.0]), moments, torch.zeros(2, 64), "entries"))
    pipe.save_pretrained(folder, push_to_hub=True, repo_id="user/profile")
    of_pipeline = VDMPipeline.from_pretrained("user/profile").scheduler
    by_itself = VDMScheduler.from_pretrained("user/profile", subfolder="scheduler")
    noise = torch.ones(1, 1, 8, 8).double()
    for loaded in (of_pipeline, by_itself):
        widened = loaded._error_profile.widened(noise, torch.tensor(4.0), torch.tensor(5.0))
        torch.testing.assert_close(widened.flatten() ** 2, 1 + (torch.e - 1) * moments[1].double(), rtol=1e-5, atol=0)


def adapt(name: str, again: str) -> None:
    """A pipeline has no noise schedule beside it, with network and from the cache; what was made of it has."""
    with pytest.warns(UserWarning, match=f"'{name}' is a pipeline without `noise_schedule/`"):
        assert VDM.from_pretrained(name).noise_schedule.gamma_min < -9
    assert type(VDM.from_pretrained(again).noise_schedule) is LearnedLinearSchedule
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    assert has_schedule(again) and not has_schedule(name)


def test_a_pipeline_of_the_hub_is_adapted(hub, tmp_path):
    stock = DDPMPipeline(unet(), DDPMScheduler())
    for name, model in (("stock", stock), ("adapted", VDM.from_pipeline(stock, LearnedLinearSchedule))):
        model.save_pretrained(tmp_path / name)
        api = HfApi(hub.url, TOKEN)
        api.create_repo(f"user/{name}")
        api.upload_folder(repo_id=f"user/{name}", folder_path=tmp_path / name)
    run(adapt, "user/stock", "user/adapted", log=tmp_path / "log", context=SPAWNED)


def test_revisions_variants_and_precisions_load_by_name(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(push_and_load, str(tmp_path / "model"), log=tmp_path / "log", context=SPAWNED)
    files = hub.repositories["user/model"].commits[hub.repositories["user/model"].head]
    assert not any(path.endswith((".bin", ".pt", ".pkl")) for path in files)


def load_with_a_token_only(name: str, token: str) -> None:
    with pytest.raises(OSError, match=name):
        VDMScheduler.from_pretrained(name, subfolder="scheduler")
    VDMScheduler.from_pretrained(name, subfolder="scheduler", token=token)


def test_a_private_repository_is_private(hub, train, tmp_path):
    train("--push_to_hub", "--hub_private_repo", hub_model_id="user/secret", hub_token=TOKEN)
    assert hub.repositories["user/secret"].private
    run(load_with_a_token_only, "user/secret", TOKEN, log=tmp_path / "log")


def refuse_an_autoencoder_beyond_measure(folder: Path) -> None:
    vae().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 100_000}))
    HfApi().create_repo("user/vae")
    HfApi().upload_folder(repo_id="user/vae", folder_path=folder)
    with pytest.raises(ValueError, match="'user/vae' could not be loaded: .* more than 10,000 tensors"):
        load_autoencoder("user/vae")


def test_an_autoencoder_of_the_hub_is_measured_before_it_is_built(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(refuse_an_autoencoder_beyond_measure, tmp_path / "vae", log=tmp_path / "log")


def test_an_upload_that_fails_half_way_leaves_the_model_and_says_how_to_retry(hub, train, tmp_path):
    hub.refuse_uploads_after = 1
    with pytest.raises(
        SystemExit, match="train_vdm.py: The upload to 'user/digits' failed: .*; upload it by `hf .*`.$"
    ) as error:
        train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN)
    repository = hub.repositories["user/digits"]
    assert len(hub.large_files) == 1 and repository.commits[repository.head] == {}
    assert images_of(VDMPipeline.from_pretrained(tmp_path / "out")).isfinite().all()
    assert VDM.from_pretrained(tmp_path / "out").num_levels == 17
    hub.refuse_uploads_after = None
    program, *arguments = shlex.split(str(error.value).split("`")[-2])
    subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        check=True,
        capture_output=True,
        env=os.environ | {"HF_TOKEN": TOKEN},
    )
    uploaded = repository.commits[repository.head]
    for path in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "noise_schedule/config.json", "README.md"):
        assert uploaded[path] == (tmp_path / "out" / path).read_bytes()
    assert not any(path.startswith("checkpoint-") for path in uploaded)
    assert hub.puts.count(hub.puts[0]) == 1  # what it had taken was not sent again


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_missing_token_is_noticed_before_training(hub, train, tmp_path, token):
    options = {} if token is None else {"hub_token": token}
    with pytest.raises(SystemExit, match="`--push_to_hub` can't create 'out' on the Hub.*hf auth login"):
        train("--push_to_hub", **options)
    assert not (tmp_path / "out").exists() and not hub.repositories


def test_two_processes_push_once_and_the_card_says_what_was_measured(hub, tmp_path, capsys):
    options = TINY | {"output_dir": tmp_path / "out", "hub_model_id": "user/digits", "hub_token": TOKEN}
    options |= {"push_to_hub": True, "report_to": "tensorboard", "hub_license": "cc0-1.0"}
    ranks = Ranks(train_vdm_with, options, num_processes=2, log=tmp_path / "log")
    assert ranks.join() == [0, 0], (tmp_path / "log").read_text()
    repository = hub.repositories["user/digits"]
    assert len(repository.commits) == 2  # its creation is the first
    uploaded = repository.commits[repository.head]
    for picture in ("samples.png", "noise_schedule.png", "forward_process.png", "samples/step-6.png", "report.html"):
        assert picture in uploaded
    assert any(path.startswith("logs/") and "tfevents" in path for path in uploaded)
    card, metrics = ModelCard(uploaded["README.md"].decode()), json.loads(uploaded["metrics.json"])
    assert f"| variational bound | {metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f} |" in card.text
    assert "| — 95 % interval | {:.4f} to {:.4f} |".format(*metrics["interval_95"]) in card.text
    for term in ("prior", "reconstruction", "diffusion"):
        assert f"| — {term} | {metrics[term]:.4f} |" in card.text
    assert f"| one histogram for every pixel | {metrics['histogram_bits_per_dim']:.4f} |" in card.text
    assert card.data.license == "cc0-1.0" and card.data.eval_results[0].metric_value == metrics["bits_per_dim"]
    gamma_0, gamma_1 = VDM.from_pretrained(tmp_path / "out").noise_schedule.chain(1).tolist()
    assert f"γ = −log SNR from {gamma_0:.4f} to {gamma_1:.4f}" in card.text and '"block_channels": 8' in card.text
    assert TOKEN not in card.content

    command = shlex.split(re.search("```shell\n(python.*)\n```", card.text)[1])
    evaluate([str(tmp_path / "out") if part == "user/digits" else part for part in command[3:]])
    assert f"{metrics['bits_per_dim']:.4f} ± {metrics['standard_error']:.4f}" in capsys.readouterr().out


AWKWARD = ["cat", '`dog` "x" | <b>{a}', "花, flower", "a\nb: - c", "```\n---", "3"]


def tiny_vdm(channels: int = 1, class_names: list[str] | None = None, num_class_embeds: int | None = None, **kwargs) -> VDM:
    settings = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "fourier_powers": ()}
    num_class_embeds = num_class_embeds or (class_names and len(class_names) + 1)
    unet = VDMUNet2DModel(8, channels, num_class_embeds=num_class_embeds, **settings)
    schedule = LearnedMonotoneSchedule(-8.0, 5.0, num_features=8)
    return VDM(unet, schedule, **({"num_levels": 17} | kwargs), class_names=class_names)


CARDS = {
    "unconditional": ({}, "batch_size=16, "),
    "two channels": ({"channels": 2}, "batch_size=16, "),
    "five channels": ({"channels": 5}, 'output_type="np"'),
    "sixteen bits": ({"num_levels": 65536}, "batch_size=16, "),
    "classes": ({"num_class_embeds": 4}, "class_labels=[0, 1, 2]"),
    "named classes": ({"class_names": ["dog", "flower"]}, 'class_labels=["dog", "flower"]'),
    "awkward names": ({"class_names": AWKWARD, "channels": 13}, 'class_labels=["cat", '),
    "names of several": ({"class_names": ["crane", "tench, fish", "crane", ""]}, 'class_labels=[0, "tench, fish", 2, '),
    "latents": ({"channels": 4, "vae": vae()}, "batch_size=16, "),
    "latents of classes": ({"channels": 4, "vae": vae(), "class_names": AWKWARD}, 'class_labels=["cat", '),
}


@pytest.mark.parametrize(("model", "call"), CARDS.values(), ids=CARDS)
def test_what_a_card_shows_runs(tmp_path, monkeypatch, model, call):
    """Every block of Python, in order, with fewer images and steps; the rest is still Markdown under YAML."""
    monkeypatch.chdir(tmp_path)
    vdm = tiny_vdm(**model)
    config = TrainingConfig(output_dir=str(tmp_path / 'my "model"'), num_inference_steps=2)
    data = replace(load_digits(), shape=(vdm.unet.config.in_channels, 8, 8), name="a|b <i>", attribution="By A, CC0.")
    metrics = {
        "step": 1,
        "num_images": 2,
        "num_repeats": 1,
        vdm.unit.name: 3.0,
        "standard_error": 0.1,
        "interval_95": [2.8, 3.2],
    }
    folder = tmp_path / 'my "model"'
    vdm.save_pretrained(folder)
    save_model_card(folder, config, data, vdm, metrics | dict.fromkeys(("prior", "reconstruction", "diffusion"), 1.0))
    card = ModelCard.load(folder / "README.md")
    fence, escaped = "`" * 3, chr(92).join(("a", "|b ", "<i", ">"))  # a backslash before each mark
    assert card.data.to_dict()["library_name"] == "diffusers"
    assert card.text.count(fence) % 2 == 0
    assert escaped in card.text and "trained with vdm_diffusers, after 1 of its steps. By A, CC0.\n" in card.text
    blocks = re.findall("^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2 and all(call in block for block in blocks)
    names = {}
    for block in blocks:
        exec(compile(block.replace("batch_size=16", "batch_size=2").replace("steps=20", "steps=3"), "README.md", "exec"), names)
        expected = min(num_classes(vdm.unet) or 2, 4)
        assert len(names["images"]) == expected
    if vdm.class_names is not None:
        (listed,) = re.findall("^```json\n(.*?)^```$", card.text.split("## The noise")[0], re.DOTALL | re.MULTILINE)
        assert list(json.loads(listed).values()) == vdm.class_names


def test_a_card_lists_the_first_of_very_many_names(tmp_path):
    vdm = tiny_vdm(class_names=[f"class {i}" for i in range(1000)])
    assert "class 99" in _classes(vdm) and "class 100" not in _classes(vdm) and "and 900 more" in _classes(vdm)


def test_uploads_go_on_while_training_does(hub, train, tmp_path, monkeypatch, capsys):
    """The first one gets stuck until the last step; the next finds it so; the end waits for it and uploads the rest."""
    hub.hold = threading.Event()
    step = Trainer._optimizer_step

    def release(self, batches):
        step(self, batches)
        if self.history.step == 6:
            hub.hold.set()

    monkeypatch.setattr(Trainer, "_optimizer_step", release)
    train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN, hub_strategy="every_validation", validation_steps=2)
    assert "step 4: warning: the last upload is still under way: this one is left out." in capsys.readouterr().out
    first, last = list(hub.repositories["user/digits"].commits.values())[1:]
    assert json.loads(first["metrics.json"])["step"] == 2 and json.loads(last["metrics.json"])["step"] == 6
    assert "after 2 of its steps" in first["README.md"].decode() and "of its steps" not in last["README.md"].decode()
    for path in ("unet/diffusion_pytorch_model.safetensors", "samples.png"):
        assert first[path] != last[path]
    assert not (tmp_path / "out" / ".upload").exists() and not any(".upload" in path for path in last)


def test_an_upload_that_breaks_off_while_training_is_taken_up(hub, train, tmp_path, monkeypatch, capsys):
    hub.refuse_uploads_after = 1
    stage = Uploads.stage

    def relent(self):
        if self.under_way is not None:
            self.under_way.exception()
            hub.refuse_uploads_after = None
        return stage(self)

    monkeypatch.setattr(Uploads, "stage", relent)
    train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN, hub_strategy="every_validation", validation_steps=2)
    assert re.search("step 4: warning: the last upload failed: .* This one takes it up.", capsys.readouterr().out)
    assert len(hub.repositories["user/digits"].commits) == 3
