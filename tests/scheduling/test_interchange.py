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
from diffusers.configuration_utils import FrozenDict
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


def both(eta: float | None, **config) -> tuple:
    """The stock scheduler that steps with this `eta`, ours of the same configuration, and what both are given at each step."""
    stock = (DDPMScheduler if eta is None else DDIMScheduler)(**SD, clip_sample=False, **config)
    return stock, VDMScheduler.from_config(stock.config), {} if eta is None else {"eta": eta}


def loop(scheduler, timesteps: Tensor, z: Tensor, **kwargs) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    for t in timesteps:
        z = scheduler.step(denoise(z, t), t, z, generator=generator, **kwargs).prev_sample
    return z


def set_in_place(scheduler) -> None:
    scheduler.timesteps[1] += 7


def use_fewer_steps(scheduler) -> None:
    scheduler.num_inference_steps = 5


def predict_the_velocity(scheduler) -> None:
    scheduler._internal_dict = FrozenDict(dict(scheduler.config) | {"prediction_type": "v_prediction"})


CHANGES: dict[str, Callable] = {
    "the last ones": lambda scheduler: setattr(scheduler, "timesteps", scheduler.timesteps[5:]),
    "every second": lambda scheduler: setattr(scheduler, "timesteps", scheduler.timesteps[::2]),
    "others": lambda scheduler: setattr(scheduler, "timesteps", torch.tensor([901, 800, 33, 4])),
    "one in place": set_in_place,
    "their number": use_fewer_steps,
    "the configuration": predict_the_velocity,
}


@pytest.mark.parametrize("eta", [None, 0.0, 0.5])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_from_outside_counts(change, eta):
    stock, ours, kwargs = both(eta, timestep_spacing="leading", steps_offset=1)
    z, results = torch.randn(2, 3, 4, 4), []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        CHANGES[change](scheduler)
        results.append(loop(scheduler, scheduler.timesteps, z, **kwargs))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize("eta", [None, 0.0])
def test_a_loop_over_a_part_of_the_timesteps(eta):
    stock, ours, kwargs = both(eta)
    z, results = torch.randn(2, 3, 4, 4), []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        results.append(loop(scheduler, scheduler.timesteps[6:], z, **kwargs))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_the_last_timesteps_of_a_noise_schedule_lead_to_the_same_images():
    scheduler, z, results = VDMScheduler(gamma_min=-8.0), torch.randn(2, 3, 4, 4), []
    for cut in (False, True):
        scheduler.set_timesteps(10)
        rest = scheduler.timesteps[5:]
        if cut:
            scheduler.timesteps = rest.clone()
        results.append(loop(scheduler, rest, z))
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "timesteps",
    [[10, 20], [20, 20], [], [1000, 3], [20.5, 3], [float("nan")], [[20, 10]]],
    ids=lambda timesteps: str(timesteps),
)
def test_timesteps_changed_to_what_no_steps_lead_through_are_refused(timesteps):
    scheduler, z = VDMScheduler(**SD), torch.zeros(1, 3, 4, 4)
    scheduler.set_timesteps(5)
    scheduler.timesteps = torch.tensor(timesteps)
    with pytest.raises(ValueError, match="`timesteps` (must|run)"):
        scheduler.step(z, 20, z)


def test_images_step_together():
    scheduler, z = VDMScheduler(**SD), torch.randn(3, 3, 4, 4)
    results = []
    for expanded in (lambda t: t, lambda t: t.expand(3), lambda t: t.repeat(3), float):
        scheduler.set_timesteps(5)
        results.append(scheduler.step(z, expanded(scheduler.timesteps[0]), z, eta=0.0).prev_sample)
    assert all(torch.equal(result, results[0]) for result in results)
    scheduler.set_timesteps(5)
    for timesteps in (scheduler.timesteps[:3], torch.tensor([999, 1, 2])):
        with pytest.raises(ValueError, match="different values for the images"):
            scheduler.step(z, timesteps, z)


@pytest.mark.parametrize("timestep", [3, 998.5, float("nan"), None, "999", torch.empty(0)], ids=str)
def test_a_timestep_that_is_not_visited_is_refused(timestep):
    scheduler, z = VDMScheduler(**SD), torch.zeros(1, 3, 4, 4)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="takes the elements of `scheduler.timesteps`"):
        scheduler.step(z, timestep, z)


def test_options_of_ddim_leave_ddpm_alone():
    """`set_alpha_to_one=False` would leave noise where DDPM ends in `x`."""
    config = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False).config
    scheduler = VDMScheduler.from_config(config)
    torch.testing.assert_close(sample(scheduler, 7), sample(DDPMScheduler.from_config(config), 7), rtol=0, atol=1e-5)
    assert scheduler.gamma_0 == -torch.inf
    sample(scheduler, 7, eta=0.0)
    assert scheduler.gamma_0 == scheduler.timestep_map.gammas[0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range", None], ids=str
)
def test_variances_are_those_of_ddpm(variance_type, spacing):
    stock = DDPMScheduler(**SD, clip_sample=False, variance_type=variance_type, **SPACINGS[spacing])
    ours = VDMScheduler.from_config(stock.config)
    results = []
    for scheduler in (stock, ours):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(2, 3, 4, 4, generator=generator)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            output = denoise(z, t)
            if variance_type in ("learned", "learned_range"):
                output = torch.cat([output, 0.1 + z.sin() ** 2], dim=1)
            z = scheduler.step(output, t, z, generator=generator).prev_sample
        results.append(z)
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("variance_type", "channels", "eta"),
    [("fixed_small", 6, None), ("fixed_small", 6, 0.0), ("learned_range", 3, None), ("learned", 4, None), ("learned", 4, 0.0)],
)
def test_outputs_of_another_size_are_refused(variance_type, channels, eta):
    scheduler, z = VDMScheduler(**SD, variance_type=variance_type), torch.zeros(2, 3, 4, 4)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=f"`model_output` has the shape .2, {channels}, 4, 4."):
        scheduler.step(torch.zeros(2, channels, 4, 4), scheduler.timesteps[0], z, eta=eta)


def test_steps_of_ddim_have_no_use_for_learned_variances():
    scheduler, z, output = VDMScheduler(**SD, variance_type="learned_range"), *torch.randn(2, 2, 3, 4, 4)
    results = []
    for model_output in (output, torch.cat([output, z], dim=1)):
        scheduler.set_timesteps(5)
        results.append(scheduler.step(model_output, scheduler.timesteps[0], z, eta=0.0).prev_sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("timesteps", [[-1, 3], [1000, 3], [float("nan"), 3], [1, 2, 3]], ids=str)
def test_noise_levels_that_nothing_has_are_refused(timesteps):
    x = torch.zeros(2, 3, 4, 4)
    for method in (VDMScheduler(**SD).add_noise, VDMScheduler(**SD).get_velocity):
        with pytest.raises(ValueError, match="`timesteps`"):
            method(x, x, torch.tensor(timesteps))


@pytest.mark.parametrize(
    ("config", "num_steps", "message"),
    [
        ({"trained_betas": [0.1, 0.2, 0.3]}, 10, "the last index of the chain is 2"),
        (SD | {"timestep_spacing": "leading", "steps_offset": 1}, 1000, "begin at index 1000"),
        (SD, 1001, "the chain has 1000 indices"),
        (SD, 10**9, "must be a whole number from 1 to"),
        (SD, 2.5, "must be a whole number from 1 to"),
        (SD, True, "must be a whole number from 1 to"),
        (SD, "10", "must be a whole number from 1 to"),
        ({}, 10**9, "must be a whole number from 1 to"),
    ],
)
def test_more_steps_than_a_chain_has_are_refused(config, num_steps, message):
    with pytest.raises(ValueError, match=message):
        VDMScheduler(**config).set_timesteps(num_steps)


@pytest.mark.parametrize(("length", "num_steps"), [(100, 29), (1000, 61), (1000, 60)])
def test_trailing_indices_stay_on_the_chain(length, num_steps):
    """For some numbers of steps the rounding of NumPy's `arange` makes diffusers' schedulers visit an index of -1 too."""
    scheduler = VDMScheduler(**SD, num_train_timesteps=length, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    stock = DDPMScheduler(**SD, num_train_timesteps=length, timestep_spacing="trailing")
    stock.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == num_steps
    assert torch.equal(scheduler.timesteps, stock.timesteps[stock.timesteps >= 0])
