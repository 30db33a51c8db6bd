"""The page: what is on it, and what its buttons do. Gradio is imported here alone."""

import html
import io
from collections.abc import Callable, Iterator, Sequence
from functools import wraps

import gradio as gr
import PIL.Image
from torch import Tensor

from ..command_line import in_one_line
from ..figures import image_grid, save_bits_maps, to_picture
from ..guards.loading import reason_of
from ..pictures import in_words
from .bits import MAX_DRAWS, ROUNDS, Cost, cost_of
from .model import MAX_PROMPT, DemoModel
from .received import MAX_FILES, Received, receive
from .round_trip import TOLERANCES, encode_and_decode
from .sampling import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, SAMPLERS, sample


COLUMNS, MIN_SIDE = 4, 160
"""Of a picture on the page: images side by side, and the pixels of each."""
MAX_WAITING = 32
"""Visitors in the queue."""
KEPT_FOR = 3600
"""Seconds that images of visitors are kept."""
ERRORS = (ValueError, TypeError, FloatingPointError, OSError)
"""What the library says in a sentence."""
NO_IMAGES = "There are no images yet: drop some files here, or draw some under Sample first."
ONE_BY_ONE = {"concurrency_limit": 1, "concurrency_id": "model"}
"""There is one model."""


def page(model: DemoModel, title: str) -> gr.Blocks:
    """All of it; see [`demo`]."""
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(KEPT_FOR, KEPT_FOR)) as blocks:
        gr.Markdown(f"# {_plain(title)}\n\n{_description(model)}")
        drawn = gr.State(None, time_to_live=KEPT_FOR)
        with gr.Tab("Sample"):
            _sample_tab(model, drawn)
        for name, build in {"Bits": _bits_tab, "Encode and decode": _round_trip_tab}.items():
            with gr.Tab(name):
                build(model, drawn) if model.refusal is None else gr.Markdown(_plain(model.refusal))
    return blocks.queue(max_size=MAX_WAITING)


def _description(model: DemoModel) -> str:
    what = "images" if model.pipeline.vae is None else "latents of images"
    levels = "" if model.num_levels is None else f", {model.num_levels:,} levels"
    return f"A diffusion of {what}, {in_words(model.shape)}{levels}."


def _condition_inputs(model: DemoModel) -> list[gr.components.Component]:
    """What the denoiser may be told, in the order of [`DemoModel.condition`]."""
    inputs = []
    if model.classes is not None:
        choices = [(name, label) for label, name in enumerate(model.classes)]
        inputs.append(gr.Dropdown(choices, value=choices[-1][1], label="Class"))
    if model.takes_text:
        inputs.append(gr.Textbox(label="Prompt", max_length=MAX_PROMPT, lines=1))
    return inputs


def in_a_sentence(function: Callable) -> Callable:
    """A generator function whose refusals a visitor reads, instead of a traceback."""

    @wraps(function)
    def refusing(*args) -> Iterator[tuple]:
        try:
            yield from function(*args)
        except ERRORS as error:
            message = _plain(in_one_line(str(reason_of(error))))
            raise gr.Error(message, print_exception=False) from error

    return refusing


def _sample_tab(model: DemoModel, drawn: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            told = _condition_inputs(model)
            number = gr.Slider(1, MAX_IMAGES, 8, step=1, label="Number of images")
            sampler = gr.Dropdown(list(SAMPLERS), value="VDM", label="Sampler")
            steps = gr.Slider(1, MAX_STEPS, 50, step=1, label="Steps", info=_few_steps(model, "VDM"))
            eta = gr.Slider(0, 1, 1, step=0.05, label="Fresh noise (eta)", info="1: ancestral, 0: deterministic")
            guidance = gr.Slider(0, MAX_GUIDANCE, 1, step=0.1, label="Guidance", visible=model.takes_condition)
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", min_width=100)
                stop = gr.Button("Stop", min_width=100)
        with gr.Column(scale=2, min_width=280):
            status = gr.Markdown("The latents are shown on their way from noise to images.")
            picture = _picture("Images")

    @in_a_sentence
    def on_draw(number, sampler, steps, eta, guidance, seed, *told) -> Iterator[tuple]:
        condition = model.condition(number, told)
        guidance = guidance if model.takes_condition else 1
        eta = None if SAMPLERS[sampler].eta is None else eta
        for frame in sample(model.pipeline, condition, number, steps, sampler, eta, guidance, seed):
            levels = _levels(frame.images, model.num_levels) if frame.is_last else gr.skip()
            yield _grid(frame.images), _progress(frame.step, steps, frame.gamma, frame.is_last), levels

    def on_sampler(sampler) -> tuple:
        default = SAMPLERS[sampler].eta
        return gr.update(value=default or 0, visible=default is not None), gr.update(info=_few_steps(model, sampler))

    sampler.change(on_sampler, sampler, [eta, steps], queue=False, show_progress="hidden")
    inputs = [number, sampler, steps, eta, guidance, seed, *told]
    drawing = draw.click(on_draw, inputs, [picture, status, drawn], show_progress_on=status, **ONE_BY_ONE)
    stop.click(None, cancels=[drawing])


def _few_steps(model: DemoModel, sampler: str) -> str | None:
    """The numbers of steps that the model keeps timesteps for."""
    numbers = SAMPLERS[sampler].few_steps(model.pipeline)
    return f"The model keeps its best timesteps for {', '.join(map(str, numbers))}." if numbers else None


def _progress(step: int, steps: int, gamma: float, is_last: bool) -> str:
    level = f"{gamma:.1f}".replace("-inf", "−∞").replace("-", "−")
    what = "the images" if is_last else "the latents"
    return f"Step {step} of {steps}, γ = {level}: {what}."


def _bits_tab(model: DemoModel, drawn: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = _files()
            told = _condition_inputs(model)
            draws = gr.Slider(ROUNDS, MAX_DRAWS, 64, step=ROUNDS, label="Draws an image", info="More of them, smaller errors")
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
            count = gr.Button("Count the bits", variant="primary")
        with gr.Column(scale=2, min_width=280):
            words = gr.Markdown("How many bits the model needs for an image, and which pixels cost them.")
            picture = _picture("Where the bits are spent")
            table = gr.Markdown()

    @in_a_sentence
    def on_count(files, drawn, draws, seed, *told) -> Iterator[tuple]:
        received = _received(model, files, drawn)
        condition = model.condition(len(received.images), told)
        cost = cost_of(model.vdm, received.images, condition, draws, seed)
        figure = io.BytesIO()
        save_bits_maps(received.images / (model.num_levels - 1), cost.of_elements, figure, columns=4)
        mean = f"**{cost.mean:.3f} ± {cost.standard_error:.3f} bits/dim**, the bound of {_counted(received.images)}."
        yield _sentences(mean, received.remarks), PIL.Image.open(figure), _table(cost)

    count.click(on_count, [files, drawn, draws, seed, *told], [words, picture, table], show_progress_on=picture, **ONE_BY_ONE)


def _round_trip_tab(model: DemoModel, drawn: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = _files()
            told = _condition_inputs(model)
            tolerance = gr.Radio(
                [(f"{each:g}", each) for each in TOLERANCES], value=TOLERANCES[1], label="Tolerance of the ODE"
            )
            go = gr.Button("Encode and decode", variant="primary")
        with gr.Column(scale=2, min_width=280):
            words = gr.Markdown("Each image has one latent, which looks like noise, and from which it comes back.")
            pictures = []
            for heading in ("The images", "Their latents, from −3 to 3", "Decoded again"):
                gr.Markdown(f"#### {heading}")
                pictures.append(_picture(heading))

    @in_a_sentence
    def on_go(files, drawn, tolerance, *told) -> Iterator[tuple]:
        received = _received(model, files, drawn)
        condition = model.condition(len(received.images), told)
        trip = encode_and_decode(model.pipeline, received.images, condition, tolerance)
        last = model.num_levels - 1
        shown = (trip.images / last, (trip.latents / 3 + 1) / 2, trip.back / last)
        yield _sentences(str(trip), received.remarks), *map(_grid, shown)

    go.click(on_go, [files, drawn, tolerance, *told], [words, *pictures], show_progress_on=pictures, **ONE_BY_ONE)


def _files() -> gr.File:
    label = f"Images, up to {MAX_FILES}; without any, those drawn last"
    return gr.File(label=label, file_count="multiple", file_types=["image"], height=160)


def _received(model: DemoModel, paths: Sequence[str] | None, drawn: Tensor | None) -> Received:
    """The images of files or else those that were drawn last, as many as there may be files."""
    if paths:
        return receive(paths, model.shape, model.num_levels)
    if drawn is None:
        raise ValueError(NO_IMAGES)
    return Received(drawn[:MAX_FILES], [])


def _sentences(first: str, remarks: Sequence[str]) -> str:
    """What was found, and what was done to the files, in Markdown."""
    return "\n\n".join([first, *map(_plain, remarks)])


def _plain(text: str) -> str:
    """Text that is shown, where HTML would be read."""
    return html.escape(text, quote=False)


def _counted(images: Tensor) -> str:
    return "one image" if len(images) == 1 else f"these {len(images)} images"


def _table(cost: Cost) -> str:
    """The images in Markdown, a row each, if there are several."""
    if len(cost.bits_per_dim) == 1:
        return ""
    costs = enumerate(zip(cost.bits_per_dim.tolist(), cost.standard_errors.tolist()), start=1)
    rows = [f"| {number} | {bits:.3f} | {error:.3f} |" for number, (bits, error) in costs]
    return "\n".join(["| image | bits/dim | standard error |", "| --- | --- | --- |", *rows])


def _levels(images: Tensor, num_levels: int | None) -> Tensor | None:
    """Images in [0, 1] as integers, if the model has levels."""
    return None if num_levels is None else (images * (num_levels - 1)).round().int()


def _picture(name: str) -> gr.Image:
    """Where one is shown."""
    return gr.Image(label=name, show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"])


def _grid(images: Tensor) -> PIL.Image.Image:
    """Images `(B, C, H, W)` in [0, 1] as one picture, large enough to be seen."""
    pictures = [to_picture(image) for image in images.movedim(1, -1).numpy()]
    return image_grid(pictures, min(len(pictures), COLUMNS), MIN_SIDE)
