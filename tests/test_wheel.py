"""What `pip install` brings: every room, and commands that run without a checkout.

The wheel is built by the setuptools that torch requires, so that no network is needed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import TINY
from paths import ROOT


OFFLINE = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What Python printed, which must have succeeded."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the checkout, which is left as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vdm_diffusers", source / "vdm_diffusers", ignore=shutil.ignore_patterns("__pycache__"))
    python("-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


def test_it_holds_every_room(wheel):
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("vdm_diffusers/")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "vdm_diffusers").rglob("*.py")}
    assert packed == modules | {"vdm_diffusers/py.typed", "vdm_diffusers/training/report.html.jinja"}


def test_its_commands_run(wheel, tmp_path):
    installed = tmp_path / "installed"
    python("-m", "pip", "install", *OFFLINE, "--target", installed, wheel, cwd=tmp_path)

    def run(*arguments: str) -> str:
        return python(*arguments, cwd=tmp_path, PYTHONPATH=str(installed))

    where = run("-c", "from importlib.util import find_spec; print(find_spec('vdm_diffusers').origin)")
    assert Path(where.strip()).parent == installed / "vdm_diffusers"
    options = TINY | {"max_train_steps": "3", "output_dir": "digits"}
    run("-m", "vdm_diffusers.train", *(part for name, value in options.items() for part in (f"--{name}", str(value))))
    model = ("--pretrained_model_name_or_path", "digits")
    assert "bits/dim" in run("-m", "vdm_diffusers.evaluate", *model, "--max_images", "8", "--num_repeats", "1")
