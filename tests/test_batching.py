"""Many images: given to a model in parts, they come out the same; what a part may take is what PyTorch allocates."""

import math
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.models import modeling_utils
from test_prompts import pipeline
from tiny_pipelines import conditional_unet, unet, vae
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMUNet2DModel, batching, memory
from vdm_diffusers.denoisers import predict
from vdm_diffusers.few_steps import error_profile
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood


NUMBER = 5
IMAGES = np.random.default_rng(0).integers(16, size=(NUMBER, 6, 8, 1))


def of_classes() -> VDMPipeline:
    torch.manual_seed(0)
    options = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "num_class_embeds": 4, "fourier_powers": ()}
    pipe = VDM(VDMUNet2DModel((6, 8), 1, **options), LinearSchedule(-6.0, 4.0), num_levels=16).to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sizes_seen(module: nn.Module) -> list[int]:
    """The numbers of samples that it is called with from here on."""
    seen = []

    def see(_, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].device.type != "meta":
            seen.append(len(args[0]))

    module.register_forward_pre_hook(see)
    return seen


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(NUMBER)]


CLASSES = {"class_labels": [0, 2, 1, 0, 2]}
CALLS = {
    "classes": (of_classes, None, CLASSES),
    "guidance": (of_classes, None, CLASSES | {"guidance_scale": 2.0}),
    "generators": (of_classes, None, CLASSES | {"generator": generators}),
    "begun at images": (of_classes, None, CLASSES | {"image": IMAGES, "strength": 0.7}),
    "mask": (of_classes, None, CLASSES | {"image": IMAGES, "mask_image": np.eye(6, 8)}),
    "text": (pipeline, None, {"prompt": ["red", "a cat", "", "dog", "a red cat"], "guidance_scale": 3.0}),
    "DDPM": (of_classes, DDPMScheduler, CLASSES),
    "Euler": (of_classes, EulerDiscreteScheduler, CLASSES),
    "Heun": (of_classes, HeunDiscreteScheduler, CLASSES),
    "DPM-Solver++": (of_classes, DPMSolverMultistepScheduler, CLASSES),
}


@pytest.mark.parametrize(("build", "scheduler", "call"), CALLS.values(), ids=CALLS)
def test_images_are_the_same_in_parts(build, scheduler, call):
    pipe = build()
    pipe.unet.double()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    latents = torch.randn(NUMBER, *pipe._sample_shape(), dtype=torch.float64)
    seen, results = sizes_seen(pipe.unet), []
    for most in (2 * NUMBER, 3):
        options = {"generator": torch.Generator().manual_seed(1)} | call
        if callable(options["generator"]):
            options["generator"] = options["generator"]()
        seen.clear()
        results.append(
            pipe(latents=latents, num_inference_steps=3, output_type="latent", max_batch_size=most, **options).images
        )
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    halves = 2 if "guidance_scale" in call else 1
    assert set(seen) == {1: {2, 3}, 2: {2, 3}}[halves] and sum(seen) % (halves * NUMBER) == 0


@pytest.mark.parametrize(("number", "sizes"), [(12, [12]), (13, [7, 6]), (25, [9, 8, 8]), (1024, [12, 11])])
def test_parts_have_one_size_or_two(number, sizes):
    seen = []
    function = batching.InBatches(lambda rows, condition: seen.append(len(rows)) or rows + condition["a"]["b"], 12)
    rows = torch.arange(number)
    assert torch.equal(function(rows, {"a": {"b": rows}}), 2 * rows)
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(sizes)) and max(seen) <= 12
    assert len(seen) == math.ceil(number / 12)


def test_latents_are_decoded_in_parts():
    pipe = pipeline(vae=vae())
    seen = sizes_seen(pipe.vae.decoder)
    call = {"num_inference_steps": 1, "output_type": "pt"}
    whole, parts = (
        pipe(NUMBER, generator=torch.Generator().manual_seed(0), max_batch_size=most, **call).images for most in (5, 2)
    )
    assert seen == [5, 2, 2, 1]
    torch.testing.assert_close(parts, whole)


def no_memory_for_more_than(number: int, module: nn.Module, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
    def allocate(_, args):
        if len(args[0]) > number:
            raise error("CUDA out of memory. Tried to allocate 20.00 MiB.")

    module.register_forward_pre_hook(allocate)


def test_out_of_memory_fewer_are_tried_and_the_images_stay_the_same():
    pipe = of_classes()
    call = {"num_inference_steps": 3, "output_type": "latent"} | CLASSES
    expected = pipe(generator=torch.Generator().manual_seed(0), **call).images
    seen = sizes_seen(pipe.unet)
    no_memory_for_more_than(2, pipe.unet)
    torch.testing.assert_close(pipe(generator=torch.Generator().manual_seed(0), **call).images, expected)
    assert seen == [5] + [2, 2, 1] * 3
    no_memory_for_more_than(0, pipe.unet)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        pipe(**call)


def test_other_errors_are_raised_at_once():
    calls = []
    function = batching.InBatches(lambda rows: calls.append(rows) or torch.ones(2) @ torch.ones(3), 4)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        function(torch.zeros(4))
    assert len(calls) == 1


def items() -> list[dict[str, torch.Tensor]]:
    return [{"images": image, "class_labels": torch.tensor(1)} for image in torch.from_numpy(IMAGES).movedim(3, 1)]


def test_a_bound_goes_on_when_memory_runs_out():
    pipe = of_classes()
    bounds = [variational_bound(VDM.from_pipeline(pipe), items(), batch_size=5)]
    seen = sizes_seen(pipe.unet)
    no_memory_for_more_than(2, pipe.unet)
    bounds.append(variational_bound(VDM.from_pipeline(pipe), items(), batch_size=5))
    assert seen == [5, 2, 2, 1]
    assert bounds[0].bits_per_dim == pytest.approx(bounds[1].bits_per_dim, abs=1e-6)


EVALUATORS = {
    "bound": lambda pipe, **options: variational_bound(VDM.from_pipeline(pipe), items(), **options),
    "ODE": lambda pipe, **options: ode_likelihood(VDM.from_pipeline(pipe), items(), tolerance=0.1, **options),
    "DDPM's bound": lambda pipe, **options: ddpm_bound(
        DDPM(pipe.unet, torch.linspace(-6.0, 4.0, 5), num_levels=16), items(), num_indices=1, **options
    ),
    "errors": lambda pipe, **options: error_profile(
        VDM.from_pipeline(pipe), items(), torch.tensor([-1.0, 1.0]), num_draws=5, **options
    ),
}


@pytest.mark.parametrize("evaluate", EVALUATORS.values(), ids=EVALUATORS)
def test_images_are_evaluated_at_once_as_memory_allows(evaluate, monkeypatch):
    pipe = of_classes()
    seen = sizes_seen(pipe.unet)
    evaluate(pipe, batch_size=None)
    assert set(seen) == {5}
    seen.clear()
    monkeypatch.setattr(batching, "free_bytes", lambda device: 0)
    evaluate(pipe, batch_size=None)
    assert set(seen) == {1}


def test_the_encoder_of_a_latent_model_counts(monkeypatch):
    torch.manual_seed(0)
    vdm = VDM(conditional_unet(), LinearSchedule(-6.0, 4.0), vae=vae())
    text = {"encoder_hidden_states": torch.zeros(4, 8)}
    data = [{"images": torch.zeros(3, 32, 32, dtype=torch.uint8)} | text] * 3
    encoder = memory.peak_bytes(vdm.vae, lambda twin: twin.encode(torch.zeros(1, 3, 32, 32)))
    monkeypatch.setattr(batching, "free_bytes", lambda device: 2 * encoder / batching.SHARE)
    assert batching.evaluation_batch_size(vdm.unet, data, "cpu", vae=vdm.vae) == 2
    assert batching.evaluation_batch_size(vdm.unet, data, "cpu") > 2


def test_free_memory_says_how_many_are_given_at_once(monkeypatch):
    monkeypatch.setattr(modeling_utils.logger, "warning", pytest.fail)
    pipe = of_classes()
    seen, latents = sizes_seen(pipe.unet), torch.randn(NUMBER, 1, 6, 8)
    needed = memory.peak_bytes(
        pipe.unet, lambda twin: predict(twin, torch.zeros(1, 1, 6, 8), torch.zeros(1), {"class_labels": torch.zeros(1).long()})
    )
    whole = pipe.decode(latents, 1, output_type="pt", tolerance=1e-2)
    assert set(seen) == {5}
    seen.clear()
    monkeypatch.setattr(batching, "free_bytes", lambda device: 2 * needed / batching.SHARE)
    torch.testing.assert_close(pipe.decode(latents, 1, output_type="pt", tolerance=1e-2), whole)
    assert set(seen) == {1, 2}
    monkeypatch.setattr(batching, "free_bytes", lambda device: 0)
    seen.clear()
    pipe(3, class_labels=1, num_inference_steps=1)
    assert seen == [1, 1, 1]


def allocated_at_most(function) -> int:
    """By PyTorch's own account, beyond what is there before, and with attention by its formula."""
    with torch.profiler.profile(profile_memory=True) as trace, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        function()
    now = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


MODELS = {
    "VDM": (lambda: VDMUNet2DModel(16, 3, block_channels=32, layers_per_side=3), (3, 16, 16), predict),
    "U-Net": (unet, (3, 8, 8), predict),
    "decoder": (vae, (4, 8, 8), lambda vae, sample, timestep: vae.decode(sample.to(vae.dtype))),
}


@pytest.mark.parametrize(("build", "shape", "function"), MODELS.values(), ids=MODELS)
def test_a_pass_takes_what_was_said(build, shape, function):
    """But for what the kernels allocate for themselves, which the free share is for."""
    model, number = build().eval(), 64
    sample, timestep = torch.randn(number, *shape), torch.rand(number)

    def said() -> int:
        return memory.peak_bytes(model, lambda twin: function(twin, torch.zeros(1, *shape), torch.zeros(1)))

    measured = allocated_at_most(lambda: function(model, sample, timestep)) / number
    assert 0.8 * measured < said() <= measured
    single = said()
    model.double()
    assert said() == pytest.approx(2 * single, rel=0.1)  # but for the timesteps, which stay in float32
    model.bfloat16()
    assert single / 2 <= said() <= single  # attention's formula computes in float32


def test_a_denoiser_that_reads_its_numbers_is_called_all_the_same():
    class Reading(VDMUNet2DModel):
        def forward(self, sample, timestep, **kwargs):
            return super().forward(sample * sample.abs().amax().item(), timestep, **kwargs)

    unet = Reading(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=())
    assert batching.denoiser_batch_size(unet, {}, torch.device("cpu")) == batching.ENOUGH["cpu"] // batching.UNKNOWN


def test_a_compiled_denoiser_counts_as_what_it_wraps(monkeypatch):
    monkeypatch.setattr(batching, "free_bytes", lambda device: 2**20)
    condition, device = {"encoder_hidden_states": torch.zeros(3, 4, 8)}, torch.device("cpu")
    plain = batching.denoiser_batch_size(conditional_unet(), condition, device)
    assert batching.denoiser_batch_size(torch.compile(conditional_unet()), condition, device) == plain > 1


def test_processes_share_what_a_container_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(8000))
    device = torch.device("cpu")
    assert memory.free_bytes(device) == 8000
    for name, text in {"max": "5000", "current": "3000", "stat": "anon 1000\ninactive_file 2000"}.items():
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert memory.free_bytes(device) == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(device) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(device) == 2000


def test_what_the_allocator_of_a_gpu_keeps_is_free(monkeypatch):
    for name, value in {"mem_get_info": (1000, 9000), "memory_reserved": 5000, "memory_allocated": 3000}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 3000


@pytest.mark.parametrize(
    ("most", "error", "message"),
    [(0, ValueError, "`max_batch_size` is 0, but must be from 1"), (1.5, TypeError, "`max_batch_size` is 1.5, but must be a")],
)
def test_no_parts_of_nothing(most, error, message):
    with pytest.raises(error, match=message):
        of_classes()(2, class_labels=0, max_batch_size=most)
