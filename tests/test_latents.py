"""Models of real-valued data and of latents: the density of Gaussian data, diffusers' autoencoders, what is saved."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from gaussian_model import COVARIANCE, MEAN, cubature
from test_vdm import expected_diffusion, gaussian_vdm, quadrature
from tiny_pipelines import stable_diffusion, vae, vqvae
from torch.distributions import MultivariateNormal, Normal

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMPipeline, VDMUNet2DModel
from vdm_diffusers.autoencoders import decode, encode, load_autoencoder


def tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4, scaling_factor=2.0,
    )  # fmt: skip


def deep_compression() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), scaling_factor=0.4,
    )  # fmt: skip


AUTOENCODERS = {"AutoencoderKL": vae, "VQModel": vqvae, "AutoencoderTiny": tiny, "AutoencoderDC": deep_compression}


@pytest.fixture(params=AUTOENCODERS.values(), ids=AUTOENCODERS.keys())
def autoencoder(request):
    return request.param().eval()


def latent_vdm(autoencoder) -> VDM:
    channels = encode(autoencoder, torch.zeros(1, 3, 16, 16)).shape[1]
    unet = VDMUNet2DModel(8, channels, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    return VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=8), vae=autoencoder)


def test_bound_of_gaussian_data_is_their_entropy():
    """Between ends that hide nothing the bound of the optimal denoiser is exact."""
    vdm = gaussian_vdm(LinearSchedule(-25.0, 25.0), num_levels=None)
    x, eps = cubature()
    diffusion = sum(weight * expected_diffusion(vdm, t) for t, weight in quadrature())
    bound = vdm.prior(x).mean() + vdm.reconstruction(x, eps).mean() + diffusion
    assert bound.item() == pytest.approx(MultivariateNormal(MEAN, COVARIANCE).entropy().item(), rel=1e-6)


@pytest.mark.parametrize("gamma_0", [-12.0, 1.0])
def test_reconstruction_of_real_valued_data_is_a_gaussian_density(gamma_0):
    vdm = gaussian_vdm(LinearSchedule(gamma_0, 5.0), num_levels=None)
    x, eps = cubature()
    alpha, sigma = torch.sigmoid(-torch.tensor(gamma_0)).sqrt(), torch.sigmoid(torch.tensor(gamma_0)).sqrt()
    decoder = Normal((alpha * x + sigma * eps) / alpha, torch.tensor(gamma_0).double().exp().sqrt())
    expected = -decoder.log_prob(x).flatten(1).sum(1).mean()  # over cubature points: exact for a quadratic function
    torch.testing.assert_close(vdm.reconstruction(x, eps), expected.expand(len(x)), rtol=1e-6, atol=0)


def test_real_valued_data_are_reported_in_nats():
    vdm = gaussian_vdm(num_levels=None)
    loss = vdm(cubature()[0])
    torch.testing.assert_close(loss.per_dim, (loss.prior + loss.reconstruction + loss.diffusion) / 3)
    assert loss.unit.label == "nats/dim"
    with pytest.raises(ValueError, match="counts no bits"):
        _ = loss.bits_per_dim
    with pytest.raises(TypeError, match="a model of real-valued data, but `images` are torch.int64"):
        vdm(torch.zeros(2, 3, 1, 1, dtype=torch.int64))


def test_latents_are_those_of_stable_diffusion():
    pipe = stable_diffusion_pipeline()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = encode(pipe.vae, x, torch.Generator().manual_seed(0))
    expected = pipe.vae.encode(x).latent_dist.sample(torch.Generator().manual_seed(0)) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    call = {"prompt_embeds": torch.ones(2, 3, 8), "guidance_scale": 1.0, "latents": latents, "output_type": "np"}
    images = pipe(num_inference_steps=1, callback_on_step_end=lambda *_: {"latents": latents}, **call).images
    torch.testing.assert_close((decode(pipe.vae, latents) + 1) / 2, torch.from_numpy(images).permute(0, 3, 1, 2))


def stable_diffusion_pipeline():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = stable_diffusion(StableDiffusionPipeline, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_latents_are_shifted_and_scaled_as_configured():
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    plain, shifted, by_channel = vae(), vae(), vae()
    shifted.load_state_dict(plain.state_dict()), by_channel.load_state_dict(plain.state_dict())
    plain.register_to_config(scaling_factor=1.0)
    shifted.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    by_channel.register_to_config(scaling_factor=0.5, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    latents = [encode(model, x, torch.Generator().manual_seed(0)) for model in (plain, shifted, by_channel)]
    torch.testing.assert_close(latents[1], (latents[0] - 0.25) * 0.5)
    torch.testing.assert_close(latents[2][:, 3], (latents[0][:, 3] - 0.4) * 0.5 / 4)
    for model, z in zip((shifted, by_channel), latents[1:]):
        torch.testing.assert_close(decode(model, z), decode(plain, latents[0]), rtol=1e-4, atol=1e-5)


def test_any_autoencoder_serves(autoencoder, tmp_path):
    vdm = latent_vdm(autoencoder)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    loss = vdm(images)
    loss.objective.mean().backward()
    assert all(parameter.grad is not None for parameter in vdm.parameters())
    assert loss.num_dims == vdm.unet.config.in_channels * 64
    assert not any(name.startswith("vae") for name in vdm.state_dict())
    vdm.save_pretrained(tmp_path)
    again = VDM.from_pretrained(tmp_path).eval()
    fixed = {"times": torch.rand(4), "noise": torch.randn(2, 4, loss.num_dims // 64, 8, 8)}
    first, second = (
        model.eval()(images, **fixed, generator=torch.Generator().manual_seed(0)).per_dim for model in (vdm, again)
    )
    torch.testing.assert_close(second, first)
    pipe = VDMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(2, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 3, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1


def test_latents_and_images_give_the_same_bound():
    vdm = latent_vdm(tiny().eval()).eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    fixed = {"times": torch.rand(4), "noise": torch.randn(2, 4, 4, 8, 8)}
    torch.testing.assert_close(vdm(vdm.scale(images), **fixed).nats, vdm(images, **fixed).nats)


def test_an_autoencoder_is_found_by_itself_and_in_a_pipeline(tmp_path):
    vae().save_pretrained(tmp_path / "alone")
    latent_vdm(vae()).save_pretrained(tmp_path / "pipeline")
    for name in ("alone", "pipeline"):
        found = load_autoencoder(tmp_path / name)
        assert isinstance(found, AutoencoderKL) and not any(parameter.requires_grad for parameter in found.parameters())


def test_what_is_no_autoencoder_is_named(tmp_path):
    with pytest.raises(ValueError, match="`vae_model_name_or_path` .* could not be loaded"):
        load_autoencoder(tmp_path)
    VDMUNet2DModel(8, 3, block_channels=8, layers_per_side=1, norm_num_groups=4).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="is a VDMUNet2DModel, no autoencoder"):
        load_autoencoder(tmp_path / "unet")


def test_an_autoencoder_that_overflows_in_float16_is_upcast_and_put_back():
    half, exact, seen = vae().half(), vae(), []
    exact.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    for layer in (half.encoder.conv_in, half.decoder.conv_in):
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    x, z = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    expected = encode(exact, x, torch.Generator().manual_seed(0)), decode(exact, z)
    assert torch.equal(encode(half, x, torch.Generator().manual_seed(0)), expected[0])
    assert torch.equal(decode(half, z), expected[1])
    assert seen == [torch.float32] * 2 and half.dtype == torch.float16
    half.register_to_config(force_upcast=False)
    decode(half, z)
    assert seen[-1] == torch.float16


def test_pictures_of_an_autoencoder_that_are_not_finite_are_refused():
    pipe = latent_vdm(vae().eval()).to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    torch.nn.init.constant_(pipe.vae.decoder.conv_out.bias, float("inf"))
    pipe.vae.decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="what AutoencoderKL decodes in torch.float32 is not finite"):
        pipe(1, num_inference_steps=2)


def test_images_of_other_channels_than_the_autoencoder_s_are_refused():
    with pytest.raises(ValueError, match=r"the autoencoder takes \(B, 3, H, W\)"):
        latent_vdm(vae().eval())(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"and so latents of \(4, 4, 4\), but this is a model of"):
        latent_vdm(vae().eval())(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
