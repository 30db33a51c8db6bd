"""Files of images: exact round trips, the same bytes whatever the batches, threads and processes, rates that add up."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from cases import PREDICTION_TYPES
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from tiny_pipelines import conditional_unet, unet
from tiny_text import clip, tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vdm_diffusers import VDM, LearnedMonotoneSchedule, LinearSchedule, VDMPipeline, VDMUNet2DModel
from vdm_diffusers.compression import Compressor, Decompressor, Item, coding_model, compress, decompress
from vdm_diffusers.compression.coding_model import NUM_STEPS
from vdm_diffusers.conditioning import HIDDEN_STATES
from vdm_diffusers.error_profiles import ErrorProfile, cosine_axes
from vdm_diffusers.scheduling.any_timesteps import keep_timesteps


TINY = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4}
SIZES = [(4, 4), (4, 3), (1, 6), (2, 1), (1, 1)]


def tiny_pipeline(
    channels: int = 1, size: tuple[int, ...] = (4, 4), num_levels: int = 17, prediction_type: str = "v_prediction", **options
) -> VDMPipeline:
    torch.manual_seed(0)
    denoiser = VDMUNet2DModel(sample_size=size, in_channels=channels, **TINY, **options)
    torch.nn.init.normal_(denoiser.conv_out.weight, std=0.1)
    return VDM(denoiser, LinearSchedule(-8.0, 5.0), prediction_type, num_levels=num_levels).to_pipeline()


def some_images(number: int, channels: int = 1, size: tuple[int, ...] = (4, 4), num_levels: int = 17) -> Tensor:
    """Integers of all levels; in the first of them the least, in the second the greatest alone."""
    images = torch.randint(0, num_levels, (number, channels, *size), generator=torch.Generator().manual_seed(1))
    images[0], images[min(1, number - 1)] = 0, num_levels - 1
    return images.to(torch.uint8 if num_levels <= 256 else torch.int32)


def check_round_trip(pipeline: VDMPipeline, images: Tensor, **options) -> bytes:
    data = compress(pipeline, images, **options)
    back = decompress(pipeline, data)
    assert back.dtype == images.dtype and torch.equal(back, images)
    return data


@pytest.mark.parametrize("num_levels", [2, 17, 256, 65_536])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_pixel_comes_back(num_levels, channels):
    size = (4, 3)
    pipeline = tiny_pipeline(channels, size, num_levels)
    check_round_trip(pipeline, some_images(12, channels, size, num_levels), num_inference_steps=3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_of_every_prediction_type(prediction_type):
    check_round_trip(tiny_pipeline(prediction_type=prediction_type), some_images(8), num_inference_steps=2)


@pytest.mark.parametrize("number", [1, 2, 3, 30])
def test_of_any_number_of_images(number):
    check_round_trip(tiny_pipeline(), some_images(number), num_inference_steps=2)


def _cases(num_cases: int):
    """Over shapes, levels, steps, bins and sizes of blocks, of tiny models with random weights."""

    @settings(max_examples=num_cases)
    @given(st.data())
    def check(data):
        size = data.draw(st.sampled_from(SIZES))
        channels, num_levels = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([2, 3, 17, 256, 1000, 65_536]))
        pipeline = tiny_pipeline(channels, size, num_levels, data.draw(st.sampled_from(PREDICTION_TYPES)))
        number = data.draw(st.integers(1, 6))
        check_round_trip(
            pipeline,
            some_images(number, channels, size, num_levels),
            num_inference_steps=data.draw(st.integers(1, 4)),
            bin_precision=data.draw(st.integers(0, 6)),
            images_per_block=data.draw(st.integers(1, 6)),
        )

    return check


test_round_trips = _cases(25)
test_a_thousand_round_trips = pytest.mark.slow(_cases(1000))


@pytest.mark.parametrize("basis", ["isotropic", "entries", "dct"])
def test_optimal_variances_and_kept_chains(basis):
    """As `few_steps` writes them into a scheduler."""
    pipeline = tiny_pipeline()
    gammas = torch.linspace(-8, 5, 7, dtype=torch.float64)
    moments = torch.linspace(0.9, 0.05, 7, dtype=torch.float64)[:, None]
    if basis != "isotropic":
        moments = moments * torch.linspace(0.5, 1, 16)
    axes = cosine_axes((1, 4, 4)) if basis == "dct" else None
    pipeline.scheduler.set_error_profile(ErrorProfile(gammas, moments, torch.zeros_like(moments), basis, axes))
    keep_timesteps(pipeline.scheduler, [1000.0, 700.0, 100.0])
    vdm = coding_model(pipeline)
    chain = vdm.noise_schedule.chain(3)
    assert vdm.num_timesteps == 3 and vdm.error_profile is not None
    assert torch.allclose(chain, torch.tensor([-8.0, -8 + 1.3, -8 + 9.1, 5.0], dtype=chain.dtype), atol=1e-4)
    check_round_trip(pipeline, some_images(20))


def test_without_kept_chains_steps_are_even_in_gamma():
    vdm = coding_model(tiny_pipeline())
    assert vdm.num_timesteps == NUM_STEPS and vdm.error_profile is None
    assert torch.allclose(vdm.noise_schedule.chain(NUM_STEPS).diff(), torch.tensor(13 / NUM_STEPS).double(), atol=1e-4)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler(beta_schedule="squaredcos_cap_v2")])
def test_of_stock_models(scheduler):
    images = some_images(6, 3, (8, 8), 256)
    check_round_trip(DDPMPipeline(unet(), scheduler), images, num_inference_steps=3)


def test_of_a_learned_schedule():
    torch.manual_seed(0)
    denoiser = VDMUNet2DModel(sample_size=4, in_channels=1, **TINY)
    pipeline = VDM(denoiser, LearnedMonotoneSchedule(-8.0, 5.0), num_levels=17).to_pipeline()
    check_round_trip(pipeline, some_images(6), num_inference_steps=3)


def test_labels_of_classes_are_told_and_kept():
    pipeline = tiny_pipeline(num_class_embeds=4)
    torch.nn.init.normal_(pipeline.unet.class_embedding.weight, std=3.0)
    images = some_images(20)
    data = check_round_trip(pipeline, images, num_inference_steps=2, class_labels=[place % 3 for place in range(20)])
    with Decompressor(io.BytesIO(data), pipeline) as decompressor:
        assert next(iter(decompressor)).labels == [place % 3 for place in range(20)]
    assert compress(pipeline, images, 2) != compress(pipeline, images, 2, class_labels=[3] * 20)
    with pytest.raises(ValueError, match="19 `class_labels`, but 20 images"):
        compress(pipeline, images, 2, class_labels=[0] * 19)


def test_a_model_of_text_is_told_none():
    """Nor what its encoder remembers of calls under other settings."""
    torch.manual_seed(0)
    denoiser = conditional_unet()
    scheduler = VDM(denoiser, LinearSchedule(-8.0, 5.0)).to_scheduler()
    pipeline = VDMPipeline(denoiser, scheduler, text_encoder=clip(), tokenizer=tokenizer())
    images = some_images(4, 4, (8, 8), 256)
    expected, file, vdm = check_round_trip(pipeline, images, num_inference_steps=2), io.BytesIO(), coding_model(pipeline, 2)
    vdm.prompt_encoder.stored = {"": {HIDDEN_STATES: torch.ones(77, 8)}}
    with Compressor(file, vdm) as compressor:
        for image in images:
            compressor.append(Item(image))
    assert file.getvalue() == expected
    pipeline.text_encoder.get_input_embeddings().weight.data.add_(1)
    with pytest.raises(ValueError, match="other weights"):
        decompress(pipeline, expected)


def test_batches_and_threads_make_no_difference():
    pipeline, images = tiny_pipeline(), some_images(70)
    expected = check_round_trip(pipeline, images, num_inference_steps=3, images_per_block=16)
    for batch_size in (1, 7, 64):
        assert compress(pipeline, images.split(batch_size), 3, images_per_block=16) == expected
    before = torch.get_num_threads()
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        assert compress(pipeline, images, 3, images_per_block=16) == expected
        assert torch.equal(decompress(pipeline, expected), images)
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)


def test_settings_of_a_program_make_no_difference():
    """Training mode with dropout, autocast, precision and kernels; all are left as they were."""
    pipeline, images = tiny_pipeline(dropout=0.5, attention_everywhere=True), some_images(12)
    pipeline.unet.eval()
    expected = compress(pipeline, images, 3)
    pipeline.unet.train()
    torch.set_float32_matmul_precision("medium")
    kernels = torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    with torch.autocast("cpu", torch.bfloat16), kernels[0], kernels[1]:
        assert compress(pipeline, images, 3) == expected
        assert torch.equal(decompress(pipeline, expected), images)
        assert torch.is_autocast_enabled("cpu") and not torch.backends.mkldnn.enabled
    assert pipeline.unet.training and torch.get_float32_matmul_precision() == "medium" and torch.is_grad_enabled()
    torch.set_float32_matmul_precision("highest")


OTHER_PROCESS = """
import sys, torch
torch.set_num_threads(2)
from diffusers import DiffusionPipeline
import vdm_diffusers
from vdm_diffusers.compression import compress, decompress
folder = sys.argv[1]
pipeline = DiffusionPipeline.from_pretrained(folder + "/model")
images = decompress(pipeline, open(folder + "/written", "rb").read())
open(folder + "/again", "wb").write(compress(pipeline, images.split(5), 3))
"""


def test_another_process_reads_it_and_writes_the_same(tmp_path):
    pipeline, images = tiny_pipeline(), some_images(20)
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "written").write_bytes(compress(pipeline, images, 3))
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "written").read_bytes()


def test_rates_add_up():
    file, images = io.BytesIO(), some_images(40)
    vdm = coding_model(tiny_pipeline(), 3)
    with Compressor(file, vdm, images_per_block=25) as compressor:
        for image in images:
            compressor.append(Item(image))
    rates = compressor.rates
    assert rates.num_images == 40 and rates.gross_bits == 8 * len(file.getvalue())
    assert 0 < rates.num_plain < 40
    assert rates.initial_bits == pytest.approx(rates.num_plain * 16 * np.log2(17), abs=2 * 24)  # a coder's first number
    overhead = rates.gross_bits - rates.initial_bits - rates.net_bits
    assert 40 * 16 < overhead < 40 * 16 + 8 * 1500  # checksums, and a header
    assert rates.net == rates.net_bits / 16 / (40 - rates.num_plain)


def test_a_file_can_be_read_up_to_its_last_whole_block():
    pipeline, images, file = tiny_pipeline(), some_images(40), io.BytesIO()
    with Compressor(file, coding_model(pipeline, 2), images_per_block=10) as compressor:
        for image in images:
            compressor.append(Item(image, "a name"))
    content = file.getvalue()
    seen = set()
    for size in range(600, len(content) + 1, 90):
        found = []
        with Decompressor(io.BytesIO(content[:size]), pipeline) as decompressor:
            try:
                for block in decompressor:
                    found.append(block.images)
            except ValueError as error:
                assert "cut off" in str(error)
        number = sum(map(len, found))
        assert number % 10 == 0 and (not found or torch.equal(torch.cat(found), images[:number]))
        seen.add(number)
    assert seen >= {0, 10, 20, 30}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), r"images are \(1, 5, 5\), but this is a model of"),
        (torch.full((2, 1, 4, 4), 17, dtype=torch.uint8), "must be integers in \\[0, 17\\)"),
        ([torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 4, 4, dtype=torch.uint8)], "but the first one is"),
        (torch.empty(0, 1, 4, 4, dtype=torch.uint8), "no images to compress"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        compress(tiny_pipeline(), images, 2)


def test_real_numbers_are_refused():
    with pytest.raises(TypeError, match="must be integers"):
        compress(tiny_pipeline(), torch.zeros(2, 1, 4, 4), 2)


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_numbers_of_steps_that_are_none_are_refused(number):
    with pytest.raises(ValueError, match="`num_inference_steps` is .* whole number of at least 1"):
        compress(tiny_pipeline(), some_images(2), number)


def test_a_model_of_continuous_time_is_refused():
    vdm = VDM(VDMUNet2DModel(sample_size=4, in_channels=1, **TINY), LinearSchedule())
    with pytest.raises(ValueError, match="num_timesteps"):
        Compressor(io.BytesIO(), vdm)


def test_an_error_ends_the_work_on_its_block():
    """The images of a block that nobody waits for any longer are not coded."""
    coded, pipeline = [], tiny_pipeline()

    def on_image():
        coded.append(None)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        with Compressor(io.BytesIO(), coding_model(pipeline, 2), images_per_block=400, on_image=on_image) as compressor:
            for image in some_images(400):
                compressor.append(Item(image))
            raise KeyboardInterrupt
    assert len(coded) < 400
