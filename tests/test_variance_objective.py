"""The interior of a schedule descends the variance of the bound's estimate, its end points the bound, in one backward pass."""

from functools import partial

import pytest
import torch

from vdm_diffusers import (
    VDM,
    LearnedChainSchedule,
    LearnedLinearSchedule,
    LearnedMonotoneSchedule,
    NoiseSchedule,
)
from vdm_diffusers.gaussian import PREDICTIONS
from vdm_diffusers.units import LOG_2


class Opaque(NoiseSchedule):
    """Another schedule, of which nothing but `forward` is known, so that every parameter gets the plain gradient."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        self.schedule = schedule

    gamma_min, gamma_max = -13.3, 5.0

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.schedule(t)


class TinyDenoiser(torch.nn.Module):
    """Two convolutions of the image, its timestep and its class, if it has one, in float64 throughout."""

    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(2, 6, 3, padding=1)
        self.conv_out = torch.nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        told = timestep / 1000 if class_labels is None else timestep / 1000 + class_labels
        told = told[:, None, None, None].expand_as(sample)
        return (sample + self.conv_out(torch.tanh(self.conv_in(torch.cat([sample, told], dim=1)))),)


def make_vdm(schedule: NoiseSchedule, **kwargs) -> VDM:
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return VDM(TinyDenoiser(), schedule, num_levels=8, **kwargs).double()


def draws(batch_size: int = 6) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images = torch.randint(0, 8, (batch_size, 1, 4, 4))
    noise = torch.randn(2, batch_size, 1, 4, 4, dtype=torch.float64)
    return images, {"times": torch.rand(batch_size, dtype=torch.float64), "noise": noise}


def gradients(vdm: VDM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in vdm.noise_schedule.named_parameters()}


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("schedule", [partial(LearnedMonotoneSchedule, num_features=5), partial(LearnedChainSchedule, 3)])
def test_one_pass_gives_the_gradients_of_both_objectives(schedule, prediction_type):
    schedule = schedule()
    vdm = make_vdm(schedule, prediction_type=prediction_type)
    images, fixed = draws()
    vdm(images, **fixed).bits_per_dim.mean().backward()
    measured = gradients(vdm)
    denoiser = vdm.unet.conv_in.weight.grad.clone()

    vdm.noise_schedule = Opaque(schedule)
    loss = vdm(images, **fixed)
    bits = loss.diffusion / (loss.num_dims * LOG_2)
    names, parameters = zip(*schedule.named_parameters())
    squares = dict(zip(names, torch.autograd.grad(bits.square().mean(), parameters, retain_graph=True)))
    means = dict(zip(names, torch.autograd.grad(loss.bits_per_dim.mean(), parameters, retain_graph=True)))
    for name, gradient in measured.items():
        expected = means if name in ("gamma_0", "gamma_1") else squares
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
        assert gradient.abs().max() > 0
    (expected,) = torch.autograd.grad(loss.bits_per_dim.mean(), vdm.unet.conv_in.weight)
    torch.testing.assert_close(denoiser, expected, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_finite_difference_of_the_mean_square():
    schedule = LearnedMonotoneSchedule(num_features=5)
    vdm = make_vdm(schedule)
    images, fixed = draws()
    vdm(images, **fixed).bits_per_dim.mean().backward()
    measured = gradients(vdm)["logits"]

    def mean_square(change: torch.Tensor) -> float:
        with torch.no_grad():
            schedule.logits += change
            loss = vdm(images, **fixed)
            schedule.logits -= change
        return (loss.diffusion / (loss.num_dims * LOG_2)).square().mean().item()

    for i in range(5):
        change = 1e-5 * torch.eye(5, dtype=torch.float64)[i]
        assert measured[i].item() == pytest.approx((mean_square(change) - mean_square(-change)) / 2e-5, rel=1e-5)


def test_labels_count_in_both_objectives():
    """Against the estimates written out, with the denoiser asked for each image's own class."""
    schedule = LearnedMonotoneSchedule(num_features=5)
    vdm = make_vdm(schedule)
    images, fixed = draws()
    labels = torch.tensor([0, 3, 1, 1, 0, 2])
    vdm(images, labels, **fixed).bits_per_dim.mean().backward()
    measured = gradients(vdm)
    vdm.zero_grad()

    t = fixed["times"].clone().requires_grad_()
    gamma = schedule(t)
    (slope,) = torch.autograd.grad(gamma.sum(), t, create_graph=True)
    eps, gammas = fixed["noise"][1], gamma[:, None, None, None]
    z_t = torch.sigmoid(-gammas).sqrt() * ((images + 0.5) / 4 - 1) + torch.sigmoid(gammas).sqrt() * eps
    (estimate,) = vdm.unet(z_t, 1000 * (gamma + 13.3) / 18.3, labels)
    bits = 0.5 * slope * (eps - estimate).square().sum((1, 2, 3)) / (16 * LOG_2)
    bits.square().mean().backward()
    for name in ("log_slope", "bias", "logits"):
        torch.testing.assert_close(measured[name], getattr(schedule, name).grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 4), (1, 5, 2)])
def test_accumulated_batches_and_a_scaled_loss_add_up(sizes):
    """Parts of a batch, each counted by its share, are the batch, and a loss scale scales both kinds of gradients alike."""
    vdm = make_vdm(LearnedMonotoneSchedule(num_features=5))
    images, fixed = draws(8)
    labels = torch.randint(0, 4, (8,))
    vdm(images, labels, **fixed).bits_per_dim.mean().backward()
    whole = gradients(vdm)
    vdm.zero_grad()
    for part in torch.arange(8).split(sizes):
        loss = vdm(images[part], labels[part], fixed["times"][part], fixed["noise"][:, part])
        (65536 * loss.bits_per_dim.mean() * len(part) / 8).backward()
    for name, gradient in gradients(vdm).items():
        torch.testing.assert_close(gradient / 65536, whole[name], rtol=1e-9, atol=1e-12)


def test_in_discrete_time_the_interior_follows_the_bound():
    schedule = LearnedChainSchedule(num_steps=3)
    vdm = make_vdm(schedule, num_timesteps=3)
    images, fixed = draws()
    vdm(images, **fixed).bits_per_dim.mean().backward()
    measured = gradients(vdm)
    vdm.zero_grad()
    vdm.noise_schedule = Opaque(schedule)
    vdm(images, **fixed).bits_per_dim.mean().backward()
    torch.testing.assert_close(measured["logits"], schedule.logits.grad, rtol=1e-9, atol=1e-12)


def test_denoiser_is_evaluated_once():
    vdm = make_vdm(LearnedMonotoneSchedule(num_features=5))
    images, fixed = draws()
    calls = []
    vdm.unet.register_forward_hook(lambda *_: calls.append(1))
    vdm(images, **fixed).bits_per_dim.mean().backward()
    assert len(calls) == 1


def test_a_schedule_without_interior_and_evaluation_without_gradients_work():
    vdm = make_vdm(LearnedLinearSchedule())
    images, fixed = draws()
    vdm(images, **fixed).bits_per_dim.mean().backward()
    assert set(gradients(vdm)) == {"gamma_0", "gamma_1"}
    with torch.no_grad():
        assert vdm(images, **fixed).bits_per_dim.isfinite().all()
