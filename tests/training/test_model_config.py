"""Stock denoisers from their configuration: trained, saved, loaded, evaluated, resumed; and what describes none."""

import json
import re
from dataclasses import replace

import pytest
from diffusers import DiTTransformer2DModel, UNet2DModel
from paths import ROOT

from vdm_diffusers import VDMPipeline, evaluate
from vdm_diffusers.data import load_digits
from vdm_diffusers.denoisers import sample_shape
from vdm_diffusers.training.config import TrainingConfig
from vdm_diffusers.training.model_config import build_from_config, read_model_config


UNET = {
    "_class_name": "UNet2DModel", "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip
DIT = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
DENOISERS = {"UNet": (UNET, UNet2DModel, {}), "DiT": (DIT, DiTTransformer2DModel, {"label_column": "label"})}
SHORT = {"max_train_steps": 3, "validation_steps": 3, "max_validation_images": 8, "num_samples": 2}
SHORT |= {"block_channels": None, "layers_per_side": None, "norm_num_groups": None}


@pytest.fixture
def train_config(train, tmp_path):
    """Trains what a configuration describes."""

    def run(config: dict | str, *flags: str, **options) -> None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "model.json").write_text(text)
        train(*flags, **{"model_config_name_or_path": tmp_path / "model.json"} | SHORT | options)

    return run


@pytest.mark.parametrize("name", DENOISERS)
def test_stock_denoisers_train_and_are_evaluated(train_config, tmp_path, capsys, name):
    config, cls, options = DENOISERS[name]
    train_config(config, **options)
    pipeline = VDMPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline.unet) is cls and pipeline.unet.config.sample_size == 8
    flags = [part for pair in options.items() for part in (f"--{pair[0]}", pair[1])]
    model = ["--pretrained_model_name_or_path", str(tmp_path / "out")]
    evaluate.main([*model, "--max_images", "2", "--num_repeats", "1", *flags])
    assert "| VLB, continuous time |" in capsys.readouterr().out


@pytest.mark.parametrize(("config", "embeddings"), [(UNET, {"num_class_embeds": 11}), (DIT, {"num_embeds_ada_norm": 10})])
def test_the_data_decide_what_is_left_out(config, embeddings):
    decided = {"in_channels": 1, "out_channels": 1, "sample_size": 8} | embeddings
    for given in (config, config | decided):
        unet = build_from_config(given, load_digits("label"), "model.json")
        assert {name: unet.config[name] for name in decided} | {"sample_size": 8} == decided


@pytest.mark.parametrize(("number", "shape"), [(0, (3, 32, 32)), (1, (2, 64))])
def test_documented_configurations_describe_denoisers(number, shape):
    config = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)[number]
    data = replace(load_digits(), shape=shape)
    assert sample_shape(build_from_config(read_model_config(config), data, "docs")) == shape


def test_a_run_is_known_by_the_content_of_its_configuration(train_config, tmp_path):
    train_config(UNET, max_train_steps=3, checkpointing_steps=3)
    with pytest.raises(SystemExit, match="with other options: model_config_name_or_path"):
        train_config(UNET | {"norm_num_groups": 2}, "--dry_run", resume_from_checkpoint="latest", max_train_steps=6)
    (tmp_path / "model.json").rename(tmp_path / "other.json")
    options = {"model_config_name_or_path": tmp_path / "copy.json", "resume_from_checkpoint": "latest", "max_train_steps": 6}
    (tmp_path / "copy.json").write_text(json.dumps(UNET | {"_diffusers_version": "0.1"}))
    train_config(UNET, "--dry_run", **options)
    written = json.loads((tmp_path / "out" / "training_config.json").read_text())
    assert TrainingConfig(**written).model_config == UNET


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("{", [], "'model.json' in .* is no JSON"),
        ("[]", [], "'model.json' holds a list"),
        ("{}", [], "It names None of 'diffusers', but only pipelines, models and schedulers"),
        ({"_class_name": "DDPMScheduler"}, [], "It is the configuration of a DDPMScheduler, which is no model"),
        ({"_class_name": "os.system"}, [], "It names 'os.system'"),
        (UNET | {"sample_size": 16}, [], "Its `sample_size` is 16, but that of 'digits' is 8"),
        (UNET | {"in_channels": 3}, [], "Its `in_channels` is 3, but that of 'digits' is 1"),
        (UNET | {"num_class_embeds": 11}, [], "Its `num_class_embeds` is 11, .* see `--label_column`"),
        (UNET | {"block_out_channels": [8, 10**7]}, [], "which is more than there can be"),
        (UNET | {"block_out_channels": [8]}, [], "describes no denoiser of these data"),
        ({"_class_name": "AutoencoderKL"}, [], "describes no denoiser of these data"),
        (DIT, [], "describes no denoiser of these data: .*`num_embeds_ada_norm` cannot be None"),
        (UNET, ["--block_channels", "8"], "describes the denoiser: leave out `--block_channels`"),
        (UNET, ["--augmentation", "paper"], "UNet2DModel has no `conditioning`"),
    ],
)
def test_what_describes_no_denoiser_is_refused(train_config, tmp_path, content, flags, message):
    with pytest.raises(SystemExit, match=message) as error:
        train_config(content, *flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_configurations_are_found_in_folders_and_nowhere_else(tmp_path):
    UNet2DModel.from_config(UNET, sample_size=8, in_channels=1, out_channels=1).save_config(tmp_path)
    assert read_model_config(str(tmp_path))["sample_size"] == 8
    assert read_model_config(json.dumps(UNET)) == UNET
    with pytest.raises(ValueError, match="`model_config_name_or_path` 'nowhere/at/all' could not be read"):
        read_model_config("nowhere/at/all")
    with pytest.raises(ValueError, match="could not be read: There is no file or folder of that name"):
        read_model_config("nowhere.json")
