"""Prompts: what a denoiser is told of them, against transformers and diffusers; guidance, img2img and inpainting."""

import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import tiny_text
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from tiny_pipelines import conditional_unet, vae

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMScheduler
from vdm_diffusers.text_encoders import PromptEncoder, load_prompt_encoder


ENCODERS = {"clip": tiny_text.clip, "t5": tiny_text.t5, "bert": tiny_text.bert}


def pipeline(encoder: str | None = "bert", **kwargs) -> VDMPipeline:
    """Of pictures 4×8×8 of 16 levels."""
    torch.manual_seed(0)
    text = {} if encoder is None else {"text_encoder": ENCODERS[encoder](), "tokenizer": tiny_text.tokenizer()}
    scheduler = VDMScheduler.from_noise_schedule(LinearSchedule(-6.0, 4.0))
    pipe = VDMPipeline(conditional_unet(), scheduler, num_levels=16, **text, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: VDMPipeline, *args, **kwargs) -> torch.Tensor:
    kwargs = {"num_inference_steps": 3, "output_type": "pt", "generator": torch.Generator().manual_seed(1)} | kwargs
    return pipe(*args, **kwargs).images


@pytest.mark.parametrize("name", ENCODERS)
def test_texts_are_encoded_as_transformers_does(name):
    tokenizer, model = tiny_text.tokenizer(), ENCODERS[name]()
    texts = ["a red cat", "", "dog"]
    condition = PromptEncoder(tokenizer, model)(texts, conditional_unet())
    tokens = tokenizer(texts, padding="max_length", max_length=6, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask.clone()
    mask[:, 0] = 1
    with torch.no_grad():
        expected = model(tokens.input_ids, **({} if name == "clip" else {"attention_mask": mask}))[0]
    torch.testing.assert_close(condition["encoder_hidden_states"], expected)
    assert ("encoder_attention_mask" in condition) == (name != "clip")
    if name != "clip":
        assert torch.equal(condition["encoder_attention_mask"], mask.bool())


def test_what_a_text_becomes_depends_on_no_other_text():
    encoder, unet = PromptEncoder(tiny_text.tokenizer(), tiny_text.bert()), conditional_unet()
    alone = encoder(["red cat"], unet)["encoder_hidden_states"][0]
    fresh = PromptEncoder(encoder.tokenizer, encoder.text_encoder)
    among = fresh(["a dog", "blue", "red cat", ""], unet)["encoder_hidden_states"][2]
    assert torch.equal(alone, among)


def test_stable_diffusion_draws_the_same_images():
    torch.manual_seed(0)
    parts = {"text_encoder": tiny_text.clip(), "tokenizer": tiny_text.tokenizer()}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock = StableDiffusionPipeline(vae(), unet=conditional_unet(), scheduler=DDIMScheduler(), **parts, **nothing)
    ours = VDMPipeline.from_pipe(stock)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": ["blue", "a"]}
    prompt, latents = ["a red cat", "dog"], torch.randn(2, 4, 8, 8)
    theirs = stock(prompt, latents=latents, output_type="latent", **arguments).images
    mine = ours(prompt, latents=latents, output_type="latent", **arguments).images
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)  # batches of guidance in another order


def test_a_string_comes_first_as_in_diffusers():
    pipe = pipeline()
    assert torch.equal(draw(pipe, "a cat"), draw(pipe, prompt="a cat"))
    assert not torch.equal(draw(pipe, "a cat"), draw(pipe, "a dog"))
    assert torch.equal(draw(pipe, 1), draw(pipe, ""))


def test_prompts_alone_and_in_a_batch_give_the_same_images():
    pipe, latents = pipeline(), torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    together = draw(pipe, ["cat", "red dog"], num_images_per_prompt=2, latents=latents, eta=0.0)
    for i, text in enumerate(["cat", "cat", "red dog", "red dog"]):
        torch.testing.assert_close(draw(pipe, text, latents=latents[i : i + 1], eta=0.0)[0], together[i])
    assert len(draw(pipe, prompt="cat", batch_size=3)) == len(draw(pipe, "cat", num_images_per_prompt=3)) == 3


def test_guidance_of_one_is_none_and_the_empty_text_is_the_null():
    pipe = pipeline()
    assert torch.equal(draw(pipe, "a cat", guidance_scale=1.0), draw(pipe, "a cat"))
    guided = draw(pipe, "a cat", guidance_scale=3.0)
    assert not torch.equal(guided, draw(pipe, "a cat"))
    assert torch.equal(guided, draw(pipe, "a cat", guidance_scale=3.0, negative_prompt=""))
    torch.testing.assert_close(draw(pipe, "", guidance_scale=3.0, eta=0.0), draw(pipe, "", eta=0.0))


def test_embeddings_are_taken_in_place_of_texts():
    pipe = pipeline()
    texts = ["a cat", "blue"]
    told, null = (pipe.prompt_encoder(given, pipe.unet) for given in (texts, ["", ""]))
    embedded = {"prompt_embeds": told["encoder_hidden_states"], "prompt_attention_mask": told["encoder_attention_mask"]}
    negative = {f"negative_{name}": null[key] for name, key in zip(embedded, told)}
    words = draw(pipe, texts, guidance_scale=2.0)
    assert torch.equal(words, draw(pipe, **embedded, guidance_scale=2.0))
    assert torch.equal(words, draw(pipe, **embedded, **negative, guidance_scale=2.0))
    assert torch.equal(words, draw(pipe, condition=told, guidance_scale=2.0))
    without_encoder = pipeline(None)
    without_encoder.unet = pipe.unet
    assert torch.equal(words, draw(without_encoder, **embedded, **negative, guidance_scale=2.0))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_pipelines_keep_their_encoder(tmp_path, encoder):
    pipe = pipeline(encoder, max_sequence_length=4)
    pipe.save_pretrained(tmp_path)
    for loaded in (VDMPipeline.from_pretrained(tmp_path), VDM.from_pretrained(tmp_path).to_pipeline()):
        loaded.set_progress_bar_config(disable=True)
        assert loaded.prompt_encoder.max_sequence_length == 4
        assert torch.equal(draw(loaded, "a red cat"), draw(pipe, "a red cat"))
    read = load_prompt_encoder(tmp_path, max_sequence_length=4)
    assert torch.equal(
        read(["dog"], pipe.unet)["encoder_hidden_states"], pipe.prompt_encoder(["dog"], pipe.unet)["encoder_hidden_states"]
    )


def test_the_likelihood_is_that_of_the_image_with_its_text():
    pipe, images = pipeline(), torch.randint(16, (2, 4, 8, 8))
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    nats = pipe.log_likelihood(images, prompt=["a cat", "dog"], generator=seed(), tolerance=1e-3)
    condition = pipe.prompt_encoder(["a cat", "dog"], pipe.unet)
    assert torch.equal(nats, pipe.log_likelihood(images, condition=condition, generator=seed(), tolerance=1e-3))
    assert not torch.equal(nats, pipe.log_likelihood(images, generator=seed(), tolerance=1e-3))
    latents = pipe.encode(images, prompt=["a cat", "dog"], tolerance=1e-3)
    assert torch.equal(latents, pipe.encode(images, condition=condition, tolerance=1e-3))
    decoded = pipe.decode(latents, prompt=["a cat", "dog"], tolerance=1e-3, output_type="pt")
    assert torch.equal(decoded, pipe.decode(latents, condition=condition, tolerance=1e-3, output_type="pt"))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"prompt": 3}, TypeError, "`prompt` must be a string or a list of strings"),
        ({"prompt": []}, TypeError, "`prompt` must be a string or a list of strings, with at least one"),
        ({"prompt": ["a", None]}, TypeError, "`prompt` must be a string"),
        ({"prompt": ["a", "b"], "batch_size": 3}, ValueError, "contradictory"),
        (
            {"prompt": ["a", "b"], "negative_prompt": ["a"] * 3, "guidance_scale": 2.0},
            ValueError,
            "3 negative prompts for 2 prompts",
        ),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 6, 8)}, ValueError, "both given"),
        ({"prompt_embeds": torch.zeros(6, 8)}, ValueError, r"of shape \(prompts, tokens, width\)"),
        ({"prompt_embeds": torch.zeros(1, 6, 8), "guidance_scale": 2.0}, ValueError, "give both alike"),
        ({"num_images_per_prompt": 0, "prompt": "a"}, ValueError, "`num_images_per_prompt` is 0"),
        ({"strength": 0.5}, ValueError, "`strength` was given without an `image`"),
        ({"image": torch.zeros(1, 4, 8, 8).long(), "strength": 0.1}, ValueError, "`strength` 0.1 of 3 steps is less than one"),
        ({"image": torch.zeros(1, 4, 8, 8).long(), "mask_image": torch.full((8, 8), 2.0)}, ValueError, "from 0, which is kept"),
        ({"image": torch.zeros(2, 4, 8, 8).long(), "mask_image": torch.zeros(3, 8, 8)}, ValueError, "one for all images"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        draw(pipeline(), **kwargs)


def test_a_denoiser_of_other_vectors_is_refused():
    encoder = PromptEncoder(tiny_text.tokenizer(), tiny_text.clip(size=16))
    with pytest.raises(ValueError, match="takes texts as vectors of 8 numbers, but the encoder's have 16"):
        VDM(conditional_unet(), LinearSchedule(), prompt_encoder=encoder)
    with pytest.raises(ValueError, match="no `text_encoder` and `tokenizer` that fit"):
        draw(pipeline(None), "a cat")


def test_longer_texts_than_the_encoder_takes_are_counted():
    encoder = PromptEncoder(tiny_text.tokenizer(), tiny_text.bert(), max_sequence_length=3)
    assert encoder.num_cut(["a red cat", "a red cat a", "a dog", "a red blue blue cat"]) == 2
    pipe = pipeline(max_sequence_length=3)
    with pytest.warns(UserWarning, match="1 of 2 prompts have more than 3 tokens and are cut"):
        draw(pipe, ["a red cat a", "a dog"])
    with pytest.raises(ValueError, match="`max_sequence_length` is 7, but BertModel can take 1 to 6 tokens"):
        PromptEncoder(encoder.tokenizer, encoder.text_encoder, 7)


@pytest.mark.parametrize("scheduler", [None, DDPMScheduler, EulerDiscreteScheduler])
def test_sampling_begins_at_an_image(scheduler):
    pipe = pipeline()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    image = torch.randint(16, (2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    near = draw(pipe, "a cat", image=image, strength=0.02, num_inference_steps=100) * 15
    assert (near - image).abs().mean() < 1  # two steps at low noise leave a picture nearly as it is
    assert torch.equal(draw(pipe, "a cat", image=image, strength=1.0), draw(pipe, prompt="a cat", batch_size=2))


def test_what_the_mask_keeps_is_kept_exactly():
    pipe = pipeline()
    image = torch.randint(16, (2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    drawn = (draw(pipe, "a cat", image=image, mask_image=mask) * 15).round().long()
    assert torch.equal(drawn[..., 4:], image[..., 4:])
    assert not torch.equal(drawn[..., :4], image[..., :4])
    picture = PIL.Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    assert torch.equal(drawn, (draw(pipe, "a cat", image=image, mask_image=picture) * 15).round().long())


def test_images_of_a_latent_model_are_encoded():
    torch.manual_seed(0)
    pipe = VDMPipeline(
        conditional_unet(), VDMScheduler(), vae(), text_encoder=tiny_text.clip(), tokenizer=tiny_text.tokenizer()
    )
    pipe.set_progress_bar_config(disable=True)
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    images = pipe("a cat", image=picture, strength=0.5, num_inference_steps=4, mask_image=picture.convert("L")).images
    assert images[0].size == (16, 16)
    with pytest.raises(ValueError, match=r"`image` has the shape \(3, 32, 32\) and latents of \(4, 16, 16\), .* resize it"):
        pipe("a cat", image=picture.resize((32, 32)))


def test_a_callback_that_begins_guidance_compares_with_the_empty_text():
    pipe = pipeline()

    def begin(pipe: VDMPipeline, step: int, t: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = 3.0
        return {}

    begun = draw(pipe, "a cat", callback_on_step_end=begin)
    assert torch.equal(begun, draw(pipe, "a cat", negative_prompt="", callback_on_step_end=begin))
    assert not torch.equal(begun, draw(pipe, "a cat", negative_prompt="dog", callback_on_step_end=begin))


def test_without_text_no_encoder_of_transformers_is_imported():
    code = """
        import sys
        from vdm_diffusers import VDM, LinearSchedule, VDMUNet2DModel
        unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4)
        VDM(unet, LinearSchedule()).to_pipeline()(1, num_inference_steps=2)
        print(*sys.modules, sep="\\n")
    """
    modules = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True).stdout
    assert "vdm_diffusers.text_encoders" in modules
    for kind in ("bert", "clip", "t5"):
        assert f"transformers.models.{kind}." not in modules
