"""A saved model in a program of diffusers that has not imported the package: what it says, and how a user lets it go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from huggingface_hub import HfApi
from loopback_hub import TOKEN
from paths import ROOT
from tiny_pipelines import unet

from vdm_diffusers import VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.training.hub import WITHOUT_IMPORT


PROGRAM = """
import json, sys
import torch
from diffusers import DiffusionPipeline

name, trusted = sys.argv[1], json.loads(sys.argv[2])


def error_of(**kwargs):
    try:
        DiffusionPipeline.from_pretrained(name, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class NotInstalled:
    def find_spec(self, module, path=None, target=None):
        if module == "vdm_diffusers":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


errors = {"not imported": error_of(), "not trusted": error_of(custom_pipeline="pipeline")}
sys.meta_path.insert(0, NotInstalled())
errors["not installed"] = error_of(**trusted)
del sys.meta_path[0]
assert "vdm_diffusers" not in sys.modules
pipe = DiffusionPipeline.from_pretrained(name, **trusted)
images = pipe(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save((type(pipe).__name__, errors, images), "result.pt")
"""


def tiny_pipeline() -> VDMPipeline:
    denoiser = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))
    return VDMPipeline(denoiser, VDMScheduler(gamma_min=-8.0), num_levels=17)


@pytest.mark.parametrize("of_hub", [False, True], ids=["folder", "Hub"])
def test_a_program_that_trusts_the_code_needs_no_import(of_hub, hub, tmp_path):
    name, pipe = "user/model" if of_hub else "model", tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    if of_hub:
        HfApi(hub.url, TOKEN).create_repo(name)
        HfApi(hub.url, TOKEN).upload_folder(repo_id=name, folder_path=tmp_path / "model")
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, name, '{"custom_pipeline": "pipeline", "trust_remote_code": true}']
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | modules, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    class_name, errors, images = torch.load(tmp_path / "result.pt")
    assert class_name == "VDMPipeline"
    seed = torch.Generator().manual_seed(0)
    assert torch.equal(images, pipe(2, num_inference_steps=3, generator=seed, output_type="pt").images)

    kind, _, message = errors["not imported"].partition(": ")
    assert kind == "AttributeError"
    for page in (WITHOUT_IMPORT, (ROOT / "docs" / "quickstart.md").read_text()):
        assert f"`{message}`" in page  # which the error leads to
    assert errors["not trusted"].startswith("ValueError") and "`trust_remote_code=True`" in errors["not trusted"]
    assert errors["not installed"] == (
        "ModuleNotFoundError: This needs a package: `pip install vdm-diffusers` installs VDMPipeline."
    )


def saved_code(pipe: VDMPipeline, folder: Path) -> set[str]:
    pipe.save_pretrained(folder)
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py")}


class OtherPipeline(VDMPipeline):
    """Of a user, in whose place none of ours may be loaded."""


def test_code_is_written_for_classes_of_the_package_alone(tmp_path):
    assert saved_code(tiny_pipeline(), tmp_path / "ours") == {
        "pipeline.py",
        "unet/vdm_diffusers.py",
        "scheduler/vdm_diffusers.py",
    }
    stock = VDMPipeline(unet(), DDIMScheduler())
    assert type(stock.unet) is UNet2DModel
    assert saved_code(stock, tmp_path / "stock") == {"pipeline.py"}
    assert saved_code(OtherPipeline(**tiny_pipeline().components), tmp_path / "other") == set()


def test_code_that_is_there_is_kept(tmp_path):
    (tmp_path / "pipeline.py").write_text("mine = 1")
    tiny_pipeline().save_pretrained(tmp_path)
    assert (tmp_path / "pipeline.py").read_text() == "mine = 1" and (tmp_path / "unet" / "vdm_diffusers.py").exists()
