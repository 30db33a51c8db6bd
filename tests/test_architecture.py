"""The package's rooms: what may import what, and what the root offers."""

import ast
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import vdm_diffusers


PACKAGE = Path(vdm_diffusers.__file__).parent
ORDER = (
    "precision", "units", "randomness", "gaussian", "weightings", "timestep_maps", "guards", "pictures", "command_line",
    "noise_schedules", "saved_schedules", "remote_code", "image_arguments",
    "unet_vdm", "autoencoders", "class_names", "conditioning", "denoisers", "memory", "batching",
    "text_encoders", "prompts",
    "error_profiles", "scheduling", "scheduling_vdm", "known_images", "vdm", "pixel_space", "probability_flow",
    "pipeline_vdm", "compression",
    "figures", "likelihood", "data", "training",
    "convert", "few_steps", "image_quality", "fid", "evaluate", "compress", "decompress", "demo", "train",
)  # fmt: skip
"""Modules of the root and rooms, lowest first: none imports from those that come after it."""


def modules() -> dict[str, Path]:
    """Every module by its name below the package; a room's own is that of its `__init__`."""
    parts = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


MODULES = modules()


def imported(name: str) -> set[str]:
    """The package's modules that a module imports, wherever the import stands, but for type checkers alone."""
    path = MODULES[name]
    room = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in _run(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("vdm_diffusers.") for alias in node.names if "vdm_diffusers." in alias.name}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("vdm_diffusers")):
            above = room[: len(room) - node.level + 1] if node.level else []
            source = [*above, *(node.module or "").removeprefix("vdm_diffusers").split(".")]
            source = ".".join(filter(None, source))
            names = {".".join(filter(None, (source, alias.name))) for alias in node.names}
            found |= {candidate if candidate in MODULES else source for candidate in names}
    return found - {name, ""}


def _run(node: ast.AST):
    """Every node below this one that is run, or may be."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _run(child)


def test_every_module_is_in_a_room():
    assert set(ORDER) == {name.split(".")[0] for name in MODULES} - {""}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {""}))
def test_imports_run_downwards(name):
    place = ORDER.index(name.split(".")[0])
    above = {module for module in imported(name) if ORDER.index(module.split(".")[0]) > place}
    assert not above, f"{name} imports {above}, which come after it"


def test_there_is_no_circle():
    """Nor within a room: modules can be put in an order in which each imports only those before it."""
    left = {name: imported(name) & MODULES.keys() for name in MODULES if name}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, f"circles among {sorted(left)}"


SPELL_FLAGS = {"command_line", "guards.messages", "data.options", "fid", "evaluate", "train"}
"""Modules that write `--name`: commands, and what spells messages for them."""


def test_library_code_names_its_own_arguments():
    assert {name for name, path in MODULES.items() if "`--" in path.read_text()} <= SPELL_FLAGS


def test_few_modules_know_what_a_condition_is():
    """The denoiser, what understands conditions, and where users name classes; all others hand a condition on."""
    knowing = {name for name, path in MODULES.items() if "class_labels" in path.read_text()}
    assert {"conditioning", "unet_vdm", "vdm", "pipeline_vdm"} <= knowing and len(knowing) <= 7, sorted(knowing)


def test_no_room_is_named_like_a_pipeline_of_diffusers():
    import diffusers

    pipelines = {path.stem for path in (Path(diffusers.__file__).parent / "pipelines").iterdir()}
    assert not set(ORDER) & pipelines


@pytest.mark.parametrize("name", vdm_diffusers.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(vdm_diffusers, name).__doc__


def test_paths_that_users_have_work():
    code = """
    from vdm_diffusers import *
    from vdm_diffusers import gaussian, noise_schedules
    from vdm_diffusers.data import load_images
    from vdm_diffusers.likelihood import variational_bound
    from vdm_diffusers.noise_schedules import LinearSchedule, NoiseSchedule
    from vdm_diffusers.training import Trainer
    import vdm_diffusers.gaussian
    """
    subprocess.run([sys.executable, "-c", "\n".join(map(str.strip, code.splitlines()))], cwd=PACKAGE.parent, check=True)


@pytest.mark.parametrize("command", ["train", "evaluate", "fid", "convert"])
def test_commands_are_modules(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(f"vdm_diffusers.{command}", run_name="__main__", alter_sys=True)
    assert not end.value.code and "--output_" in capsys.readouterr().out


def test_type_checkers_see_the_public_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(node.module, name.name) for node in block.body for name in node.names}
    assert seen == {(module, name) for module, names in vdm_diffusers._import_structure.items() for name in names}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, vdm_diffusers; print(*sys.modules, sep='\\n')"
    modules = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, capture_output=True, text=True)
    loaded = set(modules.stdout.split())
    assert "vdm_diffusers" in loaded
    assert not loaded & {"transformers", "datasets", "matplotlib", "accelerate", "scipy", "vdm_diffusers.vdm"}
