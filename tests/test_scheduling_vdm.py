"""VDMScheduler: its configuration is its state, its steps are the posterior's, its samples have the data's moments."""

import copy
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser

from vdm_diffusers import CosineSchedule, LearnedMonotoneSchedule, LinearSchedule, VDMScheduler
from vdm_diffusers.gaussian import PREDICTIONS


def learned_schedule() -> LearnedMonotoneSchedule:
    schedule = LearnedMonotoneSchedule(num_features=32)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return schedule


def gamma_at(scheduler: VDMScheduler) -> torch.Tensor:
    return scheduler.noise_schedule(torch.linspace(0, 1, 101, dtype=torch.float64))


def sample(scheduler: VDMScheduler, prediction_type: str, num_steps: int, num_samples: int, eta: float) -> torch.Tensor:
    """Samples `(num_samples, 3)` of the Gaussian data by its optimal denoiser, float64."""
    denoiser = GaussianDenoiser(scheduler.timestep_map, prediction_type)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(num_samples, 3, 1, 1, generator=generator, dtype=torch.float64)
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser(z, t)[0], t, z, generator=generator, eta=eta).prev_sample
    return z.flatten(1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_gaussian_data_have_its_mean_and_covariance(eta):
    num_samples = 20_000
    scheduler = VDMScheduler.from_noise_schedule(CosineSchedule(gamma_min=-12.0, gamma_max=12.0))
    x = sample(scheduler, "epsilon", 1000, num_samples, eta)
    standard_error = (COVARIANCE.diagonal() / num_samples).sqrt()
    assert ((x.mean(0) - MEAN).abs() < 4 * standard_error).all()
    variances = COVARIANCE.diagonal()
    covariance_error = ((variances[:, None] * variances + COVARIANCE**2) / num_samples).sqrt()
    assert ((x.T.cov() - COVARIANCE).abs() < 4 * covariance_error).all()


def test_prediction_types_of_one_denoiser_give_the_same_samples():
    schedule = LinearSchedule(-8.0, 6.0)
    samples = [
        sample(VDMScheduler.from_noise_schedule(schedule, prediction_type=name), name, 20, 16, eta=1.0) for name in PREDICTIONS
    ]
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [False, True])
def test_steps_equal_those_of_diffusers_on_the_same_chain(prediction_type, clip_sample):
    """A chain of 100 steps, each visited: DDPM is the ancestral step (`fixed_small`), DDIM the deterministic one."""
    num_steps = 100
    schedule = CosineSchedule(gamma_min=-8.0, gamma_max=6.0).double()
    betas = (1 - schedule.alphas(num_steps)).tolist()
    first = torch.sigmoid(schedule.chain(num_steps)[0]).item()
    kwargs = {"prediction_type": prediction_type, "clip_sample": clip_sample}
    stock_kwargs = kwargs | {"num_train_timesteps": num_steps + 1, "trained_betas": [first, *betas]}
    ours = VDMScheduler.from_noise_schedule(schedule, spacing="time", **kwargs)
    ours.set_timesteps(num_steps)
    ddpm, ddim = DDPMScheduler(**stock_kwargs), DDIMScheduler(**stock_kwargs)
    for scheduler in (ddpm, ddim):
        scheduler.num_inference_steps = num_steps + 1
    for i in (100, 57, 1):
        z, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        ours.set_timesteps(num_steps)
        ours.set_begin_index(num_steps - i)
        t = ours.timesteps[num_steps - i]
        ancestral = ours.step(output, t, z, generator=torch.Generator().manual_seed(1)).prev_sample
        expected = ddpm.step(output, i, z, generator=torch.Generator().manual_seed(1)).prev_sample
        torch.testing.assert_close(ancestral, expected, rtol=2e-3, atol=2e-4)
        ours.set_begin_index(num_steps - i)
        ours._step_index = None
        deterministic = ours.step(output, t, z, eta=0.0, use_clipped_model_output=True).prev_sample
        expected = ddim.step(output, i, z, eta=0.0, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(deterministic, expected, rtol=2e-3, atol=2e-4)


def test_learned_schedule_is_baked_in(tmp_path):
    schedule = learned_schedule()
    scheduler = VDMScheduler.from_noise_schedule(schedule)
    exact = schedule.double()(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(gamma_at(scheduler), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(gamma_at(scheduler)[[0, -1]], exact[[0, -1]], rtol=0, atol=1e-12)


def test_nothing_that_moves_a_scheduler_loses_its_schedule(tmp_path):
    scheduler = VDMScheduler.from_noise_schedule(learned_schedule(), prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path)
    through_stock = DPMSolverMultistepScheduler.from_config(scheduler.config)
    for other in (
        VDMScheduler.from_pretrained(tmp_path),
        VDMScheduler.from_config(scheduler.config),
        VDMScheduler.from_config(through_stock.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        torch.testing.assert_close(gamma_at(other), gamma_at(scheduler), rtol=0, atol=0)
        assert other.config.prediction_type == "v_prediction"


def test_configurations_on_all_ways_are_equal(tmp_path):
    scheduler = VDMScheduler.from_noise_schedule(learned_schedule())
    scheduler.save_pretrained(tmp_path)
    expected = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    assert dict(VDMScheduler.from_pretrained(tmp_path).config) == expected
    assert dict(VDMScheduler.from_config(VDMScheduler().config).config) == dict(VDMScheduler().config)


def test_config_gives_stock_schedulers_the_chain_whose_index_is_the_timestep():
    scheduler = VDMScheduler.from_noise_schedule(learned_schedule(), gamma_min=-10.0, gamma_max=5.0)
    stock = DDPMScheduler.from_config(scheduler.config)
    log_snr = stock.alphas_cumprod.double().logit()
    index = torch.arange(1000)
    torch.testing.assert_close(-log_snr, -10.0 + 15.0 * index.double() / 1000, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "spacing, chain",
    [("time", CosineSchedule().double().chain), (None, lambda steps: torch.linspace(-13.3, 5, steps + 1).double())],
)
def test_timesteps_are_affine_in_gamma_and_fall_from_its_end(spacing, chain):
    """A VDM's at equal distances of gamma unless those of time are asked for."""
    scheduler = VDMScheduler.from_noise_schedule(CosineSchedule(), spacing=spacing)
    scheduler.set_timesteps(10)
    gamma = chain(10).flip(0)[:-1]
    torch.testing.assert_close(scheduler.timesteps.double(), 1000 * (gamma + 13.3) / 18.3, rtol=0, atol=1e-2)
    assert scheduler.timesteps[0] == 1000


def test_add_noise_and_velocity_follow_their_definitions():
    scheduler = VDMScheduler.from_noise_schedule(CosineSchedule())
    x, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    timesteps = torch.tensor([10.0, 500.5, 990.0])
    gamma = -13.3 + 18.3 * timesteps / 1000
    alpha, sigma = (value.sqrt()[:, None, None, None] for value in (torch.sigmoid(-gamma), torch.sigmoid(gamma)))
    torch.testing.assert_close(scheduler.add_noise(x, noise, timesteps), alpha * x + sigma * noise)
    torch.testing.assert_close(scheduler.get_velocity(x, noise, timesteps), alpha * noise - sigma * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_samples_are_stepped_in_float32(dtype):
    scheduler = VDMScheduler()
    z, output = torch.randn(1, 3, 4, 4).to(dtype), torch.randn(1, 3, 4, 4).to(dtype)
    results = []
    for cast in (dtype, torch.float32):
        scheduler.set_timesteps(10)
        result = scheduler.step(output.to(cast), scheduler.timesteps[4], z.to(cast), eta=0.0).prev_sample
        results.append(result.to(dtype))
    assert results[0].dtype == dtype and torch.equal(*results)


def test_lists_of_generators_sample_each_image_alone():
    scheduler = VDMScheduler()
    z, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def step(rows: slice, seeds: list[int]) -> torch.Tensor:
        scheduler.set_timesteps(10)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return scheduler.step(output[rows], scheduler.timesteps[3], z[rows], generator=generators).prev_sample

    assert torch.equal(step(slice(0, 2), [1, 2])[1:], step(slice(1, 2), [2]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gammas": [0.0, 2.0, 1.0]}, "`gammas` must be finite and strictly increasing"),
        ({"gamma_min": 5.0, "gamma_max": -13.3}, "`gamma_min` .* must be below `gamma_max`"),
        ({"prediction_type": "flow"}, "`prediction_type` is 'flow'"),
        ({"gammas": [0.0, 1.0, 2.0], "times": [0.0, 0.5]}, "at least two gammas and as many times"),
        ({"gammas": "steep"}, "`gammas` is 'steep', but it must be a list of numbers"),
        ({"gammas": [0.0, [1.0, 2.0]]}, "`gammas` is .* must be a list of numbers"),
        ({"gammas": [0.0, 1.0], "times": [0.0, None]}, "`times` is .* must be a list of numbers"),
        ({"gammas": range(10**9)}, "`gammas` has 1,000,000,000 elements"),
        ({"gamma_min": float("nan")}, "`gamma_min` is nan"),
        ({"gamma_min": -300.0}, "`gamma_min` is -300.0, but it must be a number from -160 to 160"),
        ({"gammas": [-1e30, 5.0]}, "`gammas` must be from -160 to 160"),
        ({"gamma_max": "5"}, "`gamma_max` is '5'"),
        ({"prediction_type": ["epsilon"]}, "`prediction_type` is"),
        ({"eta": 1.5}, "`eta` is 1.5"),
        ({"eta": True}, "`eta` is True"),
        ({"clip_sample": "no"}, "`clip_sample` is 'no', but it must be true or false"),
        ({"clip_sample_range": -1}, "`clip_sample_range` is -1"),
        ({"dynamic_thresholding_ratio": 2}, "`dynamic_thresholding_ratio` is 2"),
        ({"variance_type": "small"}, "`variance_type` is 'small'"),
        ({"timestep_spacing": None}, "`timestep_spacing` is None"),
        ({"steps_offset": 0.5}, "`steps_offset` is 0.5"),
        ({"beta_schedule": "steep"}, "`beta_schedule` is 'steep', but it must be one of `linear`"),
        ({"beta_schedule": "linear", "beta_end": 1.5}, "`beta_end` is 1.5"),
        ({"beta_schedule": "linear", "beta_start": 0.0}, "β_0 of the chain is 0"),
        ({"beta_schedule": "linear", "beta_start": 0.5, "beta_end": 0.9}, "0 before its end"),
        ({"trained_betas": [0.1, float("nan"), 0.2]}, "β_1 of the chain is nan"),
        ({"trained_betas": [0.1, -0.2]}, "β_1 of the chain is -0.2"),
        ({"trained_betas": [0.1, 1.0, 0.2]}, "β_1 of the chain is 1"),
        ({"trained_betas": "0.1"}, "`trained_betas` is '0.1'"),
        ({"trained_betas": [0.1]}, "only one"),
        ({"trained_betas": []}, "only"),
        ({"trained_betas": [1e-9, 0.1]}, "too small or too large"),
        *(({"num_train_timesteps": n}, "`num_train_timesteps` is") for n in (0, -5, 2**31, 10**6, 1000.0, True, "1000", None)),
    ],
)
def test_bad_configurations_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VDMScheduler(**kwargs)


def test_configurations_of_numbers_of_numpy_are_saved(tmp_path):
    made = VDMScheduler(np.int64(50), np.float32(-8), np.float64(4), eta=np.float32(0.5), clip_sample=np.bool_(True))
    made.save_pretrained(tmp_path)
    loaded = VDMScheduler.from_pretrained(tmp_path)
    assert (loaded.config.eta, loaded.config.clip_sample, loaded.gamma_0.item()) == (0.5, True, -8)
    assert loaded.config.trained_betas == made.config.trained_betas


@pytest.mark.parametrize("gammas", [[-160.0, -100.0], [-160.0, 160.0], [100.0, 160.0]])
@pytest.mark.parametrize("eta", [None, 0.0])
def test_steps_are_finite_at_all_gammas_that_are_possible(gammas, eta):
    scheduler = VDMScheduler(gamma_min=-160.0, gamma_max=160.0, gammas=gammas, clip_sample=True)
    scheduler.set_timesteps(3)
    z = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        z = scheduler.step(z, t, z, eta=eta).prev_sample
    assert z.isfinite().all()


def test_steps_out_of_place_are_refused():
    scheduler = VDMScheduler()
    z = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="call `set_timesteps`"):
        scheduler.step(z, 10, z)
    with pytest.raises(ValueError, match="`num_inference_steps` is 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="takes the elements of `scheduler.timesteps`"):
        scheduler.step(z, 123.4, z)
    for begin_index in (-1, 1.5, None):
        with pytest.raises(ValueError, match="`begin_index` is"):
            scheduler.set_begin_index(begin_index)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"])
@pytest.mark.parametrize("rescale", [False, True])
def test_chains_are_those_of_diffusers(beta_schedule, rescale):
    kwargs = {"num_train_timesteps": 3000, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale}
    ours, stock = VDMScheduler(**kwargs), DDPMScheduler(**kwargs)
    torch.testing.assert_close(ours.betas, stock.betas, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("gamma_min", "gamma_max"), [(-13.3, 5.0), (-10.0, 10.0), (-8.0, 5.0)])
@pytest.mark.parametrize("num_train_timesteps", [10, 1000, 100_000])
def test_the_exported_chain_is_as_near_as_float32_allows(gamma_min, gamma_max, num_train_timesteps):
    """The error of ᾱ is a rounding of β and one of the product, however long the chain."""
    scheduler = VDMScheduler(num_train_timesteps, gamma_min, gamma_max)
    gammas = gamma_min + (gamma_max - gamma_min) * torch.arange(num_train_timesteps, dtype=torch.float64) / num_train_timesteps
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), torch.sigmoid(-gammas), rtol=2e-7, atol=0)
