"""VDMPipeline: the same images after saving, in another process and by every door; guidance, callbacks, decoding."""

import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny_pipelines import unet

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.scheduling.identity import check_scheduler


def tiny_pipeline(**kwargs) -> VDMPipeline:
    """A pipeline with random weights and a schedule moved away from its initial state."""
    torch.manual_seed(0)
    unet = VDMUNet2DModel(
        **({"sample_size": (6, 8), "in_channels": 3, "block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4} | kwargs)
    )
    schedule = LearnedMonotoneSchedule(num_features=16)
    for parameter in (*unet.parameters(), *schedule.parameters()):
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim else None
    torch.nn.init.constant_(schedule.gamma_0, -9.0)
    pipe = VDM(unet, schedule, num_levels=16).to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe: DiffusionPipeline, **kwargs) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 5, "output_type": "pt"} | kwargs
    return pipe(2, **kwargs).images


def test_saved_pipeline_gives_the_same_images_in_another_process(tmp_path):
    pipe = tiny_pipeline()
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    images, gammas = images_of(pipe), pipe.scheduler.noise_schedule(times)
    pipe.save_pretrained(tmp_path / "model")
    script = """
        import sys, torch
        from vdm_diffusers import VDMPipeline
        pipe = VDMPipeline.from_pretrained(sys.argv[1] + "/model")
        generator = torch.Generator().manual_seed(3)
        images = pipe(2, generator=generator, num_inference_steps=5, output_type="pt").images
        gammas = pipe.scheduler.noise_schedule(torch.linspace(0, 1, 101, dtype=torch.float64))
        torch.save((images, gammas), sys.argv[1] + "/result.pt")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True, capture_output=True)
    other_images, other_gammas = torch.load(tmp_path / "result.pt")
    assert torch.equal(images, other_images)
    torch.testing.assert_close(other_gammas, gammas, rtol=0, atol=1e-6)


def test_generic_loader_finds_the_class(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is VDMPipeline
    assert again.config.num_levels == 16
    assert torch.equal(images_of(again), images_of(pipe))


def test_output_types_show_the_same_levels():
    pipe = tiny_pipeline()
    tensor = images_of(pipe)
    assert tensor.shape == (2, 3, 6, 8)
    levels = tensor * 15
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    array = images_of(pipe, output_type="np")
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    pictures = images_of(pipe, output_type="pil")
    np.testing.assert_array_equal(np.stack(pictures), (array * 255).round().astype(np.uint8))


def test_decoder_is_the_likeliest_level():
    pipe = tiny_pipeline()
    z_0 = images_of(pipe, output_type="latent")
    gamma_0 = pipe.scheduler.gamma_0
    alpha, sigma = torch.sigmoid(-gamma_0).sqrt(), torch.sigmoid(gamma_0).sqrt()
    levels = 2 * (torch.arange(16) + 0.5) / 16 - 1
    log_p = torch.distributions.Normal(alpha * levels, sigma).log_prob(z_0[..., None])
    torch.testing.assert_close(images_of(pipe) * 15, log_p.argmax(-1).float())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("size", [(6, 8), (1, 8), (8, 1), (1, 1), (5, 7)])
def test_pictures_have_the_size_and_mode_of_the_images(channels, mode, size):
    pictures = images_of(tiny_pipeline(in_channels=channels, sample_size=size), output_type="pil")
    assert [(picture.mode, picture.height, picture.width) for picture in pictures] == [(mode, *size)] * 2


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_inference_steps": np.int64(5)},
        {"num_inference_steps": torch.tensor(5), "guidance_scale": torch.tensor(1.5), "eta": torch.tensor(0.5)},
        {"guidance_scale": np.float32(1.5), "eta": np.float32(0.5)},
        *({"class_labels": label} for label in (torch.tensor(1), np.array(1), np.int64(1), (1, 1), np.array([1, 1]))),
    ],
)
def test_numbers_may_be_those_of_numpy_and_tensors_of_one(kwargs):
    pipe, plain = tiny_pipeline(num_class_embeds=4), {"guidance_scale": 1.5, "eta": 0.5, "class_labels": 1}
    assert torch.equal(images_of(pipe, **plain | kwargs), images_of(pipe, **plain))


def test_pipelines_of_numbers_of_numpy_are_saved(tmp_path):
    VDMPipeline(unet(), VDMScheduler(), num_levels=np.int64(16)).save_pretrained(tmp_path)
    assert VDMPipeline.from_pretrained(tmp_path).config.num_levels == 16


def test_latents_and_generators_decide_the_images():
    pipe = tiny_pipeline()
    latents = torch.randn(2, 3, 6, 8)
    first, second = (images_of(pipe, latents=latents, eta=0.0, generator=None) for _ in range(2))
    assert torch.equal(first, second)
    kwargs = {"num_inference_steps": 1, "output_type": "latent"}
    both = images_of(pipe, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)], **kwargs)
    alone = pipe(1, generator=torch.Generator().manual_seed(2), **kwargs).images
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_guidance_extrapolates_from_the_null_class():
    pipe = tiny_pipeline(num_class_embeds=4)
    labels = torch.tensor([0, 2])
    latents = torch.randn(2, 3, 6, 8)
    pipe.scheduler.set_timesteps(1)
    t = pipe.scheduler.timesteps[0]
    pipe.unet.eval()
    with torch.no_grad():
        conditional = pipe.unet(latents, t, class_labels=labels).sample
        unconditional = pipe.unet(latents, t, class_labels=torch.tensor([3, 3])).sample
    guided = unconditional + 2.5 * (conditional - unconditional)
    expected = pipe.scheduler.step(guided, t, latents, eta=0.0).prev_sample
    images = pipe(
        class_labels=[0, 2], guidance_scale=2.5, latents=latents, num_inference_steps=1, eta=0.0, output_type="latent"
    ).images
    torch.testing.assert_close(images, expected)
    kwargs = {"num_inference_steps": 1, "output_type": "latent"}
    null = images_of(pipe, class_labels=[3, 3], **kwargs)
    unguided = images_of(pipe, class_labels=[0, 2], guidance_scale=0.0, **kwargs)
    torch.testing.assert_close(unguided, null, rtol=1e-3, atol=1e-3)


def test_callback_changes_the_guidance():
    """Guidance that is switched off after the first of two steps no longer doubles the batch."""
    pipe = tiny_pipeline(num_class_embeds=4)
    batch_sizes = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: batch_sizes.append(len(args[0])))

    def switch_off(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0
        return tensors

    images_of(pipe, class_labels=[0, 2], guidance_scale=2.0, num_inference_steps=2, callback_on_step_end=switch_off)
    assert batch_sizes == [4, 2] and pipe.guidance_scale == 1.0


def test_callback_sees_and_changes_the_latents():
    pipe = tiny_pipeline()
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = images_of(pipe, output_type="latent", callback_on_step_end=callback)
    assert images.abs().max() == 0
    assert seen == [(i, float(t)) for i, t in enumerate(pipe.scheduler.timesteps)]


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_stock_samplers_run_and_agree_with_many_steps(scheduler):
    """Both integrate the same probability-flow ODE, so from the same noise they end near each other."""
    pipe = tiny_pipeline()
    latents = torch.randn(2, 3, 6, 8)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter *= 0.3
    kwargs = {"latents": latents, "num_inference_steps": 200, "eta": 0.0, "output_type": "latent", "generator": None}
    expected = images_of(pipe, **kwargs) / torch.sigmoid(-pipe.scheduler.gamma_0).sqrt()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(images_of(pipe, **kwargs), expected.float(), rtol=0.05, atol=0.05)


def test_half_precision_denoiser_keeps_float32_latents():
    pipe = tiny_pipeline().to(torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    latents = images_of(pipe, output_type="latent")
    assert latents.dtype == torch.float32 and latents.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_type": "jpeg"}, "`output_type` is 'jpeg'"),
        ({"latents": torch.zeros(2, 3, 6, 6)}, "`latents` have the shape"),
        ({"latents": torch.zeros(3, 3, 6, 8)}, "number of images is contradictory"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 images"),
        ({"class_labels": [0, 1]}, "this denoiser is unconditional"),
        ({"class_labels": [0, 1], "guidance_scale": 2.0}, "this denoiser is unconditional"),
        ({"guidance_scale": 3.0}, "`guidance_scale` is 3.0, which needs `class_labels`"),
        ({"prompt": "a prompt"}, "takes no prompt such as 'a prompt'"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "offers"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but must be from 1"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` is nan"),
        ({"eta": 2.0}, "`eta` is 2.0, but must be from 0 to 1"),
        ({"timesteps": [1.0, 2.0]}, "`timesteps` must decrease"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        images_of(tiny_pipeline(), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 2.0}, "`batch_size` is 2.0, but must be a whole number"),
        ({"generator": 0}, r"`generator` is 0, but must be a `torch.Generator`.*manual_seed\(0\)"),
        ({"batch_size": 2, "generator": [1, 2]}, r"`generator` is \[1, 2\], but must be"),
        ({"num_inference_steps": 1.5}, "`num_inference_steps` is 1.5, but must be a whole number"),
        ({"num_inference_steps": "10"}, "`num_inference_steps` is '10'"),
        ({"num_inference_steps": True}, "`num_inference_steps` is True"),
        ({"latents": [0.0]}, "`latents` are a list, but must be a tensor"),
        ({"latents": torch.zeros(1, 3, 6, 8, dtype=torch.int64)}, "`latents` are torch.int64, but must be floating-point"),
        ({"class_labels": torch.tensor([1.0])}, r"`class_labels` are tensor\(\[1.\]\), but must be whole numbers"),
        ({"timesteps": "abc"}, "`timesteps` are a str"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` is a int, but must be a function"),
    ],
)
def test_arguments_of_another_type_are_refused(kwargs, message):
    with pytest.raises(TypeError, match=message):
        tiny_pipeline(num_class_embeds=4)(**({"class_labels": 0} | kwargs))


@pytest.mark.parametrize(
    ("unet", "scheduler", "message"),
    [
        ("path", VDMScheduler(), "`unet` is 'path', but must be a Module"),
        (VDMUNet2DModel, VDMScheduler(), "`unet` is the class VDMUNet2DModel"),
        (torch.nn.Identity(), VDMScheduler, "`scheduler` is the class VDMScheduler, but must be a SchedulerMixin"),
        (torch.nn.Identity(), LearnedMonotoneSchedule(num_features=4), "`scheduler` is a LearnedMonotoneSchedule"),
        (torch.nn.Identity(), VDMScheduler(), "`id2label` is a list, but must be a dict or None"),
    ],
)
def test_components_of_another_kind_are_refused(unet, scheduler, message):
    with pytest.raises(TypeError, match=message):
        VDMPipeline(unet, scheduler, id2label=["dog", "cat"])


def test_a_callback_stops_the_call_or_returns_nothing():
    pipe, steps = tiny_pipeline(), []

    def callback(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1

    assert images_of(pipe, callback_on_step_end=callback).shape == (2, 3, 6, 8)
    assert steps == [0, 1] and pipe.interrupt
    assert torch.equal(images_of(pipe, callback_on_step_end=lambda *_: None), images_of(pipe))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ("latents", TypeError, "`callback_on_step_end` returned a str, but must return a dictionary or None"),
        ({"latents": np.zeros((2, 3, 6, 8))}, TypeError, "`latents` are a ndarray, but must be a tensor"),
        ({"latents": torch.zeros(2, 3, 6, 4)}, ValueError, "`latents` have the shape"),
        ({"latents": torch.full((2, 3, 6, 8), torch.nan)}, FloatingPointError, "not finite at step 1 of 5"),
    ],
)
def test_what_a_callback_returns_is_checked(returned, error, message):
    with pytest.raises(error, match=message):
        images_of(tiny_pipeline(), callback_on_step_end=lambda *_: returned, callback_on_step_end_tensor_inputs=None)


def test_a_pipeline_is_made_from_another_one():
    pipe = tiny_pipeline(num_class_embeds=4)
    again = VDMPipeline.from_pipe(pipe)
    assert again.unet is pipe.unet and again.scheduler is pipe.scheduler and again.config.num_levels == 16
    assert again.config.trained_for == pipe.config.trained_for
    plain = DDPMPipeline(unet(), DDPMScheduler())
    assert VDMPipeline.from_pipe(plain).unet is plain.unet
    assert VDMPipeline.from_pipe(plain, num_levels=8).config.num_levels == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_schedule_and_what_is_not_the_denoiser_s(dtype, tmp_path):
    pipe, levels = smooth_pipeline().to(torch.float32), torch.randint(0, 16, (2, 3, 6, 8))
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = pipe.log_likelihood(levels, tolerance=0.1, generator=torch.Generator().manual_seed(1))
    gammas = pipe.scheduler.noise_schedule(times)
    pipe.save_pretrained(tmp_path / "exact")
    pipe.to(dtype).save_pretrained(tmp_path / "half")
    loaded = VDMPipeline.from_pretrained(tmp_path / "exact", torch_dtype=dtype), VDMPipeline.from_pretrained(tmp_path / "half")
    for half in (pipe, *loaded):
        assert torch.equal(half.scheduler.noise_schedule(times), gammas)
        nats = half.log_likelihood(levels, tolerance=0.1, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(nats, expected, rtol=0.02, atol=0)
        decoded = half.decode(half.encode(levels, tolerance=0.1), tolerance=0.1, output_type="pt")
        assert (decoded * 15 - levels).abs().mean() < 0.1


def test_images_that_are_not_finite_are_an_error_that_says_where():
    pipe, calls = tiny_pipeline(), []

    def overflow(unet, args, output):
        calls.append(args)
        return (output[0] * float("inf"),) if len(calls) == 3 else output

    pipe.unet.register_forward_hook(overflow)
    with pytest.raises(
        FloatingPointError, match="denoiser's output is not finite at step 2 of 5, .* in torch.float32"
    ) as error:
        images_of(pipe)
    assert f"timestep {pipe.scheduler.timesteps[2]:.6g}," in str(error.value)
    with pytest.raises(FloatingPointError, match="latents are not finite at the end"):
        images_of(
            pipe, callback_on_step_end=lambda *args: {"latents": args[3]["latents"] * float("nan")}, num_inference_steps=1
        )


STRANGERS = {
    "another chain": DDPMScheduler,
    "another prediction": lambda: DDIMScheduler.from_config(tiny_pipeline().scheduler.config, prediction_type="v_prediction"),
    "another length": lambda: DDPMScheduler(num_train_timesteps=100),
    "EDM": EDMEulerScheduler,
    "flow matching": FlowMatchEulerDiscreteScheduler,
    "a chain of its own": IPNDMScheduler,
}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS)
def test_schedulers_that_were_not_made_for_the_model_are_refused(make, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    pipe.scheduler = make()
    for stranger in (pipe, VDMPipeline.from_pretrained(tmp_path, scheduler=make())):
        with pytest.raises(ValueError, match="was not made for the model|is no scheduler of a variance-preserving"):
            images_of(stranger)
        with pytest.raises(ValueError, match="was not made for the model|is no scheduler of a variance-preserving"):
            VDM.from_pipeline(stranger)


@pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_schedulers_made_for_the_model_are_taken_whatever_their_options(cls):
    pipe = tiny_pipeline()
    options = {} if cls is DDPMScheduler else {"use_karras_sigmas": True}
    pipe.scheduler = cls.from_config(pipe.scheduler.config, timestep_spacing="trailing", **options)
    check_scheduler(pipe.scheduler, pipe.config.trained_for)
    check_scheduler(VDMScheduler.from_config(pipe.scheduler.config), pipe.config.trained_for)


@pytest.mark.parametrize("gammas", [None, [0.0], [0.0, 1.0, 2.0, float("nan")], ["0", "1", "2", "3"]])
def test_a_description_of_the_scheduler_that_is_none_is_refused(gammas):
    pipe = tiny_pipeline()
    description = dict(pipe.config.trained_for) | {"gammas": gammas}
    with pytest.raises(ValueError, match="`trained_for` must be what a pipeline wrote"):
        VDMPipeline(pipe.unet, pipe.scheduler, trained_for=description)


def smooth_pipeline(**kwargs) -> VDMPipeline:
    """A tiny pipeline whose flow is gentle, in float64."""
    pipe = tiny_pipeline(fourier_powers=(), **kwargs)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter *= 0.3
    return pipe.to(torch.float64)


def test_encoding_and_decoding_by_the_ode_is_a_round_trip():
    pipe = smooth_pipeline()
    levels = torch.randint(0, 16, (3, 3, 6, 8))
    latents = pipe.encode(levels, tolerance=1e-6)
    assert latents.shape == levels.shape and latents.dtype == torch.float32
    torch.testing.assert_close(pipe.decode(latents, tolerance=1e-6, output_type="pt") * 15, levels.double(), check_dtype=False)
    pictures = pipe.decode(latents)
    torch.testing.assert_close(pipe.encode(pictures, tolerance=1e-6), latents)
    noise = torch.randn(3, 3, 6, 8)
    assert (pipe.encode(pipe.decode(noise)) - noise).abs().mean() < 1  # within a bin, decoding forgets where


def test_decoding_is_the_limit_of_deterministic_sampling():
    pipe = smooth_pipeline()
    latents = torch.randn(2, 3, 6, 8)
    sampled = images_of(pipe, latents=latents, eta=0.0, num_inference_steps=1000, generator=None)
    decoded = pipe.decode(latents, output_type="pt")
    assert ((sampled - decoded).abs() * 15 < 0.5).float().mean() > 0.98


def test_log_likelihood_takes_what_the_pipeline_makes():
    pipe = smooth_pipeline()
    images = pipe(batch_size=4, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    nats = pipe.log_likelihood(images, tolerance=1e-3, generator=torch.Generator().manual_seed(1))
    assert nats.shape == (4,) and nats.isfinite().all()
    array = np.stack([np.asarray(image) for image in images])
    levels = torch.from_numpy((array / 17).round().astype(np.uint8))  # 16 levels, 17 apart
    for same in (levels.permute(0, 3, 1, 2), levels.numpy()):
        torch.testing.assert_close(pipe.log_likelihood(same, tolerance=1e-3, generator=torch.Generator().manual_seed(1)), nats)
    alone = pipe.log_likelihood(images[0], generator=[torch.Generator().manual_seed(5)])
    both = pipe.log_likelihood(images[:2], generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    torch.testing.assert_close(alone, both[:1])


def test_log_likelihood_is_no_less_than_the_bound():
    """Up to the noise of both; the pipeline's bound is that of `VDM.from_pipeline`."""
    pipe = smooth_pipeline()
    images = torch.randint(0, 16, (40, 3, 6, 8))
    nats = pipe.log_likelihood(images, tolerance=1e-3)
    with torch.no_grad():
        bound = torch.stack([-VDM.from_pipeline(pipe)(images).nats for _ in range(20)])
    error = bound.mean(0).std() / 40**0.5
    assert nats.mean() > bound.mean() - 3 * error


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 6, 8), TypeError, "must be integers"),
        (torch.full((1, 3, 6, 8), 16), ValueError, r"run from 16 to 16"),
        (torch.zeros(1, 1, 6, 8, dtype=torch.uint8), ValueError, r"the shape \(1, 6, 8\), but this model's are \(3, 6, 8\)"),
        (PIL.Image.new("RGB", (8, 6), (17, 18, 34)), ValueError, "have other levels than the 16"),
        (PIL.Image.new("YCbCr", (8, 6)), ValueError, "PIL mode 'YCbCr'"),
        (PIL.Image.new("P", (8, 6)), ValueError, "PIL mode 'P'"),
        (PIL.Image.new("1", (8, 6)), ValueError, "PIL mode '1', which holds 2 levels"),
        ([PIL.Image.new("RGB", (8, 6)), PIL.Image.new("RGB", (6, 6))], ValueError, "one size and mode"),
        ([np.zeros((6, 8, 3), dtype=np.uint8)], ValueError, "must hold PIL images"),
        ([], ValueError, "at least one"),
        (np.zeros((6, 8), dtype=np.uint8), ValueError, r"must be integers, \(B, H, W, C\)"),
    ],
)
def test_images_without_a_likelihood_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        tiny_pipeline().log_likelihood(images)


def test_pictures_of_more_levels_than_they_hold_are_refused():
    pipe = tiny_pipeline()
    pipe.register_to_config(num_levels=1024)
    with pytest.raises(ValueError, match="PIL images hold 256 levels, but this model has 1024"):
        pipe.encode(PIL.Image.new("RGB", (8, 6)))


def test_arrays_of_16_bits_are_those_of_8():
    pipe, array = smooth_pipeline(), np.full((1, 6, 8, 3), 9, dtype=np.uint8)
    assert torch.equal(pipe.encode(array.astype(np.uint16), tolerance=0.1), pipe.encode(array, tolerance=0.1))


@pytest.mark.parametrize("labels", [[9], [-1]])
def test_labels_that_the_denoiser_does_not_know_are_refused(labels):
    pipe = tiny_pipeline(num_class_embeds=4)
    with pytest.raises(ValueError, match="must be from 0 to 3, the last for no class"):
        pipe(class_labels=labels)
    with pytest.raises(ValueError, match="must be from 0 to 3, the last for no class"):
        pipe.encode(torch.zeros(1, 3, 6, 8, dtype=torch.uint8), labels)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_type": "latent"}, "`output_type` is 'latent', but must be one of 'pil', 'np', 'pt'"),
        ({"latents": torch.zeros(1, 3, 6, 6)}, "`latents` have the shape"),
        ({"tolerance": 0.0}, "`tolerance` is 0.0"),
        ({"tolerance": -1.0}, "`tolerance` is -1.0"),
    ],
)
def test_what_cannot_be_decoded_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().decode(**({"latents": torch.zeros(1, 3, 6, 8)} | kwargs))


def test_likelihoods_need_one_generator_an_image():
    with pytest.raises(ValueError, match="2 generators for 1 images"):
        tiny_pipeline().log_likelihood(torch.zeros(1, 3, 6, 8, dtype=torch.uint8), generator=[torch.Generator()] * 2)


def test_schedulers_of_other_processes_are_refused():
    pipe = tiny_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler is no scheduler of a variance-preserving"):
        pipe()
