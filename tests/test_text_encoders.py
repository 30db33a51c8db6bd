"""What pipelines of diffusers tell their denoisers of prompts: the same by their encoders as by themselves."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from prompted_pipelines import SIZE, pixart_alpha, pixart_sigma, sd, sdxl
from tiny_pipelines import TEXT_AND_SIZES, conditional_unet, pixart
from tiny_text import clip, t5, tokenizer
from torch.utils._pytree import tree_flatten_with_path, tree_map
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMScheduler
from vdm_diffusers.conditioning import Condition
from vdm_diffusers.data import load_digits
from vdm_diffusers.data.texts import all_captions, cache_text_embeddings, with_encoded_captions
from vdm_diffusers.denoisers import denoiser_of, sample_shape
from vdm_diffusers.evaluate import main as evaluate
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.text_encoders import PromptEncoder, PromptEncoderPair, prompt_encoder_of


PROMPTS, NEGATIVE = ["A red Cat ", "dog"], {"negative_prompt": ["blue", "a"]}
PIXART = {"use_resolution_binning": False, "clean_caption": False}


def large_pixart(scheduler) -> DiffusionPipeline:
    """So large that it is told the size of images."""
    sizes = {"sample_size": 128, "patch_size": 16, "num_attention_heads": 3, "cross_attention_dim": 24}
    return pixart_alpha(scheduler, pixart(**sizes))


PIPELINES: dict[str, tuple[Callable[..., DiffusionPipeline], dict]] = {
    "SD": (sd, SIZE),
    "SDXL": (sdxl, SIZE),
    "SDXL, encoded empty prompt": (lambda scheduler: sdxl(scheduler, force_zeros_for_empty_prompt=False), SIZE),
    "PixArt-α": (pixart_alpha, PIXART | SIZE),
    "PixArt-α, told the size": (large_pixart, PIXART),
    "PixArt-Σ": (pixart_sigma, PIXART | SIZE),
}
"""A pipeline by its scheduler, and options of its call."""


@pytest.fixture(params=PIPELINES.values(), ids=PIPELINES.keys())
def model(request: pytest.FixtureRequest) -> tuple[DiffusionPipeline, dict]:
    make, options = request.param
    pipe = make(DDIMScheduler(clip_sample=False)).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe, options


ADDED = TEXT_AND_SIZES | {"projection_class_embeddings_input_dim": 52}
"""Options of a denoiser that is told a vector of four numbers for a whole text, and the size of the image."""


def pair(second: PreTrainedTokenizerBase | None = None, **kwargs) -> PromptEncoderPair:
    encoders = clip(size=4), clip(CLIPTextModelWithProjection, size=4)
    kwargs = {"image_size": (8, 8)} | kwargs
    return PromptEncoderPair(tokenizer(), encoders[0], second or tokenizer(), encoders[1], **kwargs)


class Told(Exception):
    """What a denoiser was told."""


def told_by(pipe: DiffusionPipeline, **call) -> Condition:
    """What a pipeline tells its denoiser of prompts, the negative ones first where it guides."""

    def raise_told(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        raise Told({name: value for name, value in kwargs.items() if name.startswith(("encoder", "added"))})

    with denoiser_of(pipe).register_forward_pre_hook(raise_told, with_kwargs=True), pytest.raises(Told) as told:
        pipe(prompt=PROMPTS, num_inference_steps=1, output_type="latent", **call)
    return told.value.args[0]


def assert_same(found: Condition, expected: Condition) -> None:
    """But for what is `None`, and the type of masks."""
    flat = [{path: rows for path, rows in tree_flatten_with_path(each)[0] if rows is not None} for each in (found, expected)]
    found, expected = flat
    assert found.keys() == expected.keys()
    for path, rows in expected.items():
        torch.testing.assert_close(found[path].double(), rows.double(), rtol=0, atol=1e-6)


def test_a_denoiser_is_told_what_its_own_pipeline_tells_it(model):
    pipe, options = model
    encoder = prompt_encoder_of(pipe)
    assert_same(encoder(PROMPTS, denoiser_of(pipe)), told_by(pipe, guidance_scale=1.0, **options))
    guided = told_by(pipe, guidance_scale=2.0, **options)
    assert_same(encoder(["", "", *PROMPTS], denoiser_of(pipe)), guided)
    guided = told_by(pipe, guidance_scale=2.0, **NEGATIVE, **options)
    assert_same(encoder([*NEGATIVE["negative_prompt"], *PROMPTS], denoiser_of(pipe)), guided)


@pytest.mark.parametrize("negative", [{}, NEGATIVE], ids=["empty", "negative"])
def test_a_vdm_pipeline_draws_the_same_images(model, negative):
    stock, options = model
    stock.to(torch.float32)
    ours = VDMPipeline.from_pipe(stock)
    ours.set_progress_bar_config(disable=True)
    latents = torch.randn(2, *sample_shape(ours.unet))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "latents": latents, "output_type": "latent"} | negative
    expected = stock(PROMPTS, **call, **options).images
    torch.testing.assert_close(ours(PROMPTS, **call).images, expected, atol=1e-4, rtol=0)  # guidance in another order


def test_the_size_of_an_original_may_be_told():
    """And where it was cropped; guidance compares with a text of the same."""
    stock = sdxl(DDIMScheduler(clip_sample=False))
    ours = VDMPipeline.from_pipe(stock)
    call = {"num_inference_steps": 1, "guidance_scale": 2.0, "latents": torch.randn(1, 4, 8, 8), "output_type": "latent"}
    sizes = {"time_ids": torch.tensor([[32.0, 48.0, 4.0, 8.0, 16.0, 16.0]])}
    drawn = ours("a dog", condition={"added_cond_kwargs": sizes}, **call).images
    given = {"original_size": (32, 48), "crops_coords_top_left": (4, 8), "target_size": (16, 16)}
    torch.testing.assert_close(drawn, stock("a dog", **call, **given, **SIZE).images, atol=1e-5, rtol=0)
    assert (drawn - ours("a dog", **call).images).abs().max() > 1e-3


def test_encoded_texts_are_taken_in_place_of_words():
    stock = sdxl(DDIMScheduler(clip_sample=False), force_zeros_for_empty_prompt=False)
    pipe = VDMPipeline.from_pipe(stock)
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "latents": torch.randn(2, 4, 8, 8), "output_type": "latent"}
    told = pipe.prompt_encoder(PROMPTS, pipe.unet)
    assert torch.equal(pipe(condition=told, **call).images, pipe(PROMPTS, **call).images)
    negative = torch.randn(2, 6, 8)
    embeds = {f"{name}prompt_embeds": rows for name, rows in {"": told["encoder_hidden_states"], "negative_": negative}.items()}
    drawn = pipe(**embeds, condition={"added_cond_kwargs": told["added_cond_kwargs"]}, **call).images
    pooled = told["added_cond_kwargs"]["text_embeds"]
    embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": torch.zeros_like(pooled)}
    torch.testing.assert_close(drawn, stock(**embeds, **call, **SIZE).images, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="UNet2DConditionModel needs `added_cond_kwargs`"):
        pipe(prompt_embeds=told["encoder_hidden_states"], **call)


@pytest.mark.parametrize("make", [sdxl, pixart_alpha])
def test_a_saved_vdm_pipeline_keeps_how_it_reads(make, tmp_path):
    stock = make(DDPMScheduler())
    VDMPipeline.from_pipe(stock).save_pretrained(tmp_path)
    loaded, vdm = VDMPipeline.from_pretrained(tmp_path), VDM.from_pipeline(stock)
    expected = prompt_encoder_of(stock)(["", *PROMPTS], denoiser_of(stock))
    for pipe in (loaded, vdm.to_pipeline(), VDM.from_pipeline(loaded).to_pipeline()):
        tree_map(partial(torch.testing.assert_close, rtol=0, atol=0), pipe.prompt_encoder(["", *PROMPTS], pipe.unet), expected)


def test_a_model_of_pixels_is_evaluated_with_captions_and_without(tmp_path):
    scheduler = VDMScheduler.from_noise_schedule(LinearSchedule(-6.0, 4.0))
    pipe = VDMPipeline(conditional_unet(1, 1, **ADDED), scheduler, num_levels=17, **pair().pipeline_arguments)
    pipe.save_pretrained(tmp_path / "model")
    options = {"pretrained_model_name_or_path": tmp_path / "model", "output_path": tmp_path / "bounds.json", "num_repeats": 2}
    options |= {"caption_column": "caption", "max_images": 4}
    evaluate([part for name, value in options.items() for part in (f"--{name}", str(value))])
    rows = json.loads((tmp_path / "bounds.json").read_text())["results"]
    vdm, held_out = VDM.from_pipeline(pipe).eval(), load_digits(caption_column="caption").validation
    images = torch.utils.data.Subset(held_out, range(4))
    for row, captions in zip(rows, (None, [""] * 4)):
        told = with_encoded_captions(images, vdm.prompt_encoder, vdm.unet, captions)
        assert row["bits_per_dim"] == pytest.approx(variational_bound(vdm, told, 2).per_dim, rel=1e-6)
    assert rows[1]["above_the_first"]["per_dim"] == pytest.approx(rows[1]["bits_per_dim"] - rows[0]["bits_per_dim"]) != 0


def test_kept_encodings_are_those_of_the_pair(tmp_path):
    data, encoder, other = load_digits(caption_column="caption").train, pair(), pair(force_zeros_for_empty_prompt=True)
    cache_text_embeddings(encoder, data, str(tmp_path / "kept"))
    assert {*encoder.stored} == {"", *all_captions(data)}
    for text in encoder.stored:
        kept, computed = encoder.stored[text], encoder.encode(text)
        assert kept.keys() == computed.keys() and all(torch.equal(kept[name], tensor) for name, tensor in computed.items())
    for part in ("text_encoder", "text_encoder_2"):
        getattr(other, part).load_state_dict(getattr(encoder, part).state_dict())
    with pytest.raises(ValueError, match="holds encodings of other captions, or by another encoder"):
        cache_text_embeddings(other, data, str(tmp_path / "kept"))


def test_a_prompt_is_cut_where_either_tokenizer_cuts_it():
    encoder = pair(tokenizer(ends=True), max_sequence_length=3)
    assert encoder.num_cut(["a cat", "a red cat", "a red blue cat"]) == 2
    assert encoder(["a red blue cat"], conditional_unet(**ADDED))["encoder_hidden_states"].shape == (1, 3, 8)
    with pytest.raises(ValueError, match="is 7, but CLIPTextModel and CLIPTextModelWithProjection can take 1 to 6 tokens"):
        pair(max_sequence_length=7)


@pytest.mark.parametrize(
    ("make", "unet", "message"),
    [
        (
            lambda: PromptEncoder(tokenizer(), clip()),
            lambda: conditional_unet(**ADDED),
            "UNet2DConditionModel takes a vector of 4 numbers for a whole text, but the encoder has no vector",
        ),
        (pair, conditional_unet, "takes no vector for a whole text, but the encoder has a vector of 4 numbers"),
        (pair, pixart, "PixArtTransformer2DModel takes no vector for a whole text"),
        (
            lambda: PromptEncoder(tokenizer(), t5()),
            lambda: pixart(sample_size=128, patch_size=16),
            "give it .* as `image_size`",
        ),
    ],
)
def test_an_encoder_that_a_denoiser_does_not_take_is_refused(make, unet, message):
    with pytest.raises(ValueError, match=message):
        VDM(unet(), LinearSchedule(), prompt_encoder=make()).prompt_encoder(["a cat"], unet())
