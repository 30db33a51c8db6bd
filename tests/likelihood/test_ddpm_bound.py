"""DDPM's bound, term by term: against Gaussians of torch and scipy on the chain of diffusers' own scheduler, and `VDM`."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from vdm_diffusers import VDM, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.data import ImageDataset
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, VARIANCE_TYPES, Prediction, ddpm_bound
from vdm_diffusers.likelihood.per_image import generators


LOG_2 = math.log(2)
CHAIN = {"num_train_timesteps": 12, "beta_start": 0.03, "beta_end": 0.3}


def pipeline(variance_type: str = "fixed_small", scheduler=DDPMScheduler, **kwargs) -> DDPMPipeline:
    channels = 4 if variance_type.startswith("learned") else 2
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(6, 2, channels, layers_per_block=1, norm_num_groups=4, **blocks).double()
    kwargs = {} if scheduler is DDIMScheduler else {"variance_type": variance_type} | kwargs
    return DDPMPipeline(unet, scheduler(**CHAIN, **kwargs))


def dataset(num_images: int = 3) -> ImageDataset:
    images = torch.randint(0, 256, (num_images, 6, 6, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[0, 0, :3] = torch.tensor([0, 255])
    return ImageDataset([{"image": image.numpy()} for image in images])


def draws(num_images: int, num_steps: int, seed: int = 0) -> torch.Tensor:
    """The evaluator's noise, `(num_steps, N, C, H, W)`, in the order in which it draws."""
    sources = generators(seed, torch.arange(num_images))
    return torch.stack([torch.stack([torch.randn(2, 6, 6, generator=s) for _ in range(num_steps)]) for s in sources], dim=1)


def reverse(pipe: DDPMPipeline, x_t: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of `p(x_{t-1}|x_t)`, in Ho et al.'s β and ᾱ and with the variances of diffusers' scheduler."""
    scheduler = pipe.scheduler
    a_t = scheduler.alphas_cumprod[t].double()
    with torch.no_grad():
        output = pipe.unet(x_t, torch.full((len(x_t),), t), return_dict=False)[0]
    output, variance = output[:, :2], output[:, 2:]
    x_0 = {
        "epsilon": (x_t - (1 - a_t).sqrt() * output) / a_t.sqrt(),
        "sample": output,
        "v_prediction": a_t.sqrt() * x_t - (1 - a_t).sqrt() * output,
    }[scheduler.config.prediction_type].clamp(-1, 1)
    return posterior_mean(pipe, x_0, x_t, t), reverse_variance(scheduler, variance, t)


def reverse_variance(scheduler: DDPMScheduler, output: torch.Tensor, t: int) -> torch.Tensor:
    """At index 0 as in the code of Ho et al. and of Nichol & Dhariwal: that of the posterior at index 1, if fixed."""
    kind = scheduler.config.get("variance_type", "fixed_small")
    small = scheduler_variance(scheduler, max(t, 1))
    if kind == "learned":
        return output.exp()
    if kind == "learned_range":
        fraction = (output + 1) / 2
        return torch.exp(fraction * scheduler.betas[t].double().log() + (1 - fraction) * small.log())
    return scheduler.betas[t].double() if kind == "fixed_large" and t > 0 else small


def scheduler_variance(scheduler: DDPMScheduler, t: int) -> torch.Tensor:
    a_t, a_s = scheduler.alphas_cumprod.double()[[t, t - 1]]
    return (1 - a_s) / (1 - a_t) * scheduler.betas[t].double()


def posterior_mean(pipe: DDPMPipeline, x_0: torch.Tensor, x_t: torch.Tensor, t: int) -> torch.Tensor:
    scheduler = pipe.scheduler
    alphas_cumprod, beta = scheduler.alphas_cumprod.double(), scheduler.betas[t].double()
    a_t, a_s = alphas_cumprod[t], alphas_cumprod[t - 1] if t else torch.tensor(1.0).double()
    return a_s.sqrt() * beta / (1 - a_t) * x_0 + (1 - beta).sqrt() * (1 - a_s) / (1 - a_t) * x_t


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_every_term_against_an_independent_computation(variance_type, prediction_type):
    pipe = pipeline(variance_type, prediction_type=prediction_type)
    data = dataset()
    bound = ddpm_bound(DDPM.from_pipeline(pipe), data, batch_size=2)
    x = torch.stack([item["images"] for item in data]).double() / 127.5 - 1
    eps = draws(3, 12).double()
    expected = []
    for t in range(12):
        alpha_sq = pipe.scheduler.alphas_cumprod[t].double()
        x_t = alpha_sq.sqrt() * x + (1 - alpha_sq).sqrt() * eps[t]
        mean, variance = reverse(pipe, x_t, t)
        if t == 0:
            standard = norm(mean, variance.sqrt().expand(mean.shape))
            upper = np.where(x == 1, np.inf, x + 1 / 255)
            lower = np.where(x == -1, -np.inf, x - 1 / 255)
            tail = np.where(mean < x, standard.sf(lower) - standard.sf(upper), standard.cdf(upper) - standard.cdf(lower))
            nats = -torch.from_numpy(np.log(tail))
        else:
            q = Normal(posterior_mean(pipe, x, x_t, t), scheduler_variance(pipe.scheduler, t).sqrt())
            nats = kl_divergence(q, Normal(mean, variance.sqrt().expand(mean.shape)))
        expected.append(nats.sum((1, 2, 3)).mean().item() / (72 * LOG_2))
    assert all(math.isfinite(term) for term in expected)
    assert bound.timestep_terms == pytest.approx(expected, rel=2e-4)
    alpha_sq = pipe.scheduler.alphas_cumprod[-1].double()
    prior = kl_divergence(Normal(alpha_sq.sqrt() * x, (1 - alpha_sq).sqrt()), Normal(torch.zeros_like(x), 1.0))
    assert bound.prior == pytest.approx(prior.mean().item() / LOG_2, rel=1e-4)
    assert bound.reconstruction == bound.timestep_terms[0]
    assert bound.diffusion == pytest.approx(sum(bound.timestep_terms[1:]))
    assert bound.bits_per_dim == pytest.approx(bound.prior + bound.reconstruction + bound.diffusion)


def test_denoising_terms_are_a_vdm_s_for_equal_variances():
    """Without clipping and with the variance of `q`, the two conventions share every term but `L_0`, given the same x."""
    pipe = pipeline()
    ddpm, vdm = DDPM.from_pipeline(pipe, clip_denoised=False), VDM.from_pipeline(pipe, num_timesteps=11)
    x = 2 * torch.rand(4, 2, 6, 6, dtype=torch.float64) - 1
    eps = torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(ddpm.prior(x), vdm.prior(x))
        for index in (1, 2, 6, 11):
            times = torch.full((4,), index / 11, dtype=torch.float64)
            expected = vdm.diffusion(x, vdm.noise_level(times), eps) / 11
            torch.testing.assert_close(ddpm.denoising(x, torch.full((4,), index), eps), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_levels", [2, 17, 256, 1000])
@pytest.mark.parametrize(("mean", "log_variance"), [(-0.99, -7.0), (0.3, -11.0), (1.0, -2.0)])
def test_decoder_is_a_gaussian_cut_into_as_many_bins_as_there_are_levels(mean, log_variance, num_levels):
    ddpm = DDPM(pipeline().unet, torch.tensor([-1.0, 1.0]), num_levels=num_levels)
    ddpm.predict = lambda *_: Prediction(*torch.tensor([mean, log_variance], dtype=torch.float64))
    levels = ddpm.scale(torch.arange(num_levels).reshape(num_levels, 1, 1, 1))
    nats = ddpm.reconstruction(levels, torch.zeros_like(levels))
    assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-9)
    centers = np.linspace(-1, 1, num_levels)
    edges = np.concatenate([[-np.inf], (centers[1:] + centers[:-1]) / 2, [np.inf]])
    gaussian = norm(mean, math.exp(log_variance / 2))
    masses = np.where(edges[:-1] > mean, gaussian.sf(edges[:-1]) - gaussian.sf(edges[1:]), np.diff(gaussian.cdf(edges)))
    likely = masses > 1e-100
    assert nats.numpy()[likely] == pytest.approx(-np.log(masses[likely]), rel=1e-6)


def test_drawn_indices_are_unbiased_and_stratified():
    ddpm, data = DDPM.from_pipeline(pipeline()), dataset(24)
    full = ddpm_bound(ddpm, data, num_repeats=4)
    drawn = ddpm_bound(ddpm, data, num_repeats=60, num_indices=3, batch_size=24)
    error = math.hypot(full.standard_error_draws, drawn.standard_error_draws)
    assert drawn.bits_per_dim == pytest.approx(full.bits_per_dim, abs=4 * error)
    assert drawn.timestep_terms == pytest.approx(full.timestep_terms, rel=0.1)
    assert error < 0.03 * full.bits_per_dim


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_do_not_matter(batch_size):
    ddpm, data = DDPM.from_pipeline(pipeline("learned_range")), dataset(5)
    whole = ddpm_bound(ddpm, data, num_repeats=2, num_indices=4)
    parts = ddpm_bound(ddpm, data, num_repeats=2, num_indices=4, batch_size=batch_size)
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, abs=1e-9)
    assert parts.standard_error == pytest.approx(whole.standard_error, abs=1e-9)


def test_scheduler_without_variances_has_those_of_ddpm():
    expected = ddpm_bound(DDPM.from_pipeline(pipeline()), dataset())
    assert ddpm_bound(DDPM.from_pipeline(pipeline(scheduler=DDIMScheduler)), dataset()) == expected


def test_zero_terminal_snr_is_finite_where_the_noise_is_not_predicted():
    bound = ddpm_bound(DDPM.from_pipeline(pipeline(prediction_type="v_prediction", rescale_betas_zero_snr=True)), dataset())
    assert math.isfinite(bound.bits_per_dim) and bound.prior == pytest.approx(0, abs=1e-9)


def test_nan_names_image_and_timestep():
    pipe = pipeline()
    forward = pipe.unet.forward

    def broken(sample, timestep, **kwargs):
        (output,) = forward(sample, timestep, **kwargs)
        bad = (timestep == 7) & (sample.mean((1, 2, 3)) > 0.4)
        return (torch.where(bad[:, None, None, None], torch.nan, output),)

    pipe.unet.forward = broken
    rows = [{"image": np.full((6, 6, 2), 255 if i == 3 else 100, dtype=np.uint8)} for i in range(4)]
    with pytest.raises(FloatingPointError, match="image 3 is not finite at timestep 7"):
        ddpm_bound(DDPM.from_pipeline(pipe), ImageDataset(rows), batch_size=2)


def test_contradictory_variances_are_refused():
    with pytest.raises(ValueError, match="would have 4 output channels, but it has 2"):
        DDPM.from_pipeline(pipeline(), variance_type="learned")
    with pytest.raises(ValueError, match="`variance_type` is 'huge'"):
        DDPM(pipeline().unet, torch.tensor([-1.0, 1.0]), variance_type="huge")
    vdm = VDM(VDMUNet2DModel(6, 2, block_channels=8, layers_per_side=1, norm_num_groups=4), VDMScheduler().noise_schedule)
    with pytest.raises(ValueError, match="no model of a β-chain"):
        DDPM.from_pipeline(vdm.to_pipeline())
    with pytest.raises(ValueError, match="`num_indices` is 12, but there are 11"):
        ddpm_bound(DDPM.from_pipeline(pipeline()), dataset(), num_indices=12)


def test_the_paper_s_denoiser_is_one_of_a_chain_too():
    """It leaves its number of output channels to be that of its input."""
    unet = VDMUNet2DModel(6, 2, block_channels=8, layers_per_side=1, norm_num_groups=4)
    ddpm = DDPM.from_pipeline(DDPMPipeline(unet, DDPMScheduler()))
    assert ddpm.variance_type == "fixed_small" and unet.config.out_channels is None


def test_a_stock_pipeline_has_a_bound_in_the_vdm_s_convention_too():
    vdm = VDM.from_pipeline(pipeline("learned_range", prediction_type="v_prediction"))
    bound = variational_bound(vdm, dataset(20), num_repeats=2)
    assert 0 < bound.bits_per_dim < 100


def test_the_chain_stays_exact_where_the_denoiser_is_in_half_precision():
    pipe = pipeline()
    ddpm = DDPM.from_pipeline(pipe).to(torch.bfloat16)
    alphas_cumprod = pipe.scheduler.alphas_cumprod.double()
    expected = torch.log((1 - alphas_cumprod) / alphas_cumprod)
    torch.testing.assert_close(ddpm.chain.gammas.double(), expected, rtol=1e-6, atol=1e-6)
    assert ddpm.unet.dtype == torch.bfloat16
