"""The three terms of the bound: closed forms for Gaussian data, and the contract of `VDM.forward`."""

import math

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from gaussian_model import (
    COVARIANCE,
    MEAN,
    GaussianDenoiser,
    continuous_diffusion_loss,
    cubature,
    discrete_diffusion_loss,
)
from torch.distributions import MultivariateNormal, kl_divergence

from vdm_diffusers import (
    VDM,
    CosineSchedule,
    LearnedChainSchedule,
    LearnedLinearSchedule,
    LearnedMonotoneSchedule,
    LinearSchedule,
    TableSchedule,
    VDMPipeline,
    VDMUNet2DModel,
)
from vdm_diffusers.gaussian import PREDICTIONS
from vdm_diffusers.timestep_maps import AffineTimesteps
from vdm_diffusers.vdm import stratified_times


def gaussian_vdm(schedule=None, prediction_type="epsilon", **kwargs) -> VDM:
    schedule = (schedule or CosineSchedule(gamma_min=-6.0, gamma_max=4.0)).double()
    denoiser = GaussianDenoiser(AffineTimesteps(schedule.gamma_min, schedule.gamma_max), prediction_type)
    return VDM(denoiser, schedule, prediction_type, **kwargs)


def expected_diffusion(vdm: VDM, t: float) -> torch.Tensor:
    """The exact expectation over data and noise of the diffusion term at one time."""
    x, eps = cubature()
    return vdm.diffusion(x, vdm.noise_level(torch.full((len(x),), t, dtype=torch.float64)), eps).mean()


def quadrature() -> list[tuple[float, float]]:
    """Nodes and weights of a Gauss rule on [0, 1], in panels that narrow towards both ends, where schedules may be steep."""
    edges = np.concatenate([[0], 1 / (1 + np.exp(-np.linspace(-9, 9, 28))), [1]])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    panels = zip(edges[:-1], edges[1:])
    return [(a + (b - a) * (node + 1) / 2, (b - a) * weight / 2) for a, b in panels for node, weight in zip(nodes, weights)]


def tiny_unet(**kwargs) -> VDMUNet2DModel:
    return VDMUNet2DModel(sample_size=6, in_channels=2, block_channels=8, layers_per_side=1, norm_num_groups=4, **kwargs)


def tiny_vdm(**kwargs) -> VDM:
    return VDM(tiny_unet(), LearnedMonotoneSchedule(num_features=16), **({"num_levels": 16} | kwargs))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("num_timesteps", [1, 10, 1000])
def test_discrete_diffusion_term_of_gaussian_data(num_timesteps, prediction_type):
    vdm = gaussian_vdm(num_timesteps=num_timesteps, prediction_type=prediction_type)
    steps = [expected_diffusion(vdm, i / num_timesteps) for i in range(1, num_timesteps + 1)]
    expected = discrete_diffusion_loss(vdm.noise_schedule.chain(num_timesteps))
    torch.testing.assert_close(torch.stack(steps).mean(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("t", "step"), [(0, 1), (1e-9, 1), (1 / 7, 1), (0.143, 2), (2 / 7, 2), (0.2858, 3), (0.99, 7), (1, 7)])
def test_times_of_a_discrete_chain_are_rounded_up_to_its_steps(t, step, dtype):
    """t = 0, which stratified times contain, is of the first step as all of (0, 1/T] is."""
    vdm = gaussian_vdm(num_timesteps=7)
    x, eps = cubature()
    measured = vdm.diffusion(x, vdm.noise_level(torch.full((len(x),), t, dtype=dtype)), eps).mean()
    gamma_s, gamma_t = vdm.noise_schedule.chain(7)[step - 1 : step + 1]
    expected = 7 * discrete_diffusion_loss(torch.stack([gamma_s, gamma_t]))
    torch.testing.assert_close(measured, expected, rtol=1e-9 if dtype == torch.float64 else 1e-5, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("schedule", [LinearSchedule(-6.0, 4.0), LearnedMonotoneSchedule(-6.0, 4.0)])
def test_continuous_diffusion_term_of_gaussian_data(schedule, prediction_type):
    vdm = gaussian_vdm(schedule, prediction_type)
    integral = sum(weight * expected_diffusion(vdm, t) for t, weight in quadrature())
    expected = continuous_diffusion_loss(*schedule.chain(1))
    torch.testing.assert_close(integral, expected, rtol=1e-9, atol=0)


def test_discrete_bound_decreases_towards_the_continuous_one():
    schedule = CosineSchedule(gamma_min=-6.0, gamma_max=4.0).double()
    losses = [discrete_diffusion_loss(schedule.chain(T)) for T in (1, 2, 5, 10, 100, 1000)]
    measured = [
        torch.stack([expected_diffusion(gaussian_vdm(num_timesteps=T), i / T) for i in range(1, T + 1)]).mean()
        for T in (1, 2, 5, 10, 100)
    ]
    continuous = continuous_diffusion_loss(*schedule.chain(1))
    torch.testing.assert_close(measured, losses[:5], rtol=1e-9, atol=0)
    assert all(coarse > fine for coarse, fine in zip(losses, losses[1:] + [continuous]))
    assert losses[-1] - continuous < 0.01 * continuous


def test_discrete_bound_may_increase_unless_every_step_is_divided():
    """The chain of `docs/math.md`; the term as half the drop of SNR times the variance of x given z_t (equation 13)."""
    schedule = TableSchedule([-8, -7.5, 4.5, 5], [0, 0.49, 0.4999, 1])

    def expected(num_steps: int, covariance: torch.Tensor) -> float:
        snr = torch.exp(-schedule.chain(num_steps))
        precision = torch.linalg.inv(covariance) + snr[1:, None, None] * torch.eye(len(covariance)).double()
        return -0.5 * (snr.diff() * torch.linalg.inv(precision).diagonal(dim1=1, dim2=2).sum(1)).sum().item()

    def measured(num_steps: int) -> float:
        vdm = gaussian_vdm(schedule, num_timesteps=num_steps)
        return sum(expected_diffusion(vdm, i / num_steps).item() for i in range(1, num_steps + 1)) / num_steps

    losses = {num_steps: measured(num_steps) for num_steps in range(2, 7)}
    assert losses == pytest.approx({num_steps: expected(num_steps, COVARIANCE) for num_steps in losses}, rel=1e-9)
    assert losses[2] > losses[4] > losses[3] > losses[6] > losses[5]
    documented = [expected(num_steps, 0.1 * torch.eye(1).double()) for num_steps in losses]
    assert documented == pytest.approx([148.9, 124.6, 134.6, 112.4, 124.5], abs=0.05)


def test_prior_term_is_a_kl_divergence():
    vdm = gaussian_vdm()
    x, _ = cubature()
    alpha_sq, sigma_sq = torch.sigmoid(-vdm.noise_schedule.chain(1)[1]), torch.sigmoid(vdm.noise_schedule.chain(1)[1])
    eye = torch.eye(3, dtype=torch.float64)
    expected = kl_divergence(
        MultivariateNormal(alpha_sq.sqrt() * x.flatten(1), sigma_sq * eye), MultivariateNormal(torch.zeros(3).double(), eye)
    )
    torch.testing.assert_close(vdm.prior(x), expected, rtol=1e-9, atol=0)
    moments = alpha_sq * (COVARIANCE.trace() + MEAN @ MEAN) + 3 * (sigma_sq - sigma_sq.log() - 1)
    torch.testing.assert_close(vdm.prior(x).mean(), 0.5 * moments, rtol=1e-9, atol=0)


def dense_cross_entropy(images, eps, gamma_0, num_levels):
    """`-log p(x|z_0)` by its definition, a softmax over all levels."""
    alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma_0))), math.sqrt(1 / (1 + math.exp(-gamma_0)))
    x = 2 * (np.arange(num_levels) + 0.5) / num_levels - 1
    z_0 = alpha * x[images] + sigma * eps
    log_density = -0.5 * ((z_0[..., None] - alpha * x) / sigma) ** 2
    log_p = np.take_along_axis(log_density, images[..., None], -1)[..., 0] - np.logaddexp.reduce(log_density, -1)
    return -log_p.reshape(len(images), -1).sum(1)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("gamma_0", [-20.0, -13.25, -12.0, -8.0, -4.0, 2.0, 12.0])
def test_reconstruction_term_is_the_decoder_s_cross_entropy(num_levels, gamma_0, dtype, rtol):
    vdm = gaussian_vdm(LearnedLinearSchedule(gamma_0, gamma_0 + 5), num_levels=num_levels).to(dtype)
    images = torch.randint(0, num_levels, (8, 3, 4, 4))
    images[0], images[1] = 0, num_levels - 1
    eps = torch.randn(8, 3, 4, 4, dtype=dtype)
    eps[2] = min(0.5 / (num_levels / 2 * math.exp(gamma_0 / 2)), 5)  # half-way between two levels
    eps[3:5] *= 3

    nats = vdm.reconstruction(images, eps)
    expected = [dense_cross_entropy(images.numpy(), eps.double().numpy(), gamma_0 + d, num_levels) for d in (0, 1e-5, -1e-5)]
    torch.testing.assert_close(nats.double(), torch.from_numpy(expected[0]), rtol=rtol, atol=rtol / 10)
    gradient = torch.autograd.grad(nats.sum(), vdm.noise_schedule.gamma_0)[0].item()
    assert gradient == pytest.approx((expected[1] - expected[2]).sum() / 2e-5, rel=1e-4, abs=1e-4)


def test_prediction_types_of_one_denoiser_give_one_loss():
    x, eps = cubature()
    times = torch.linspace(0, 1, len(x), dtype=torch.float64)
    models = [gaussian_vdm(prediction_type=name) for name in PREDICTIONS]
    losses = [vdm.diffusion(x, vdm.noise_level(times), eps) for vdm in models]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-9, atol=1e-12)


def test_schedule_gradient_equals_finite_differences():
    vdm = gaussian_vdm(LearnedChainSchedule(num_steps=4, gamma_min=-6.0, gamma_max=4.0), num_timesteps=4)
    logits = torch.randn(4, dtype=torch.float64)
    vdm.noise_schedule.logits.data = logits.clone()

    def loss() -> torch.Tensor:
        return torch.stack([expected_diffusion(vdm, i / 4) for i in range(1, 5)]).mean()

    loss().backward()
    for i in range(4):
        numbers = []
        for change in (1e-5, -1e-5):
            vdm.noise_schedule.logits.data = logits + change * torch.eye(4, dtype=torch.float64)[i]
            numbers.append(discrete_diffusion_loss(vdm.noise_schedule.chain(4)).item())
        assert vdm.noise_schedule.logits.grad[i].item() == pytest.approx((numbers[0] - numbers[1]) / 2e-5, rel=1e-6)


def test_learning_a_chain_by_the_bound_lowers_it():
    schedule = LearnedChainSchedule(num_steps=5, gamma_min=-6.0, gamma_max=4.0).double()
    vdm = gaussian_vdm(schedule, num_timesteps=5)
    before = discrete_diffusion_loss(schedule.chain(5)).item()
    optimizer = torch.optim.Adam([schedule.logits], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        torch.stack([expected_diffusion(vdm, i / 5) for i in range(1, 6)]).mean().backward()
        optimizer.step()
    assert discrete_diffusion_loss(schedule.chain(5)).item() < 0.97 * before


def test_forward_adds_up_its_terms_in_bits():
    vdm = tiny_vdm()
    images = torch.randint(0, 16, (4, 2, 6, 6), dtype=torch.uint8)
    times, noise = torch.rand(4), torch.randn(2, 4, 2, 6, 6)
    loss = vdm(images, times=times, noise=noise)
    x = (images.float() + 0.5) / 8 - 1
    torch.testing.assert_close(loss.prior, vdm.prior(x))
    torch.testing.assert_close(loss.reconstruction, vdm.reconstruction(images, noise[0]))
    torch.testing.assert_close(loss.diffusion, vdm.eval().diffusion(x, vdm.noise_level(times), noise[1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss.bits_per_dim, (loss.prior + loss.reconstruction + loss.diffusion) / math.log(2) / (2 * 6 * 6)
    )


def test_untrained_bound_of_uniform_noise_exceeds_its_entropy():
    vdm = tiny_vdm().eval()
    images = torch.randint(0, 16, (64, 2, 6, 6), dtype=torch.uint8)
    with torch.no_grad():
        assert vdm(images).bits_per_dim.mean() > math.log2(16)


def test_generator_decides_every_draw():
    vdm = tiny_vdm().eval()
    images = torch.randint(0, 16, (4, 2, 6, 6), dtype=torch.uint8)
    first, second, third = (vdm(images, generator=torch.Generator().manual_seed(seed)).bits_per_dim for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_stratified_times_have_one_time_in_every_stratum():
    times = stratified_times(torch.tensor(0.37), 10)
    assert sorted((times * 10).floor().int().tolist()) == list(range(10))
    torch.testing.assert_close((times.sort().values * 10) % 1, torch.full((10,), 0.7), rtol=0, atol=1e-5)


def test_loss_is_float32_under_autocast():
    vdm = tiny_vdm().eval()
    images = torch.randint(0, 16, (4, 2, 6, 6), dtype=torch.uint8)
    draws = {"times": torch.rand(4), "noise": torch.randn(2, 4, 2, 6, 6)}
    with torch.autocast("cpu", torch.bfloat16):
        loss = vdm(images, **draws)
    assert {term.dtype for term in loss[:3]} == {torch.float32}
    torch.testing.assert_close(loss.prior, vdm(images, **draws).prior)
    torch.testing.assert_close(loss.reconstruction, vdm(images, **draws).reconstruction)


def unet_2d() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=1, sample_size=8,
        num_embeds_ada_norm=3,
    )  # fmt: skip


@pytest.mark.parametrize("denoiser", [unet_2d, dit])
def test_denoisers_of_diffusers_train_and_sample(denoiser):
    labels = torch.arange(8) % 3 if denoiser is dit else None
    vdm = VDM(denoiser(), LearnedMonotoneSchedule(gamma_min=-8.0, num_features=16), num_levels=17)
    images = torch.randint(0, 17, (8, 1, 8, 8)) // torch.tensor([1, 16]).repeat(4)[:, None, None, None]
    optimizer = torch.optim.Adam(vdm.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss = vdm(images, labels, generator=torch.Generator().manual_seed(step)).bits_per_dim.mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in vdm.parameters() if parameter.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    pipe = vdm.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    kwargs = {} if labels is None else {"class_labels": [0, 2], "guidance_scale": 2.0}
    assert pipe(2, num_inference_steps=2, output_type="pt", **kwargs).images.shape == (2, 1, 8, 8)


def test_pipeline_round_trip_keeps_the_loss():
    vdm = tiny_vdm(prediction_type="v_prediction").eval()
    torch.nn.init.normal_(vdm.unet.conv_out.weight)
    torch.nn.init.constant_(vdm.noise_schedule.gamma_0, -11.0)
    images = torch.randint(0, 16, (4, 2, 6, 6), dtype=torch.uint8)
    draws = {"times": torch.rand(4), "noise": torch.randn(2, 4, 2, 6, 6)}
    again = VDM.from_pipeline(vdm.to_pipeline())
    torch.testing.assert_close(again(images, **draws).bits_per_dim, vdm(images, **draws).bits_per_dim, rtol=1e-4, atol=0)


def test_save_and_load_keep_every_parameter(tmp_path):
    vdm = tiny_vdm()
    torch.nn.init.normal_(vdm.noise_schedule.logits)
    vdm.save_pretrained(tmp_path)
    again = VDM.from_pretrained(tmp_path)
    assert type(again.noise_schedule) is LearnedMonotoneSchedule
    for (name, value), (_, other) in zip(vdm.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(value, other), name
    assert isinstance(VDMPipeline.from_pretrained(tmp_path), VDMPipeline)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prediction_type": "flow"}, "`prediction_type` is 'flow', but it must be one of `sample`, `epsilon`"),
        ({"num_levels": 1}, "`num_levels` is 1"),
        ({"num_timesteps": 0}, "`num_timesteps` is 0"),
    ],
)
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_vdm(**kwargs)


def test_unsuitable_images_are_refused():
    with pytest.raises(TypeError, match="`images` must be integers"):
        tiny_vdm()(torch.rand(1, 2, 6, 6))
    with pytest.raises(ValueError, match=r"integers in \[0, 16\), but they run from 0 to 16"):
        tiny_vdm()(torch.arange(72).reshape(1, 2, 6, 6) % 17)
    with pytest.raises(ValueError, match="but they run from -1 to"):
        tiny_vdm()(torch.arange(-1, 71).reshape(1, 2, 6, 6) % 17 - 1)
    with pytest.raises(ValueError, match="but they run from 0 to 16"):
        tiny_vdm()((torch.arange(72).reshape(1, 2, 6, 6) % 17).to(torch.uint16))


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"times": torch.tensor([0.5, 1.5])}, r"`times` must lie in \[0, 1\], but run from 0.5 to 1.5"),
        ({"times": torch.tensor([0.5, torch.nan])}, r"`times` must lie in \[0, 1\]"),
        ({"times": torch.tensor([0, 999])}, r"`times` must be 2 numbers in \[0, 1\].* torch.int64 of shape \(2,\)"),
        ({"times": torch.rand(2, 1)}, r"`times` must be 2 numbers .* of shape \(2, 1\)"),
        ({"noise": torch.randn(2, 2, 6, 6)}, r"`noise` must have the shape \(2, 2, 2, 6, 6\), but has \(2, 2, 6, 6\)"),
    ],
)
def test_unsuitable_draws_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        tiny_vdm()(torch.zeros(2, 2, 6, 6, dtype=torch.uint8), **draws)


def test_conditioning_reaches_the_denoiser():
    vdm = tiny_vdm().eval()
    torch.nn.init.normal_(vdm.unet.conv_out.weight)
    torch.nn.init.normal_(vdm.unet.mid[0].resnet.conv2.weight)
    torch.nn.init.normal_(vdm.unet.mid[0].resnet.cond_proj.weight)
    images = torch.randint(0, 16, (4, 2, 6, 6))
    fixed = {"times": torch.rand(4), "noise": torch.randn(2, 4, 2, 6, 6)}
    without = vdm(images, **fixed).diffusion
    torch.testing.assert_close(vdm(images, {"conditioning": torch.zeros(4, 1)}, **fixed).diffusion, without)
    mixed = vdm(images, {"conditioning": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}, **fixed).diffusion
    assert [torch.allclose(a, b, rtol=1e-4) for a, b in zip(mixed, without)] == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("whole", [False, True], ids=["denoiser in half", "model in half"])
def test_in_half_precision_only_the_denoiser_rounds(dtype, whole):
    vdm = tiny_vdm().eval()
    torch.nn.init.normal_(vdm.unet.conv_out.weight, std=0.01)
    images = torch.randint(0, 16, (4, 2, 6, 6), dtype=torch.uint8)
    draws = {"times": torch.rand(4), "noise": torch.randn(2, 4, 2, 6, 6)}
    told = []
    vdm.unet.register_forward_pre_hook(
        lambda unet, args, keywords: told.append((*args, keywords["timestep"])), with_kwargs=True
    )
    expected, pipe = vdm(images, **draws), vdm.to_pipeline()
    gammas = vdm.noise_schedule(draws["times"])
    (vdm if whole else vdm.unet).to(dtype)
    for model in (vdm, VDM.from_pipeline(pipe).eval()):
        loss = model(images, **draws)
        tolerance = 0 if model is vdm else 1e-5
        assert {term.dtype for term in loss[:3]} == {torch.float32 if model is vdm else loss.prior.dtype}
        torch.testing.assert_close(loss.prior, expected.prior, rtol=tolerance, atol=0, check_dtype=False)
        torch.testing.assert_close(loss.reconstruction, expected.reconstruction, rtol=1e-5, atol=1e-5, check_dtype=False)
        torch.testing.assert_close(loss.diffusion.float(), expected.diffusion, rtol=0.02, atol=0)
        torch.testing.assert_close(model.noise_schedule(draws["times"]), gammas, rtol=0, atol=1e-4)
    for z_t, timestep in told[1:]:
        assert z_t.dtype == dtype and timestep.dtype == torch.float32
        torch.testing.assert_close(timestep, told[0][1], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((tiny_unet, "cosine"), TypeError, "`noise_schedule` is 'cosine', but must be a NoiseSchedule"),
        ((tiny_unet, LinearSchedule), TypeError, "`noise_schedule` is the class LinearSchedule, but must be a NoiseSchedule"),
        (("unet", LinearSchedule()), TypeError, "`unet` is 'unet', but must be a Module"),
        ((VDMUNet2DModel, LinearSchedule()), TypeError, "`unet` is the class VDMUNet2DModel"),
        ((tiny_unet, LinearSchedule(), 3), TypeError, "`prediction_type` is 3, but must be a str"),
        ((tiny_unet, LinearSchedule(), "epsilon", "256"), TypeError, "`num_levels` is '256', but must be a whole number"),
        ((tiny_unet, LinearSchedule(), "epsilon", 256, 2.5), TypeError, "`num_timesteps` is 2.5"),
        ((tiny_unet, LinearSchedule(), "epsilon", 256, None, 1000), TypeError, "`timestep_map` is 1000"),
    ],
)
def test_what_makes_no_model_is_refused(arguments, error, message):
    make = arguments[0]
    with pytest.raises(error, match=message):
        VDM(make() if make is tiny_unet else make, *arguments[1:])


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (
            torch.zeros(2, 2, 8, 8),
            None,
            ValueError,
            r"shape \(2, 2, 8, 8\), but this is a model of \(C, \*size\) = \(2, 6, 6\)",
        ),
        (torch.zeros(2, 6, 6, 2), None, ValueError, "but this is a model of"),
        (torch.zeros(2, 6, 6), None, ValueError, "but this is a model of"),
        (torch.zeros(0, 2, 6, 6), None, ValueError, "with at least one"),
        ([1, 2], None, TypeError, "`images` are a list, but must be a tensor"),
        (torch.zeros(2, 2, 6, 6), [0, 1], TypeError, "`class_labels` are a list, but must be a tensor"),
        (torch.zeros(2, 2, 6, 6), torch.tensor([0, 3]), ValueError, "run from 0 to 3, but must be from 0 to 2"),
        (torch.zeros(2, 2, 6, 6), torch.tensor([-1, 2]), ValueError, "run from -1 to 2"),
        (torch.zeros(2, 2, 6, 6), torch.tensor([0]), ValueError, "must be 2 whole numbers, one an image"),
        (torch.zeros(2, 2, 6, 6), torch.tensor([0.5, 1.0]), ValueError, "must be 2 whole numbers, .* torch.float32"),
    ],
)
def test_images_and_labels_of_another_model_are_refused(images, labels, error, message):
    vdm = VDM(tiny_unet(num_class_embeds=3), LinearSchedule(), num_levels=16)
    with pytest.raises(error, match=message):
        vdm(images.to(torch.uint8) if isinstance(images, torch.Tensor) else images, labels)
