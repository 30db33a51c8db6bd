"""The moving average of the weights, against that of diffusers."""

import copy

import torch
from diffusers.training_utils import EMAModel
from test_vdm import tiny_vdm
from torch.utils._python_dispatch import TorchDispatchMode

from vdm_diffusers.training.moving_average import MovingAverage


OPTIONS = {"decay": 0.99, "use_ema_warmup": True, "power": 0.75}


def random_walk(parameters: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def test_it_is_that_of_diffusers_with_some_weights_frozen_too():
    vdm = tiny_vdm()
    vdm.unet.conv_in.requires_grad_(False)
    parameters = list(vdm.parameters())
    ours, theirs = MovingAverage(parameters, foreach=True, **OPTIONS), EMAModel(parameters, foreach=False, **OPTIONS)
    for _ in range(30):
        random_walk(parameters)
        ours.step(parameters)
        theirs.step(parameters)
    for average, expected in zip(ours.shadow_params, theirs.shadow_params, strict=True):
        torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-7)
    other = EMAModel(parameters, foreach=True, **OPTIONS)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert (other.optimization_step, other.get_decay(31)) == (30, theirs.get_decay(31))


class Calls(TorchDispatchMode):
    """The functions of PyTorch that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_step_is_one_kernel():
    parameters = list(tiny_vdm().parameters())
    average = MovingAverage(parameters, foreach=True, **OPTIONS)
    with Calls() as calls:
        average.step(parameters)
    assert calls.names == ["_foreach_lerp_"]
