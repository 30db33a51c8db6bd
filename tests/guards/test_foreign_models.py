"""Models from outside: nothing of them is imported, and what they would cost is refused before it is paid."""

import json
import os
import resource
import struct
import sys

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_pipelines import BUILDERS, build, unet

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel, convert, evaluate
from vdm_diffusers.convert.__main__ import main as convert_command
from vdm_diffusers.denoisers import check_denoiser
from vdm_diffusers.guards.foreign_models import check_pipeline, weights_limited
from vdm_diffusers.guards.loading import refused_as


@pytest.fixture
def model(tmp_path):
    """A folder with a small model of the digits."""
    settings = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "num_class_embeds": 11}
    denoiser = VDMUNet2DModel(8, 1, fourier_powers=(2, 3), **settings)
    VDM(denoiser, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", BUILDERS)
def test_stock_pipelines_are_what_they_say(name, tmp_path):
    build(name, DDPMScheduler()).save_pretrained(tmp_path)
    assert check_pipeline(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"layers_per_side": 1_000}, "has more than"),
        ("unet/config.json", {"block_channels": 1_024}, "has more than"),
        ("unet/config.json", {"num_class_embeds": 10**6}, "has more than"),
        ("unet/config.json", {"sample_size": 10**9}, "`sample_size` is 1e+09, but at most"),
        ("unet/config.json", {"sample_size": [8, float("inf")]}, "`sample_size` is inf"),
        ("unet/config.json", {"norm_eps": "x"}, "`norm_eps` is 'x', but must be a number"),
        ("unet/config.json", {"_class_name": 3}, "could not be loaded: "),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 2**31}, "`num_train_timesteps` is"),
        ("scheduler/scheduler_config.json", {"gammas": "x" * (1 << 25)}, "bytes, but a configuration at most"),
        ("model_index.json", {"unet": ["antigravity", "UNet2DModel"]}, "It names 'UNet2DModel' of 'antigravity'"),
        ("model_index.json", {"unet": ["os", "system"]}, "It names 'system' of 'os'"),
        ("model_index.json", {"unet": ["diffusers", "utils"]}, "It names 'utils' of 'diffusers'"),
        ("model_index.json", {"unet": ["transformers", "pipeline"]}, "It names 'pipeline' of 'transformers'"),
        ("model_index.json", {"unet": ["transformers", "Trainer"]}, "It names 'Trainer' of 'transformers'"),
        ("model_index.json", {"unet": ["diffusers", "AutoencoderKL"]}, "could not be loaded: "),
        ("model_index.json", {"unet": ["diffusers"]}, "could not be loaded: "),
        ("model_index.json", {"_class_name": ["pipeline", "VDMPipeline"]}, "It names ['pipeline', 'VDMPipeline']"),
        ("model_index.json", {"num_levels": "x"}, "`num_levels` is 'x', but must be a whole number"),
    ],
)
def test_configurations_are_refused_before_they_cost_anything(model, file, values, message):
    change(model / file, **values)
    flags = ["--pretrained_model_name_or_path", str(model), "--max_images", "2", "--label_column", "label"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SystemExit) as error:
        evaluate.main(flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert "antigravity" not in sys.modules


def test_files_that_are_none_are_refused(model):
    for name, message in (
        ("unet/config.json", "There is no file"),
        ("unet/diffusion_pytorch_model.safetensors", "more than 0"),
    ):
        content = (model / name).read_bytes()
        (model / name).unlink()
        os.mkfifo(model / name)
        with pytest.raises(ValueError, match=message):
            check_pipeline(model)
        (model / name).unlink()
        (model / name).write_bytes(content)


@pytest.mark.parametrize("length", [0, 2**40, 2**63])
def test_weights_with_a_lying_header_are_refused(model, length):
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(SystemExit, match="could not be loaded"):
        evaluate.main(["--pretrained_model_name_or_path", str(model), "--label_column", "label"])


@pytest.mark.parametrize(
    "options", [{"layers_per_side": 100_000}, {"block_channels": 10**8}, {"block_channels": 2**62}, {"num_timesteps": 10**12}]
)
def test_training_refuses_what_no_machine_can_hold(train, options):
    with pytest.raises(SystemExit, match="has more than|give no denoiser|at most 1,000,000|must be from"):
        train("--dry_run", **options)


def test_a_converter_refuses_a_configuration_beyond_all_models(tmp_path):
    config = vars(convert.OfficialConfig(sm_n_layer=200, sm_n_embd=2_048))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "checkpoint").write_bytes(b"\x80")
    flags = ["--checkpoint_path", str(tmp_path / "checkpoint"), "--config", str(tmp_path / "config.json")]
    with pytest.raises(SystemExit, match="`--config` is that of no model: .* are the most"):
        convert_command([*flags, "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["a file", "a link", "a loop", "/nowhere/model", "./nowhere", "../no/where"])
def test_paths_that_are_no_folders_are_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("")
    (tmp_path / "a link").symlink_to("nowhere")
    (tmp_path / "a loop").symlink_to("a loop")
    with pytest.raises(ValueError, match="There is no folder of that name"):
        check_pipeline(name)


def test_weights_are_counted_only_meanwhile():
    with weights_limited(10):
        torch.nn.Linear(3, 2)
    torch.nn.Linear(30, 2)
    with pytest.raises(ValueError, match="more than 10 weights"), weights_limited(10):
        torch.nn.Linear(5, 2)


def test_denoisers_of_other_shapes_are_refused():
    check_denoiser(unet(3, 6), (3, 8, 8))
    with pytest.raises(ValueError, match="makes"):
        check_denoiser(unet(3, 4), (3, 8, 8))


def test_the_reason_is_one_line():
    with pytest.raises(ValueError, match=r"^It failed: KeyError: 'x'\. Do this\.$"), refused_as("It failed", "Do this."):
        raise KeyError("x")
    with pytest.raises(ValueError, match=r"^It failed: one\.$"), refused_as("It failed"):
        raise RuntimeError("one\ntwo")
