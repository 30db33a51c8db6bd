"""Bits per dimension of a data set: every image once, the same for every batch size, right where the answer is known."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMUNet2DModel, evaluate
from vdm_diffusers.data import ImageDataset, load_digits
from vdm_diffusers.likelihood import histogram_bits_per_dim, variational_bound


def dataset(num_images: int, num_levels: int = 4) -> ImageDataset:
    images = torch.randint(0, num_levels, (num_images, 4, 4), generator=torch.Generator().manual_seed(0))
    return ImageDataset([{"image": image.numpy()} for image in images])


def tiny_vdm() -> VDM:
    unet = VDMUNet2DModel(4, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=4)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_does_not_matter(batch_size):
    vdm, images = tiny_vdm(), dataset(15)
    whole = variational_bound(vdm, images, num_repeats=2, batch_size=15)
    parts = variational_bound(vdm, images, num_repeats=2, batch_size=batch_size)
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, abs=1e-5)
    assert parts.standard_error == pytest.approx(whole.standard_error, abs=1e-5)


def test_terms_add_up_and_the_mode_is_restored():
    vdm = tiny_vdm().train()
    bound = variational_bound(vdm, dataset(9))
    assert bound.bits_per_dim == pytest.approx(bound.prior + bound.reconstruction + bound.diffusion)
    assert vdm.training and vdm.unet.training


class Memory(torch.nn.Module):
    """Knows the one image that there is, so it predicts the noise exactly."""

    def __init__(self, x: torch.Tensor, schedule: LinearSchedule):
        super().__init__()
        self.x, self.schedule = x, schedule

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        gamma = self.schedule.gamma_min + timestep / 1000 * (self.schedule.gamma_max - self.schedule.gamma_min)
        gamma = gamma[:, None, None, None]
        return ((sample - torch.sigmoid(-gamma).sqrt() * self.x) / torch.sigmoid(gamma).sqrt(),)


def test_a_known_image_costs_only_its_prior_term():
    rows = dataset(1).rows * 20
    schedule = LinearSchedule(-12.0, 4.0)
    x = (torch.as_tensor(rows[0]["image"])[None, None] + 0.5) / 2 - 1
    vdm = VDM(Memory(x, schedule), schedule, num_levels=4)
    bound = variational_bound(vdm, ImageDataset(rows), num_repeats=2)
    alpha_sq = 1 / (1 + math.exp(4.0))
    nats = 0.5 * (alpha_sq * (x**2).mean().item() - alpha_sq - math.log1p(-alpha_sq))
    assert bound.bits_per_dim == pytest.approx(nats / math.log(2), abs=1e-5)
    assert bound.diffusion == pytest.approx(0, abs=1e-6)


def test_standard_error_covers_the_spread_between_seeds():
    vdm, images = tiny_vdm(), dataset(40)
    bounds = [variational_bound(vdm, images, seed=seed) for seed in range(40)]
    values = torch.tensor([bound.bits_per_dim for bound in bounds])
    typical = torch.tensor([bound.standard_error for bound in bounds]).mean()
    assert values.std() < 1.5 * typical


def test_histogram_against_counting_by_hand():
    train = [{"image": [[0, 1]]}, {"image": [[0, 2]]}]
    test = [{"image": [[0, 1]]}, {"image": [[2, 2]]}]
    cost = [-math.log2(3 / 5) - math.log2(2 / 5), -math.log2(1 / 5) - math.log2(2 / 5)]
    value = histogram_bits_per_dim(ImageDataset(train), ImageDataset(test), num_levels=3)
    assert value == pytest.approx(sum(cost) / 4)


def test_command_prints_what_the_function_returns(tmp_path, capsys):
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    vdm = VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), num_levels=17, num_timesteps=10)
    vdm.save_pretrained(tmp_path / "model")
    flags = ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--num_timesteps", "10", "--seed", "3"]
    evaluate.main([*flags, "--output_path", str(tmp_path / "result.json")])
    expected = variational_bound(vdm, load_digits().validation, seed=3)
    assert json.loads((tmp_path / "result.json").read_text()) == pytest.approx(asdict(expected), abs=1e-6)
    assert f"{expected.bits_per_dim:.4f} ± {expected.standard_error:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "`--batch_size` is 0"),
        (["--data_dir", "nowhere"], "`--train_data_dir` 'nowhere' is no folder"),
        ([], "`--num_levels` is 4, but the digits have 17"),
    ],
)
def test_unsuitable_evaluations_are_refused(tmp_path, flags, message):
    tiny_vdm().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        evaluate.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), *flags])
