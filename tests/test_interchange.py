"""VDMScheduler in the place of diffusers' DDPM and DDIM schedulers: the same images in each of their pipelines.

A given `eta` makes its steps those of DDIM; without one they are those of DDPM (`fixed_small`).
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import LEARNED_PINNED, SCHEDULES
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser
from tiny_pipelines import BUILDERS, CHOOSES_ETA, images, unet
from torch import Tensor, nn

from vdm_diffusers import VDM, CosineSchedule, LinearSchedule, VDMScheduler


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CHAINS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": SD,
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained_betas": {"trained_betas": np.geomspace(1e-4, 0.05, 200).tolist(), "num_train_timesteps": 200},
}
SPACINGS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "leading, offset 1": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
}
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
CLIPPING = {
    "clip": {"clip_sample": True, "clip_sample_range": 0.7},
    "threshold": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
}
SAMPLERS = {"DDPM": None, "DDIM, eta 0": 0.0, "DDIM, eta 0.5": 0.5, "DDIM, eta 1": 1.0}


def denoise(z: Tensor, t: Tensor) -> Tensor:
    """Something bounded, nonlinear and different at each timestep."""
    return torch.tanh(2 * z.roll(1, -1)) * (0.7 + 0.3 * torch.cos(t / 100))


def sample(scheduler, num_steps: int | None, dtype: torch.dtype = torch.float32, timesteps=None, **step_kwargs) -> Tensor:
    """An image in [0, 1], `(2, 3, 4, 4)`, by `denoise`."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 4, generator=generator, dtype=dtype)
    scheduler.set_timesteps(num_steps, **({} if timesteps is None else {"timesteps": timesteps}))
    for t in scheduler.timesteps:
        z = scheduler.step(denoise(z, t), t, z, generator=generator, **step_kwargs).prev_sample
    return (z / 2 + 0.5).clamp(0, 1)


def compare(eta: float | None, config: dict, num_steps: int | None = 7, **kwargs) -> None:
    """Sample with the stock scheduler that steps with this `eta` and with ours of the same configuration."""
    stock = (DDPMScheduler if eta is None else DDIMScheduler)(**({"clip_sample": False} | config))
    kwargs |= {} if eta is None else {"eta": eta}
    expected = sample(stock, num_steps, **kwargs)
    assert expected.std() > 0.05 and expected.isfinite().all()
    torch.testing.assert_close(sample(VDMScheduler.from_config(stock.config), num_steps, **kwargs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_are_the_stock_scheduler_s(sampler, chain, spacing, prediction_type):
    if chain == "sigmoid" and sampler != "DDPM":
        pytest.skip("DDIMScheduler knows no such chain")
    compare(SAMPLERS[sampler], CHAINS[chain] | SPACINGS[spacing] | {"prediction_type": prediction_type})


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("eta", [None, 0.0, 0.5])
def test_a_chain_that_ends_in_pure_noise(eta, spacing, prediction_type):
    compare(eta, SD | SPACINGS[spacing] | {"rescale_betas_zero_snr": True, "prediction_type": prediction_type})


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_full_noise_on_a_chain_that_ends_in_pure_noise(prediction_type):
    """DDIMScheduler takes the root of a negative rounding error there, but without it its steps are those of DDPM."""
    config = SD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": prediction_type}
    stock = DDPMScheduler(**config, clip_sample=False)
    torch.testing.assert_close(sample(VDMScheduler.from_config(stock.config), 5, eta=1.0), sample(stock, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 50, 999, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps(sampler, num_steps):
    compare(SAMPLERS[sampler], SD | {"prediction_type": "v_prediction"}, num_steps)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipping_and_thresholding(sampler, clipping, prediction_type):
    eta, config = SAMPLERS[sampler], SD | {"prediction_type": prediction_type} | CLIPPING[clipping]
    compare(eta, config)
    if eta is not None:
        compare(eta, config, use_clipped_model_output=True)


def test_a_chain_that_ends_in_its_first_index():
    compare(0.0, SD | {"set_alpha_to_one": False})
    compare(0.5, SD | {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"})


def test_timesteps_of_one_s_own():
    compare(None, SD, num_steps=None, timesteps=[950, 700, 420, 419, 33, 2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_single_steps_in_float64(prediction_type, sampler):
    """The stock scheduler has its chain in float32; it is cast here, so that the rest of its arithmetic is in float64."""
    eta = SAMPLERS[sampler]
    stock = (DDPMScheduler if eta is None else DDIMScheduler)(**SD, prediction_type=prediction_type, clip_sample=False)
    ours = VDMScheduler.from_config(stock.config)
    stock.alphas_cumprod = stock.alphas_cumprod.double()
    kwargs = {} if eta is None else {"eta": eta}
    z, output = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    stock.set_timesteps(8)
    for index, t in enumerate(stock.timesteps):
        ours.set_timesteps(8)
        assert ours.timesteps[index] == t
        steps = [
            scheduler.step(output, t, z, generator=torch.Generator().manual_seed(1), **kwargs).prev_sample
            for scheduler in (ours, stock)
        ]
        torch.testing.assert_close(*steps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("name", BUILDERS)
def test_pipelines_give_the_same_images(name, eta):
    """With the configuration of Stable Diffusion, whose pipelines edit it."""
    if name == "DDIM" and eta is None:
        pytest.skip("DDIMPipeline calls no `step` of DDPM's")
    stock = (DDPMScheduler if eta is None else DDIMScheduler)(
        **SD, timestep_spacing="leading", steps_offset=1, clip_sample=name in ("DDPM", "DDIM")
    )
    ours = VDMScheduler.from_config(stock.config)
    stock_kwargs, our_kwargs = {}, {}
    if name in CHOOSES_ETA:
        stock_kwargs, our_kwargs = {} if eta is None else {"eta": eta}, {"eta": 1.0 if eta is None else eta}
    elif eta is not None:
        ours = VDMScheduler.from_config(stock.config, eta=eta)
        stock_step = stock.step
        stock.step = lambda *args, **kwargs: stock_step(*args, eta=eta, **kwargs)
    expected = images(name, stock, 5, **stock_kwargs)
    assert expected.std() > 0.1
    torch.testing.assert_close(images(name, ours, 5, **our_kwargs), expected, rtol=0, atol=1e-4)


def test_several_images_a_prompt_and_a_generator_for_each():
    stock = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)

    def call(scheduler) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
        return images("SD text-to-image", scheduler, 4, num_images_per_prompt=3, generator=generators, eta=0.7)

    expected = call(stock)
    assert len(expected) == 3 and (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(call(VDMScheduler.from_config(stock.config)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chain", CHAINS)
def test_noise_and_velocities_are_the_stock_scheduler_s(chain):
    stock = DDPMScheduler(**CHAINS[chain])
    ours = VDMScheduler.from_config(stock.config)
    x, noise = torch.randn(2, 5, 3, 4, 4)
    timesteps = torch.tensor([0, 1, 50, 120, len(stock) - 1])
    for method in ("add_noise", "get_velocity"):
        torch.testing.assert_close(getattr(ours, method)(x, noise, timesteps), getattr(stock, method)(x, noise, timesteps))
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(ours, name), getattr(stock, name))


def test_a_configuration_survives_the_way_through_ours():
    stock = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
    again = DDIMScheduler.from_config(VDMScheduler.from_config(stock.config).config)
    for name in ("set_alpha_to_one", "steps_offset", "prediction_type", "clip_sample", "timestep_spacing", *SD):
        assert again.config[name] == stock.config[name], name
    assert torch.equal(again.alphas_cumprod, stock.alphas_cumprod)


class ChainDenoiser(nn.Module):
    """The optimal denoiser of Gaussian data, told indices of a β-chain between which numpy interpolates its log-SNR."""

    def __init__(self, betas: np.ndarray):
        super().__init__()
        alphas_cumprod = np.cumprod(1 - betas)
        self.gammas = np.log((1 - alphas_cumprod) / alphas_cumprod)
        self.denoiser = GaussianDenoiser(self)

    def inverse(self, timestep: Tensor) -> Tensor:
        return torch.as_tensor(np.interp(timestep, np.arange(len(self.gammas)), self.gammas))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(z, t)[0]


SCHEDULES_OVER_A_CHAIN: dict[str, Callable] = {name: SCHEDULES[name] for name in ("LinearSchedule", *LEARNED_PINNED)} | {
    "CosineSchedule": CosineSchedule,
    "TableSchedule": lambda gamma_min, gamma_max: SCHEDULES["TableSchedule"](gammas=[gamma_min, -6.0, -3.0, 0.0, gamma_max]),
}


@pytest.mark.parametrize("name", SCHEDULES_OVER_A_CHAIN)
def test_a_noise_schedule_visits_a_stock_model_at_fractional_timesteps(name):
    """Deterministic steps are affine in `z_1`, so those of a basis give the mean and the covariance of all samples."""
    stock = DDPMScheduler(beta_schedule="linear")
    schedule = SCHEDULES_OVER_A_CHAIN[name](gamma_min=-9.0, gamma_max=10.0)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.1 * torch.randn_like(parameter) if parameter.ndim else 0.0
    scheduler = VDMScheduler.from_noise_schedule(schedule, **stock.config)
    denoiser = ChainDenoiser(np.linspace(1e-4, 0.02, 1000))
    scheduler.set_timesteps(300)
    gammas = torch.as_tensor(denoiser.inverse(scheduler.timesteps.double()))
    torch.testing.assert_close(gammas, schedule.double().chain(300).flip(0)[:-1].detach(), rtol=0, atol=2e-3)
    assert (scheduler.timesteps % 1 > 0).float().mean() > 0.9
    z = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double().reshape(4, 3, 1, 1)
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser(z, t), t, z, eta=0.0).prev_sample
    x = z.flatten(1) / torch.sigmoid(-scheduler.gamma_0).sqrt()
    torch.testing.assert_close(x[0], MEAN, rtol=0, atol=5e-3)
    columns = x[1:] - x[0]
    torch.testing.assert_close(columns.T @ columns, COVARIANCE, rtol=0, atol=5e-3)


def test_a_noise_schedule_over_a_chain_survives_saving(tmp_path):
    scheduler = VDMScheduler.from_noise_schedule(LinearSchedule(-8.0, 6.0), **DDPMScheduler(**SD).config)
    scheduler.save_pretrained(tmp_path)
    expected = sample(scheduler, 6)
    assert torch.equal(sample(VDMScheduler.from_pretrained(tmp_path), 6), expected)
    assert torch.equal(sample(VDMScheduler.from_config(scheduler.config), 6), expected)


@pytest.mark.parametrize(
    "stock",
    [
        FlowMatchEulerDiscreteScheduler(),
        EDMEulerScheduler(),
        EDMDPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        UniPCMultistepScheduler(use_flow_sigmas=True),
        CogVideoXDDIMScheduler(),
    ],
    ids=lambda stock: type(stock).__name__,
)
def test_other_processes_are_refused(stock):
    with pytest.raises(ValueError, match="only models of a variance-preserving chain can be sampled here"):
        VDMScheduler.from_config(stock.config)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([10, 20], "must decrease"),
        ([20, 20, 10], "must decrease"),
        ([], "must decrease"),
        ([1000, 10], r"must be in \[0.0, 999.0\]"),
        ([10, -1], r"must be in \[0.0, 999.0\]"),
        ([10.5, 3], "must be whole"),
    ],
)
def test_timesteps_that_no_chain_visits_are_refused(timesteps, message):
    with pytest.raises(ValueError, match=message):
        VDMScheduler(**SD).set_timesteps(timesteps=timesteps)


def test_timesteps_that_leave_a_noise_schedule_are_refused():
    scheduler = VDMScheduler.from_noise_schedule(LinearSchedule(-8.0, 4.0), gamma_min=-8.0, gamma_max=5.0)
    scheduler.set_timesteps(timesteps=[900.5, 200.25, 0])
    with pytest.raises(ValueError, match="`timesteps` run from 990.0 to 10.0, but must be in"):
        scheduler.set_timesteps(timesteps=[990, 10])


@pytest.mark.parametrize("kwargs", [{}, {"num_inference_steps": 2, "timesteps": [10, 1]}])
def test_a_number_of_steps_or_their_timesteps_are_given(kwargs):
    with pytest.raises(ValueError, match="either `num_inference_steps` or `timesteps`"):
        VDMScheduler(**SD).set_timesteps(**kwargs)


def test_steps_out_of_order_are_refused():
    scheduler, z = VDMScheduler(**SD), torch.randn(1, 3, 4, 4)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps[:2]:
        scheduler.step(z, t, z)
    for index in (0, 1, 3):
        with pytest.raises(ValueError, match="one after the other"):
            scheduler.step(z, scheduler.timesteps[index], z)
    scheduler.step(z, scheduler.timesteps[2], z)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="one after the other"):
        scheduler.step(z, scheduler.timesteps[0], z)
    scheduler.step(z, scheduler.timesteps[3], z)


def test_a_stock_model_trained_as_a_vdm_keeps_its_chain(tmp_path):
    """What is saved tells the denoiser the same indices, at the same gammas."""
    pipe = DDPMPipeline(unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    vdm = VDM.from_pipeline(pipe)
    vdm.save_pretrained(tmp_path)
    again = VDM.from_pretrained(tmp_path)
    gammas = vdm.timestep_map.gammas[[0, 10, 500, 998]]
    for model in (vdm, again):
        torch.testing.assert_close(model.timestep_map(gammas), torch.tensor([0.0, 10, 500, 998], dtype=torch.float64))
        torch.testing.assert_close(model.noise_schedule(torch.tensor([0.0, 1.0]).double()), vdm.timestep_map.gammas[[0, -1]])


def test_a_chain_that_ends_in_pure_noise_needs_another_schedule():
    pipe = DDPMPipeline(unet(), DDPMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="ends in pure noise"):
        VDM.from_pipeline(pipe)
    assert VDM.from_pipeline(pipe, LinearSchedule(-8.0, 5.0)).noise_schedule.gamma_max == 5.0


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_shares_of_noise_are_between_none_and_all(eta):
    scheduler = VDMScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=f"`eta` is {eta}"):
        scheduler.step(torch.zeros(1, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 1, 2, 2), eta=eta)
