"""A trained VDM without this package: a folder that plain diffusers loads, and the way back."""

import copy
import pickle
import subprocess
import sys
import textwrap

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from packaging.version import Version

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMPipeline, VDMScheduler


TIMES = torch.linspace(0, 1, 51, dtype=torch.float64)
PIPELINES_TAKE_DTYPE = pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.40"), reason="diffusers has only `torch_dtype`, its older name"
)


def trained_pipeline() -> VDMPipeline:
    """A VDM with a stock denoiser and a schedule that has been moved by an optimiser."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "block_out_channels": (8, 16)}
    unet = UNet2DModel(8, 1, 1, **blocks, layers_per_block=1, norm_num_groups=4)
    vdm = VDM(unet, LearnedMonotoneSchedule(-8.0, 5.0, num_features=16), "v_prediction", num_levels=17)
    optimizer = torch.optim.Adam(vdm.parameters(), lr=0.05)
    for _ in range(5):
        vdm(torch.randint(0, 17, (8, 1, 8, 8))).bits_per_dim.mean().backward()
        optimizer.step()
    return vdm.to_pipeline()


def images_of(pipe: DiffusionPipeline, **kwargs) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt", **kwargs).images


def test_an_export_loads_with_plain_diffusers_alone(tmp_path):
    pipe = trained_pipeline()
    plain = DDPMPipeline(pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config))
    plain.save_pretrained(tmp_path / "plain")
    script = """
        import sys, torch
        from diffusers import DDPMPipeline, DiffusionPipeline
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1] + "/plain")
        assert type(pipe) is DDPMPipeline and type(pipe.scheduler).__name__ == "DDPMScheduler"
        pipe.set_progress_bar_config(disable=True)
        images = pipe(2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images
        assert "vdm_diffusers" not in sys.modules
        torch.save((torch.from_numpy(images), pipe.scheduler.alphas_cumprod), sys.argv[1] + "/result.pt")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    images, alphas_cumprod = torch.load(tmp_path / "result.pt")
    plain.set_progress_bar_config(disable=True)
    expected = plain(2, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images
    torch.testing.assert_close(images, torch.from_numpy(expected), rtol=0, atol=1e-5)
    gammas = -8.0 + 13.0 * torch.arange(1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(-alphas_cumprod.double().logit(), gammas, rtol=0, atol=2e-3)


def test_an_export_gives_back_the_whole_model(tmp_path):
    pipe = trained_pipeline()
    plain = DDPMPipeline(pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config))
    plain.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    scheduler = VDMScheduler.from_config(loaded.scheduler.config)
    assert torch.equal(scheduler.noise_schedule(TIMES), pipe.scheduler.noise_schedule(TIMES))
    assert scheduler.config.prediction_type == "v_prediction"
    again = VDMPipeline(loaded.unet, scheduler, num_levels=17)
    assert torch.equal(images_of(again), images_of(pipe))
    images = torch.randint(0, 17, (4, 1, 8, 8))
    draws = {"times": torch.rand(4), "noise": torch.randn(2, 4, 1, 8, 8)}
    bounds = [VDM.from_pipeline(model).eval()(images, **draws).nats for model in (again, pipe)]
    assert torch.equal(*bounds)


def test_a_variant_is_saved_and_loaded_as_safetensors(tmp_path):
    pipe = trained_pipeline()
    pipe.save_pretrained(tmp_path, variant="ema")
    weights = sorted(path.name for path in tmp_path.rglob("diffusion_pytorch_model*"))
    assert weights == ["diffusion_pytorch_model.ema.safetensors"]
    again = VDMPipeline.from_pretrained(tmp_path, variant="ema", use_safetensors=True)
    assert torch.equal(images_of(again), images_of(pipe))


@pytest.mark.parametrize("option", [pytest.param("dtype", marks=PIPELINES_TAKE_DTYPE), "torch_dtype"])
def test_half_precision_is_for_the_denoiser_alone(tmp_path, option):
    pipe = trained_pipeline()
    pipe.save_pretrained(tmp_path)
    half = VDMPipeline.from_pretrained(tmp_path, **{option: torch.bfloat16})
    assert half.unet.dtype == torch.bfloat16
    assert torch.equal(half.scheduler.noise_schedule(TIMES), pipe.scheduler.noise_schedule(TIMES))
    assert images_of(half).isfinite().all()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_sample_the_same_and_step_alone(duplicate):
    pipe = trained_pipeline()
    other = duplicate(pipe)
    assert torch.equal(images_of(other), images_of(pipe))
    scheduler = duplicate(pipe.scheduler)
    scheduler.set_timesteps(7)
    assert len(pipe.scheduler.timesteps) == 4
