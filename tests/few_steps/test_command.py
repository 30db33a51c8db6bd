"""The command: its chains are those of the functions, its files can be used, and it says beforehand what it costs."""

import json

import pytest
import torch

from vdm_diffusers import VDM, LearnedMonotoneSchedule, TableSchedule, VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.data import load_digits
from vdm_diffusers.error_profiles import ErrorProfile
from vdm_diffusers.few_steps.__main__ import main
from vdm_diffusers.likelihood import variational_bound


@pytest.fixture
def model(tmp_path):
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def flags(model, output_dir, *others: str) -> list[str]:
    own = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(output_dir)]
    return [*own, "--num_gammas", "12", "--num_draws", "600", "--num_repeats", "1", *others]


@pytest.mark.parametrize("basis", ["isotropic", "principal"])
def test_what_it_finds_is_better_and_can_be_used(model, tmp_path, capsys, basis):
    main(flags(model, tmp_path / "out", "--basis", basis, "--num_inference_steps", "3", "6"))
    printed = capsys.readouterr().out
    assert "called 600 times for one image to measure its errors, and 1,782 times for the bounds" in printed
    result = json.loads((tmp_path / "out" / "few_steps.json").read_text())
    profile = ErrorProfile.from_pretrained(tmp_path / "out")
    assert profile.basis == basis and (tmp_path / "out" / "few_steps.png").exists()
    vdm, images = VDM.from_pretrained(model), load_digits().validation
    for own, with_q, optimal in (result["results"][:3], result["results"][3:]):
        assert optimal["bits_per_dim"] < with_q["bits_per_dim"] < own["bits_per_dim"]
        for row in (own, with_q, optimal):
            assert f"{row['bits_per_dim']:.4f} ± {row['standard_error']:.4f}" in printed
        steps = len(optimal["gammas"]) - 1
        assert optimal["num_inference_steps"] == steps and len(optimal["timesteps"]) == steps
        again = VDM(vdm.unet, TableSchedule(optimal["gammas"]), num_levels=17, num_timesteps=steps,
                    timestep_map=vdm.timestep_map, error_profile=profile)  # fmt: skip
        assert variational_bound(again, images).bits_per_dim == pytest.approx(optimal["bits_per_dim"], abs=1e-4)
        pipe = VDMPipeline.from_pretrained(model)
        visited = []
        pipe(1, timesteps=optimal["timesteps"], callback_on_step_end=lambda p, i, t, k, seen=visited: seen.append(float(t)))
        assert visited == pytest.approx(optimal["timesteps"], abs=1e-3)


def test_the_scheduler_that_it_writes_samples_the_model_of_the_bound(model, tmp_path):
    """The chain with optimal variances, by the number of its steps; a profile that is not isotropic lies beside it."""
    main(flags(model, tmp_path / "out", "--basis", "entries", "--num_inference_steps", "3"))
    result, pipe = json.loads((tmp_path / "out" / "few_steps.json").read_text())["results"], VDMPipeline.from_pretrained(model)
    pipe.scheduler = VDMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    pipe.scheduler.set_timesteps(3)
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(result[2]["timesteps"], abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    first = pipe(2, num_inference_steps=3, generator=generator, output_type="latent").images
    pipe.scheduler.set_error_profile(None)
    other = pipe(2, num_inference_steps=3, generator=generator.manual_seed(0), output_type="latent").images
    assert not torch.equal(first, other) and (tmp_path / "out" / "samples.png").exists()


def test_a_dry_run_says_what_it_costs_and_writes_nothing(model, tmp_path, capsys):
    main(flags(model, tmp_path / "out", "--dry_run", "--max_images", "10", "--num_inference_steps", "5"))
    assert "600 times for one image to measure its errors, and 30 times for the bounds" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--basis", "wavelets"],
            "`--basis` has a wrong value, 'wavelets': it must be one of isotropic, entries, dct",
        ),
        (["--num_draws", "20"], "`num_draws` is 20, but 12 gammas in the basis 'isotropic' need 24"),
        (["--output_dir", "."], "is there already: name another folder"),
        (["--num_inference_steps", "1000"], "`--num_inference_steps` is 1000, but must be from 1 to 999"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(model, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        main(flags(model, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()
