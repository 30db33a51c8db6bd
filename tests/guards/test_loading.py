"""Saved models that are not whole: what comes of a mutated configuration is a model or one sentence, at once."""

import json
import warnings

import pytest
import torch
from mutations import mutated

from vdm_diffusers import VDM, LearnedMonotoneSchedule, NoiseSchedule, SigmoidSchedule, TableSchedule, VDMUNet2DModel


def unet() -> VDMUNet2DModel:
    return VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2, 3))


SAVED = {
    "SigmoidSchedule": SigmoidSchedule,
    "LearnedMonotoneSchedule": lambda: LearnedMonotoneSchedule(num_features=8),
    "TableSchedule": lambda: TableSchedule([-9.0, -1.0, 5.0]),
    "VDMUNet2DModel": unet,
}


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED)
def test_mutated_configurations_give_a_model_or_a_sentence(make, tmp_path):
    saved = make()
    saved.save_pretrained(tmp_path)
    cls = VDMUNet2DModel if isinstance(saved, VDMUNet2DModel) else NoiseSchedule
    path, outcomes = tmp_path / "config.json", []
    config = json.loads(path.read_text())
    for seed in range(50):
        path.write_text(json.dumps(mutated(config, seed)))
        try:
            cls.from_pretrained(tmp_path)
        except (OSError, ValueError) as error:
            outcomes.append(str(error))
            assert len(outcomes[-1]) > 30 and "\n" not in outcomes[-1], seed
    assert 10 < len(outcomes) < 50


def vdm_folder(tmp_path):
    VDM(unet(), LearnedMonotoneSchedule(num_features=8), num_levels=17).save_pretrained(tmp_path)
    return tmp_path


def without_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def with_cut_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def with_weights_of_another_shape(folder):
    VDMUNet2DModel(8, 1, block_channels=16, layers_per_side=1, norm_num_groups=4).save_pretrained(folder / "other")
    (folder / "other" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.safetensors")


def with_a_schedule_that_is_none(folder):
    (folder / "noise_schedule" / "config.json").write_text("<html>")


def with_a_schedule_of_a_billion_features(folder):
    (folder / "noise_schedule" / "config.json").write_text(
        '{"_class_name": "LearnedMonotoneSchedule", "num_features": 1000000000}'
    )


def with_too_many_layers(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_side": 100_000}))


def with_levels_that_are_none(folder):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_levels": "many"}))


def without_a_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        without_weights,
        with_cut_weights,
        with_weights_of_another_shape,
        with_a_schedule_that_is_none,
        with_a_schedule_of_a_billion_features,
        with_too_many_layers,
        with_levels_that_are_none,
        without_a_scheduler,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_model_is_refused_in_one_sentence(damage, tmp_path):
    damage(vdm_folder(tmp_path))
    with pytest.raises((OSError, ValueError), match="could not be loaded: .{10}") as caught:
        VDM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mere_pipeline_is_loaded_with_the_schedule_of_its_scheduler(tmp_path):
    vdm = VDM(unet(), LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17)
    vdm.to_pipeline().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is a pipeline without `noise_schedule/`.*can't be learned"):
        again = VDM.from_pretrained(tmp_path)
    t = torch.linspace(0, 1, 11)
    assert type(again.noise_schedule) is TableSchedule
    torch.testing.assert_close(again.noise_schedule(t), vdm.noise_schedule(t), rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vdm.save_pretrained(tmp_path)
        assert type(VDM.from_pretrained(tmp_path).noise_schedule) is LearnedMonotoneSchedule
