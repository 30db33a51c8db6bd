"""From `train_vdm.py --push_to_hub` to `from_pretrained` by name, with the real client and a Hub on 127.0.0.1."""

import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from loopback_hub import TOKEN, LoopbackHub

from vdm_diffusers import VDM, VDMPipeline


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[LoopbackHub]:
    """This process, and those it starts, know this Hub alone, with an empty cache and no token."""
    with LoopbackHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        for name, value in (environment | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[1])}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        constants = {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
        for name, value in (constants | {"HF_TOKEN_PATH": str(tmp_path / "home" / "token")}).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield hub


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a new Python process prints."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def images_of(pipe) -> torch.Tensor:
    return pipe(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_a_trained_model_loads_by_its_name(hub, train, tmp_path):
    train("--push_to_hub", hub_model_id="user/digits", hub_token=TOKEN)
    expected = images_of(VDMPipeline.from_pretrained(tmp_path / "out"))
    run(
        """
        import sys, torch
        from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
        from vdm_diffusers import VDM, VDMPipeline, VDMScheduler, VDMUNet2DModel

        def images_of(pipe):
            return pipe(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images

        name = "user/digits"
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
        torch.save([images_of(pipe) for pipe in pipes], sys.argv[1])
        """,
        tmp_path / "images.pt",
    )
    loaded = torch.load(tmp_path / "images.pt")
    assert len(loaded) == 4
    for images in loaded:
        assert torch.equal(images, expected)
    repository = hub.repositories["user/digits"]
    uploaded = repository.commits[repository.head]
    assert not repository.private and not any(path.startswith("checkpoint-") for path in uploaded)
    assert "user/digits" in uploaded["README.md"].decode() and TOKEN.encode() not in b"".join(uploaded.values())


def test_revisions_variants_and_precisions_load_by_name(hub, tmp_path):
    run(
        """
        import sys, torch
        from huggingface_hub import HfApi
        from vdm_diffusers import VDMPipeline, VDMScheduler, VDMUNet2DModel

        def push(value, **kwargs):
            unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))
            torch.nn.init.constant_(unet.conv_in.weight, value)
            pipe = VDMPipeline(unet, VDMScheduler(gamma_min=-8.0), num_levels=17)
            pipe.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="user/model", **kwargs)

        push(1.0)
        first = HfApi().model_info("user/model").sha
        push(2.0, variant="ema")
        push(3.0)

        def weight(**kwargs):
            pipe = VDMPipeline.from_pretrained("user/model", use_safetensors=True, **kwargs)
            assert pipe.dtype == (torch.bfloat16 if kwargs.keys() & {"dtype", "torch_dtype"} else torch.float32)
            return pipe.unet.conv_in.weight.mean().item()

        assert weight(revision=first) == 1.0
        assert weight(variant="ema") == 2.0
        assert weight() == 3.0
        assert weight(dtype=torch.bfloat16) == weight(torch_dtype=torch.bfloat16) == 3.0
        """,
        tmp_path / "model",
        HF_TOKEN=TOKEN,
    )
    files = hub.repositories["user/model"].commits[hub.repositories["user/model"].head]
    assert not any(path.endswith((".bin", ".pt", ".pkl")) for path in files)


def test_a_private_repository_is_private(hub, train):
    train("--push_to_hub", "--hub_private_repo", hub_model_id="user/secret", hub_token=TOKEN)
    assert hub.repositories["user/secret"].private
    run(
        """
        import sys
        from vdm_diffusers import VDMScheduler
        try:
            VDMScheduler.from_pretrained("user/secret", subfolder="scheduler")
        except OSError as error:
            assert "user/secret" in str(error)
        else:
            raise AssertionError("anyone may read it")
        VDMScheduler.from_pretrained("user/secret", subfolder="scheduler", token=sys.argv[1])
        """,
        TOKEN,
    )


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


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_missing_token_is_noticed_before_training(hub, train, tmp_path, token):
    options = {} if token is None else {"hub_token": token}
    with pytest.raises(SystemExit, match="`--push_to_hub` can't create 'out' on the Hub.*hf auth login"):
        train("--push_to_hub", **options)
    assert not (tmp_path / "out").exists() and not hub.repositories
