"""The demo: what its buttons do against the pipeline's own calls, what it refuses, and a visit in a browser."""

import shutil
import sys
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet1DModel
from scipy.stats import sem
from tiny_pipelines import conditional_unet, unet, vae
from tiny_text import clip, tokenizer

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.demo import __main__ as command
from vdm_diffusers.demo import demo, received
from vdm_diffusers.demo.bits import ROUNDS, cost_of
from vdm_diffusers.demo.model import DemoModel
from vdm_diffusers.demo.received import receive
from vdm_diffusers.demo.round_trip import encode_and_decode
from vdm_diffusers.demo.sampling import MAX_FRAMES, SAMPLERS, sample
from vdm_diffusers.scheduling.any_timesteps import keep_timesteps


GAMMAS = (-8.0, 5.0)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def digits(**options) -> VDMPipeline:
    """Of 8×8 images with 17 levels; untrained."""
    torch.manual_seed(0)
    denoiser = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, fourier_powers=(2,), **options)
    torch.nn.init.normal_(denoiser.conv_out.weight, std=0.02)
    names = {"class_names": ["cat", "dog"]} if options else {}
    return VDM(denoiser, LinearSchedule(*GAMMAS), num_levels=17, **names).to_pipeline()


def of_text() -> VDMPipeline:
    scheduler = VDMScheduler(gamma_min=GAMMAS[0], gamma_max=GAMMAS[1])
    return VDMPipeline(conditional_unet(3, 3), scheduler, text_encoder=clip(), tokenizer=tokenizer())


def levels(number: int) -> torch.Tensor:
    return torch.randint(0, 17, (number, 1, 8, 8), generator=torch.Generator().manual_seed(1)).int()


def from_seed(pipe: VDMPipeline, **call) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(generator=torch.Generator().manual_seed(5), output_type="pt", **call).images


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_those_of_the_pipeline(name):
    model = DemoModel(digits())
    *frames, last = sample(model.pipeline, {}, 3, 6, name, seed=5)
    pipe, latents = digits(), []
    pipe.scheduler = SAMPLERS[name].scheduler.from_config(pipe.scheduler.config)
    images = from_seed(
        pipe,
        batch_size=3,
        num_inference_steps=6,
        callback_on_step_end=lambda pipe, step, t, tensors: latents.append(tensors["latents"]),
    )
    assert torch.equal(last.images, images) and last.is_last
    assert [frame.step for frame in (*frames, last)] == [1, 2, 3, 4, 5, 6]
    for frame, expected in zip(frames, latents):
        torch.testing.assert_close(frame.images, (expected.clamp(-1, 1) + 1) / 2)
    if name == "VDM":  # whose schedule is linear
        assert [frame.gamma for frame in (*frames, last)] == pytest.approx([5 - 13 / 6 * step for step in range(1, 7)])
    else:
        alphas_cumprod = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[1:]].double()
        expected = torch.log(1 - alphas_cumprod) - torch.log(alphas_cumprod)
        assert [frame.gamma for frame in frames] == pytest.approx(expected.tolist(), abs=0.25)
        assert last.gamma == -torch.inf
    assert isinstance(model.pipeline.scheduler, VDMScheduler)


def test_what_the_denoiser_is_told_is_what_the_pipeline_tells_it():
    model = DemoModel(digits(num_class_embeds=3))
    assert model.classes == ["0 cat", "1 dog", "none"] and model.takes_condition
    (*_, last) = sample(model.pipeline, model.condition(2, [1]), 2, 3, guidance_scale=2.5, seed=5)
    expected = from_seed(digits(num_class_embeds=3), class_labels=["dog"] * 2, num_inference_steps=3, guidance_scale=2.5)
    assert torch.equal(last.images, expected)
    with pytest.raises(ValueError, match="run from 7 to 7"):
        model.condition(2, [7])

    pipe = of_text()
    model = DemoModel(pipe)
    (*_, last) = sample(model.pipeline, model.condition(2, ["a red cat"]), 2, 3, eta=0.5, guidance_scale=2.5, seed=5)
    expected = from_seed(pipe, prompt=["a red cat"] * 2, num_inference_steps=3, guidance_scale=2.5, eta=0.5)
    assert torch.equal(last.images, expected)
    with pytest.raises(ValueError, match="600 characters"):
        model.condition(1, ["a" * 600])


def test_timesteps_for_few_steps_are_taken():
    pipe = digits()
    keep_timesteps(pipe.scheduler, [900.0, 100.0])
    assert SAMPLERS["VDM"].few_steps(pipe) == [2] and SAMPLERS["DDIM"].few_steps(pipe) == []
    first, last = sample(pipe, {}, 1, 2)
    assert first.gamma == pytest.approx(-8 + 13 * 0.1) and last.is_last


def test_many_steps_are_few_frames_and_end_when_nobody_looks():
    pipe, calls = digits(), []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    steps = [frame.step for frame in sample(pipe, {}, 1, 60)]
    assert len(steps) <= MAX_FRAMES + 1 and steps[-1] == len(calls) == 60
    calls.clear()
    frames = sample(pipe, {}, 1, 250)
    next(frames)
    frames.close()
    assert len(calls) < 250


def test_errors_of_the_denoiser_are_raised_where_frames_are_wanted():
    pipe = digits()
    pipe.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        list(sample(pipe, {}, 1, 2))


@pytest.mark.parametrize(
    ("beyond", "reason"),
    [
        ({"batch_size": 17}, "from 1 to 16"),
        ({"num_inference_steps": 251}, "from 1 to 250"),
        ({"num_inference_steps": 2.5}, "a whole number"),
        ({"eta": 1.5}, "from 0 to 1"),
        ({"guidance_scale": 21}, "from 0 to 20"),
        ({"seed": -1}, "at least 0"),
        ({"sampler": "Euler"}, "must be one of VDM, DPM-Solver"),
    ],
)
def test_what_a_visitor_may_ask_for_is_bounded(beyond, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        sample(digits(), {}, **beyond)


@pytest.mark.parametrize("options", [{}, {"num_class_embeds": 3}])
def test_bits_are_those_of_the_model(options):
    model, images = DemoModel(digits(**options)), levels(3)
    condition = model.condition(3, [1])
    cost = cost_of(model.vdm, images, condition, num_draws=ROUNDS, seed=5)
    generator, vdm = torch.Generator().manual_seed(5), VDM.from_pipeline(digits(**options)).eval()
    with torch.no_grad():
        labels = torch.tensor([1, 1, 1]) if options else None
        losses = [vdm(images, class_labels=labels, generator=generator) for _ in range(ROUNDS)]
    bits = torch.stack([loss.bits_per_dim for loss in losses]).double().numpy()
    np.testing.assert_allclose(cost.bits_per_dim, bits.mean(0), rtol=1e-5)
    np.testing.assert_allclose(cost.standard_errors, sem(bits), rtol=1e-4)
    assert (cost.mean, cost.standard_error) == pytest.approx((bits.mean(), sem(bits.mean(1))), rel=1e-4)
    np.testing.assert_allclose(cost.of_elements.flatten(1).mean(1), bits.mean(0), rtol=1e-5)


def test_more_draws_are_stratified():
    """Eight times as many, were they independent, would have √⅛ = 0.35 of the error."""
    model, images = DemoModel(digits()), levels(1)
    cost = partial(cost_of, model.vdm, images, {}, seed=0)
    assert cost(num_draws=8 * ROUNDS).standard_error < 0.2 * cost(num_draws=ROUNDS).standard_error
    for number, reason in ((12, "multiple of 8"), (520, "from 8 to 512")):
        with pytest.raises(ValueError, match=reason):
            cost(num_draws=number)


def test_encoding_and_decoding_is_that_of_the_pipeline():
    pipe, images = digits(), levels(2)
    trip = encode_and_decode(pipe, images, {}, tolerance=1e-3)
    assert torch.equal(trip.latents, pipe.encode(images, tolerance=1e-3))
    shown = pipe.decode(trip.latents, tolerance=1e-3)
    assert np.array_equal(np.stack(shown), (trip.back[:, 0] * 255 / 16).round().byte())
    assert torch.equal(encode_and_decode(pipe, images, {}).back, images)
    trip.back.copy_(images)
    assert "All 128 numbers came back" in str(trip)
    trip.back[0, 0, 0, 0] += 3
    assert "1 of 128 numbers came back as another level, by 3 at most" in str(trip)
    with pytest.raises(ValueError, match="must be one of 0.001"):
        encode_and_decode(pipe, images, {}, tolerance=1e-9)


def test_pictures_as_the_pipeline_shows_them_are_its_integers(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for image, path in zip(levels(2), paths):
        PIL.Image.fromarray((image[0] * 255 / 16).round().byte().numpy()).save(path)
    images, remarks = receive(paths, (1, 8, 8), 17)
    assert torch.equal(images, levels(2)) and remarks == []


@pytest.mark.parametrize(
    ("mode", "size", "shape", "remark"),
    [
        ("RGB", (8, 8), (1, 8, 8), "converted to L"),
        ("P", (8, 8), (3, 8, 8), "converted to RGB"),
        ("L", (30, 20), (1, 8, 8), "resized to 8 pixels on the shorter side, cropped to the middle 8×8"),
        ("RGBA", (20, 30), (3, 8, 8), "converted to RGB, resized to 8 pixels on the shorter side, cropped to the middle 8×8"),
    ],
)
def test_other_pictures_become_images_of_the_model(mode, size, shape, remark, tmp_path):
    """As Pillow makes them."""
    picture = PIL.Image.effect_noise(size, 80).convert(mode)
    picture.save(tmp_path / "a.png")
    images, remarks = receive([tmp_path / "a.png"], shape, 256)
    expected = picture.convert("RGBA") if mode == "P" else picture
    expected = expected.convert("L" if shape[0] == 1 else "RGB")
    if size != (8, 8):
        width, height = (round(8 * side / 20) for side in size)
        left, top = (width - 8) / 2, (height - 8) / 2
        expected = expected.resize((width, height), PIL.Image.Resampling.BILINEAR).crop((left, top, left + 8, top + 8))
    assert np.array_equal(images[0].movedim(0, -1).squeeze(), np.asarray(expected))
    assert remarks == [f"a.png was {remark}."]
    _, remarks = receive([tmp_path / "a.png"], shape, 4)
    assert remarks == [f"a.png was {remark}, rounded from 256 levels to 4."]


def test_files_that_are_no_images_of_the_model_are_refused(tmp_path, monkeypatch):
    def refusal(*names: str, shape: tuple[int, int, int] = (1, 8, 8)) -> str:
        with pytest.raises(ValueError) as refused:
            receive([tmp_path / name for name in names], shape, 256)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    PIL.Image.effect_noise((8, 8), 80).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    PIL.Image.new("1", (4100, 4100)).save(tmp_path / "large.png")
    assert "no image" in refusal("text.png") and "cut.png: It can't be read" in refusal("cut.png")
    assert "4100×4100 pixels" in refusal("large.png")
    assert "9 files, but at most 8" in refusal(*["a.png"] * 9)
    assert "can't be made one of 1×8×6" in refusal("a.png", shape=(1, 8, 6))
    assert "can't be made one of 5×8×8" in refusal("a.png", shape=(5, 8, 8))
    monkeypatch.setattr(received, "MAX_BYTES", 50)
    assert "make it smaller" in refusal("a.png")


def test_models_that_have_no_bits_say_why():
    stock = DemoModel(DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=10, beta_end=0.4)))
    assert stock.refusal is None and not stock.takes_condition
    assert len(list(sample(stock.pipeline, {}, 1, 2))) == 2
    latent = VDMPipeline(unet(4, 4), VDMScheduler(), vae())
    assert "diffuses the latents" in DemoModel(latent).refusal
    first, last = sample(latent, {}, 2, 2)
    assert first.images.shape == last.images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="makes samples of 1×8, but the demo shows images"):
        DemoModel(VDMPipeline(UNet1DModel(8, in_channels=1, out_channels=1), VDMScheduler()))


def test_without_gradio_the_extra_is_named(tmp_path, monkeypatch):
    digits().save_pretrained(tmp_path / "model")
    for name in [name for name in sys.modules if name == "vdm_diffusers.demo.page"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--pretrained_model_name_or_path", str(tmp_path / "model")])
    assert "pip install 'vdm-diffusers[demo]'" in stopped.value.code and "\n" not in stopped.value.code


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nowhere/at all"], "could not be loaded"),
        (["model", "--device", "toaster"], "`--device` is 'toaster'"),
        (["model", "--server_port", "70000"], "from 1 to 65,535"),
    ],
)
def test_the_command_refuses_in_a_sentence(options, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits().save_pretrained("model")
    with pytest.raises(SystemExit) as stopped:
        command.main(["--pretrained_model_name_or_path", *options])
    assert reason in stopped.value.code and "\n" not in stopped.value.code


def test_the_command_serves_this_machine_alone(tmp_path, monkeypatch, capsys):
    gradio = pytest.importorskip("gradio")
    digits().save_pretrained(tmp_path / "model")
    launched = {}

    def launch(blocks, **options) -> tuple:
        launched.update(options, analytics_enabled=blocks.analytics_enabled)
        return None, "http://127.0.0.1:1234/", None

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda blocks: None)
    command.main(["--pretrained_model_name_or_path", str(tmp_path / "model"), "--server_port", "1234"])
    expected = {"server_name": "127.0.0.1", "server_port": 1234, "share": False, "analytics_enabled": False}
    assert launched.items() >= expected.items() and "http://127.0.0.1:1234/" in capsys.readouterr().out


def test_refusals_are_shown_as_a_sentence():
    gradio = pytest.importorskip("gradio")
    from vdm_diffusers.demo.page import in_a_sentence

    @in_a_sentence
    def failing():
        yield 1
        raise ValueError("<b>no</b>\nTraceback")

    values = failing()
    assert next(values) == 1
    with pytest.raises(gradio.Error) as shown:
        next(values)
    assert shown.value.message == "&lt;b&gt;no&lt;/b&gt;."


def test_events_wait_for_one_model():
    pytest.importorskip("gradio")
    blocks = demo(digits(num_class_embeds=3), "<i>title")
    limits = {(fn.concurrency_id, fn.concurrency_limit) for fn in blocks.fns.values() if fn.concurrency_id == "model"}
    assert limits == {("model", 1)} and "&lt;i&gt;title" in str(blocks.get_config_file())
    labels = [block.label for block in blocks.blocks.values() if hasattr(block, "label")]
    assert labels.count("Class") == 3 and "Prompt" not in labels


@pytest.fixture
def visit(tmp_path, monkeypatch):
    """A browser's page of the demo of a pipeline, which fails the test for errors and for what it asks of others."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed, none of {', '.join(BROWSERS)}")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    flags = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync"]
    blocks, errors, hosts = demo(digits(num_class_embeds=3), "digits"), [], set()
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, args=flags, chromium_sandbox=False)
            page = browser.new_page()
            page.on("request", lambda request: hosts.add(request.url.partition("://")[2].partition(":")[0]))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            yield page
            browser.close()
    finally:
        blocks.close()
    assert errors == [] and hosts <= {"127.0.0.1", "localhost", ""}


def test_a_visit(visit, tmp_path):
    """Through all tabs: a refusal, latents and images, bits of the images drawn, then of a file, and the way there and back."""

    def press(button: str) -> None:
        visit.get_by_role("button", name=button, exact=True).click()

    def shown(text: str) -> str:
        found = visit.locator(".prose:visible, .toast-body:visible").filter(has_text=text).first
        found.wait_for(timeout=15_000)
        return found.inner_text()

    def picture() -> tuple[int, int]:
        image = visit.locator("img[src*='file=']:visible").first
        image.wait_for()
        image.evaluate("image => image.decode()")
        return tuple(image.evaluate("image => [image.naturalWidth, image.naturalHeight]"))

    visit.get_by_role("tab", name="Bits").click()
    press("Count the bits")
    assert "no images yet" in shown("images yet")

    visit.get_by_role("tab", name="Sample").click()
    visit.get_by_label("Class").first.click()
    visit.get_by_role("option", name="1 dog").click()
    visit.get_by_label("Sampler").click()
    visit.get_by_role("option", name="UniPC").click()
    visit.get_by_text("Fresh noise").wait_for(state="hidden")
    press("Draw")
    assert "Step 50 of 50, γ = −∞" in shown("the images.")
    assert picture() == (4 * 168, 2 * 168)

    visit.get_by_role("tab", name="Bits").click()
    press("Count the bits")
    assert "bits/dim, the bound of these 8 images" in shown("the bound of")
    assert visit.locator("table:visible tr").count() == 1 + 8
    PIL.Image.effect_noise((30, 20), 80).convert("RGB").save(tmp_path / "noise.png")
    visit.locator("input[type=file]").first.set_input_files(tmp_path / "noise.png")
    visit.get_by_text("noise").first.wait_for()
    press("Count the bits")
    assert "noise.png was converted to L, resized to 8 pixels" in shown("of one image")

    visit.get_by_role("tab", name="Encode and decode").click()
    press("Encode and decode")
    assert "of 512 numbers" in shown("came back") or "All 512" in shown("came back")
    assert visit.locator("img[src*='file=']:visible").count() == 3
