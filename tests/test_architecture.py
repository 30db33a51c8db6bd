"""The package's layers: what may import what, and what the root offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vdm_diffusers


PACKAGE = Path(vdm_diffusers.__file__).parent
LAYERS = (
    {"arguments", "precision", "loading", "plain_config", "scheduler_checks", "secrecy"},
    {"command_line", "foreign_models"},
    {
        "gaussian",
        "noise_schedules",
        "timestep_maps",
        "beta_chains",
        "units",
        "weightings",
        "augmentations",
        "autoencoders",
        "conditions",
        "finiteness",
        "unet_vdm",
        "decoding",
        "flax_state",
        "class_names",
        "checkpoint_files",
        "run_lock",
        "shards",
        "stopping",
        "randomness",
        "feature_distances",
    },
    {"reverse_steps", "scheduler_options", "checking"},
    {"visits", "data"},
    {"scheduling_vdm", "figures", "health", "streaming", "per_image", "estimates", "manifests", "earlier_checkpoints"},
    {"checkpoints"},
    {"vdm", "pixel_space"},
    {"likelihood", "probability_flow", "dequantization", "training_config"},
    {"ode_likelihood", "ddpm_bound"},
    {"pipeline_vdm"},
    {"resuming", "optimizers", "sharding", "sample_grids"},
    {"planning", "zero"},
    {"placement", "run_state"},
    {"model_building", "latent_data", "training", "hub", "convert", "evaluate", "fid"},
)
"""Lowest first. A module imports only from layers below its own."""


def imported_modules(path: Path) -> set[str]:
    """The package's modules that a file imports when it is imported itself."""
    body = ast.parse(path.read_text()).body
    return {node.module for node in body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module} | {
        name.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and not node.module
        for name in node.names
    }


def test_every_module_has_a_layer():
    assert set().union(*LAYERS) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("depth", range(len(LAYERS)))
def test_imports_run_downwards(depth):
    below = set().union(*LAYERS[:depth])
    for module in LAYERS[depth]:
        assert imported_modules(PACKAGE / f"{module}.py") <= below, module


@pytest.mark.parametrize("name", vdm_diffusers.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(vdm_diffusers, name).__doc__


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
