"""What a release has: the source distribution all that is tracked, the wheel made from it every room, and commands that run
without a checkout.

Both are built as `python -m build` builds them, by the setuptools that torch requires, so that no network is needed.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import TINY
from packaging.requirements import Requirement
from paths import ROOT, tracked_files

import vdm_diffusers


OFFLINE = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
BUILD = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
DIST_INFO = f"vdm_diffusers-{vdm_diffusers.__version__}.dist-info"


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What Python printed, which must have succeeded."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution of a copy of the checkout, which is left as it is."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    python("-c", BUILD, folder, cwd=source)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist) -> Path:
    """The wheel of the source distribution."""
    python("-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", sdist.parent, sdist, cwd=sdist.parent)
    return next(sdist.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return message_from_bytes(ZipFile(wheel).read(f"{DIST_INFO}/METADATA"))


def test_the_source_distribution_holds_what_is_tracked(sdist):
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in packed if name in ("PKG-INFO", "setup.cfg") or name.startswith("vdm_diffusers.egg-info/")}
    tracked = tracked_files()
    folders = ("vdm_diffusers/", "tests/", "docs/", "benchmarks/", ".github/")
    assert packed - made <= tracked and packed >= {name for name in tracked if name.startswith(folders)}
    assert packed >= {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "train_vdm.py"}


def test_the_wheel_holds_every_room_and_nothing_else(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "vdm_diffusers").rglob("*.py")}
    about = {f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE")}
    assert (
        set(ZipFile(wheel).namelist())
        == modules | {"vdm_diffusers/py.typed", "vdm_diffusers/training/report.html.jinja"} | about
    )
    assert ZipFile(wheel).read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_its_metadata_say_what_it_is(metadata):
    assert metadata["Name"] == "vdm-diffusers" and metadata["Version"] == vdm_diffusers.__version__
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()


def test_its_extras_are_those_that_the_pages_name(metadata):
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]

    def extra(name: str) -> set[str]:
        return {r.name for r in requirements if r.marker is not None and r.marker.evaluate({"extra": name})}

    assert extra("train") == extra("quickstart") == {"scikit-learn", "matplotlib", "tensorboard"}
    assert extra("demo") == {"gradio", "matplotlib"}
    parts = ("train", "emoji", "lora", "compression", "fid", "demo")
    assert extra("all") == set().union(*map(extra, parts))


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
