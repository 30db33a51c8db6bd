"""The pictures of training runs and evaluations. matplotlib is imported only to draw."""

import math
import os
from collections.abc import Mapping
from functools import cache
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
from diffusers.utils import make_image_grid
from torch import Tensor

from . import gaussian
from .noise_schedules import NoiseSchedule
from .units import BITS_PER_DIM, Unit


Path = str | os.PathLike


def to_picture(image: np.ndarray) -> PIL.Image.Image:
    """An image `(H, W, C)` in [0, 1] as a picture, whatever its number of channels.

    One channel is grey and three are colours. Four are colours and, beside them, a grey panel; of any other number each
    channel is a grey panel, in reading order.
    """
    levels = (image * 255).round().clip(0, 255).astype(np.uint8)
    channels = levels.shape[-1]
    starts = {1: [0], 3: [0], 4: [0, 3]}.get(channels, list(range(channels)))
    panels = [levels[..., start:end] for start, end in zip(starts, [*starts[1:], channels])]
    pictures = [PIL.Image.fromarray(panel[..., 0] if panel.shape[-1] == 1 else panel) for panel in panels]
    return pictures[0] if len(pictures) == 1 else _side_by_side(pictures)


def _side_by_side(pictures: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Pictures in reading order as nearly a square, a grey pixel apart."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (side + 1 for side in pictures[0].size)
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    whole = PIL.Image.new(mode, (columns * width - 1, rows * height - 1), "gray")
    for i, picture in enumerate(pictures):
        whole.paste(picture.convert(mode), (i % columns * width, i // columns * height))
    return whole


def save_image_grid(images: list[PIL.Image.Image], path: Path, columns: int, min_size: int = 64) -> None:
    """Write images as [`image_grid`] arranges them."""
    image_grid(images, columns, min_size).save(path)


def image_grid(images: list[PIL.Image.Image], columns: int, min_size: int = 64) -> PIL.Image.Image:
    """A grid of that many columns, each image enlarged by a whole factor to at least `min_size` pixels and framed."""
    return _grid([_framed(image, min_size) for image in images], columns)


def save_labelled_grid(blocks: Mapping[str, list[PIL.Image.Image]], path: Path, min_size: int = 64) -> None:
    """Write images as [`save_image_grid`], block by block, each under its caption, as nearly a square as can be.

    A block is a row of the grid, several rows if it has many images, or a part of one if it has few. A caption has as many
    lines as it needs, three at most.
    """
    largest = max(len(images) for images in blocks.values())
    side = math.ceil(math.sqrt(len(blocks) * largest))
    columns = min(largest, side)
    pictures = []
    for images in blocks.values():
        framed = [_framed(image, min_size) for image in images]
        framed += [PIL.Image.new(framed[0].mode, framed[0].size)] * (largest - len(framed))
        pictures.append(_grid(framed, columns))
    captions = [_lines(caption, pictures[0].width) for caption in blocks]
    height = max(map(len, captions))
    captioned = [_captioned(picture, lines, above=height) for picture, lines in zip(pictures, captions)]
    _grid(captioned, side // columns).save(path)


def _grid(pictures: list[PIL.Image.Image], columns: int) -> PIL.Image.Image:
    rows = math.ceil(len(pictures) / columns)
    empty = PIL.Image.new(pictures[0].mode, pictures[0].size)
    return make_image_grid(pictures + [empty] * (rows * columns - len(pictures)), rows, columns)


def _framed(image: PIL.Image.Image, min_size: int) -> PIL.Image.Image:
    return PIL.ImageOps.expand(_enlarge(image, min_size), border=4, fill="gray")


MARGIN, LINE = 4, 14
"""Of captions, in pixels."""


def _captioned(picture: PIL.Image.Image, lines: list[str], above: int = 0, below: int = 0) -> PIL.Image.Image:
    """A picture with lines of text in a room for so many of them above it or below."""
    top, bottom = (MARGIN + LINE * room if room else 0 for room in (above, below))
    whole = PIL.Image.new("RGB", (picture.width, top + picture.height + bottom))
    start = 2 + (LINE * (above - len(lines)) if above else picture.height)
    PIL.ImageDraw.Draw(whole).multiline_text((MARGIN, start), "\n".join(lines), font=_font(), spacing=LINE - 12)
    whole.paste(picture, (0, top))
    return whole


def _lines(caption: str, width: int, most: int = 3) -> list[str]:
    """A caption in lines for a picture of that width, its words whole where they fit; what doesn't fit is cut."""
    room, lines = width - 2 * MARGIN, [""]
    for word in caption[:500].split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or len(lines) == most or _font().getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line, room) for line in lines]


def _cut(line: str, room: int) -> str:
    while line and _font().getlength(line) > room:
        line = line.removesuffix("…")[:-1] + "…" if len(line) > 1 else ""
    return line


@cache
def _font() -> PIL.ImageFont.FreeTypeFont:
    import matplotlib

    return PIL.ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 12)


def _enlarge(image: PIL.Image.Image, min_size: int) -> PIL.Image.Image:
    factor = max(1, math.ceil(min_size / min(image.size)))
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


@torch.no_grad()
def save_forward_process(x: Tensor, schedule: NoiseSchedule, path: Path, num_times: int = 9, seed: int = 0) -> None:
    """Write `z_t ~ q(z_t|x)` at equidistant times, one row an image and one noise a row: the forward process.

    Each frame has its gamma beneath it.

    Args:
        x (`Tensor` of shape `(B, C, H, W)`): Data in (-1, 1), shown as by [`to_picture`]. Of data that are no images,
            nothing is written.
    """
    if x.ndim != 4:
        return
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(0, 1, num_times)
    gammas = schedule(times.to(schedule.device)).cpu()
    z = torch.stack([gaussian.diffuse(x, eps, gamma) for gamma in gammas], dim=1)
    images = ((z.flatten(0, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    captions = [f"γ = {round(gamma, 1) + 0.0:.1f}".replace("-", "−") for gamma in gammas.tolist()] * len(x)
    frames = [_framed(to_picture(image), 64) for image in images]
    grid = _grid([_captioned(frame, [caption], below=1) for frame, caption in zip(frames, captions)], columns=num_times)
    title = _lines("From data to noise. Beneath each frame its noise level, γ = −log(signal-to-noise ratio)", grid.width)
    _captioned(grid, title, above=len(title)).save(path)


def save_noise_schedule(records: list[dict], path: Path) -> None:
    """Plot gamma and ᾱ = alpha², the signal's part of the variance, over time: before learning, on the way, and after.

    Each record has a `step` and `gammas`, at equidistant times from 0 to 1.
    """
    figure, (left, right) = _subplots(1, 2, figsize=(9, 3.5))
    for index, record in enumerate(records):
        style = {"color": "lightgrey", "label": "in between" if index == 1 else None}
        if index in (0, len(records) - 1):
            label = f"after {record['step']} steps" if record["step"] else "before training"
            style = {"linestyle": "-" if index else "--", "label": label}
        gamma = torch.tensor(record["gammas"])
        times = torch.linspace(0, 1, len(gamma))
        left.plot(times, gamma, **style)
        right.plot(times, gaussian.alpha(gamma) ** 2, **style)
    left.set(title="Noise level", ylabel=r"$\gamma(t) = -\log\,\mathrm{SNR}$")
    right.set(title="What is left of the data", ylabel=r"$\bar\alpha(t)$, share of the variance")
    for axes in (left, right):
        axes.set_xlabel("time t, from data (0) to noise (1)")
    left.legend()
    _save(figure, path)


def save_training_curve(training: list[dict], validation: list[dict], path: Path, unit: Unit = BITS_PER_DIM) -> None:
    """Plot the bound over the steps; each record has `step` and the unit's name, those of the validation `standard_error`.

    The axis spans what there is after the first tenth of the steps, in which the bound falls from far above.
    """
    figure, axes = _subplots(figsize=(6, 3.5))
    last = max(record["step"] for record in training + validation)
    axes.plot(*_points(training, unit), label="training images")
    errors = [record["standard_error"] for record in validation]
    axes.errorbar(*_points(validation, unit), errors, fmt="o-", label="held-out images, averaged weights (± standard error)")
    axes.set(title="The bound during training", xlabel="training step", ylabel=f"{unit.label} (lower is better)")
    axes.set_xlim(0, last)
    settled = [
        (record["step"], record[unit.name] + sign * record.get("standard_error", 0))
        for record in training + validation
        for sign in (-1, 1)
        if record["step"] >= last / 10
    ]
    axes.ignore_existing_data_limits = True
    axes.update_datalim(settled)
    axes.autoscale_view(scalex=False)
    axes.legend()
    _save(figure, path)


def _points(records: list[dict], unit: Unit) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record[unit.name] for record in records]


def save_loss_profiles(profiles: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Plot the diffusion term over gamma, `½ E ||eps - eps_hat||²`, one [`LossProfile`] as a mapping for each name."""
    figure, axes = _subplots(figsize=(6, 3.5))
    for name, profile in profiles.items():
        edges = torch.tensor(profile["gammas"])
        (line,) = axes.step(edges, profile["bits_per_dim"] + profile["bits_per_dim"][-1:], where="post", label=name)
        middle = (edges[1:] + edges[:-1]) / 2
        axes.errorbar(middle, profile["bits_per_dim"], profile["standard_error"], fmt="none", color=line.get_color())
    axes.set(title="Where the bits go: the diffusion term over the noise level", yscale="log")
    axes.set(xlabel=r"$\gamma = -\log\,\mathrm{SNR}$, from data to noise", ylabel=r"bits/dim per unit of $\gamma$")
    axes.legend()
    _save(figure, path)


def save_chains(
    gammas: list[float],
    errors: list[float],
    chains: Mapping[str, list[float]],
    path: Path,
    label: str = r"$E(\epsilon - \hat\epsilon)^2$",
) -> None:
    """Plot errors over gamma, by default a denoiser's, and under them the gammas of chains by their names, a row each."""
    figure, (above, below) = _subplots(2, 1, figsize=(8, 3 + 0.25 * len(chains)))
    above.plot(gammas, errors)
    above.set(title="Error at each noise level", ylabel=label, yscale="log", xlim=(gammas[0], gammas[-1]))
    for row, chain in enumerate(chains.values()):
        below.plot(chain, [row] * len(chain), "|", markersize=8)
    below.set(title="Noise levels that each chain visits", xlabel=r"$\gamma = -\log\,\mathrm{SNR}$, from data to noise")
    below.set(xlim=(gammas[0], gammas[-1]), ylim=(len(chains) - 0.5, -0.5))
    below.set_yticks(range(len(chains)), list(chains), fontsize=7)
    _save(figure, path)


def save_bits_maps(images: Tensor, bits: Tensor, path: Path | BinaryIO, unit: Unit = BITS_PER_DIM, columns: int = 8) -> None:
    """Plot images and, beneath each, how many bits each of its pixels costs, all on one scale.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`): In [0, 1], shown as by [`to_picture`].
        bits (`Tensor` of shape `(B, C, H, W)`): Of each element, see [`bits_per_pixel`]; the channels are added up.
        path: A file's name, or a file that is open for writing bytes.
        unit ([`Unit`]): That of the model's bound: `NATS_PER_DIM` if `bits` are nats.
        columns (`int`): Images side by side.
    """
    columns, name = min(columns, len(images)), unit.label.partition("/")[0]
    rows = math.ceil(len(images) / columns)
    figure, axes = _subplots(2 * rows, columns, figsize=(1.5 + 1.7 * columns, 0.5 + 3.9 * rows), squeeze=False)
    maps = bits.sum(1).cpu()
    scale = {"vmin": min(0.0, maps.min().item()), "vmax": maps.max().item()}
    for image, of_elements, of_pixels, above, below in zip(images.cpu(), bits, maps, axes[::2].flat, axes[1::2].flat):
        above.imshow(to_picture(image.permute(1, 2, 0).numpy()), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        shown = below.imshow(of_pixels, interpolation="nearest", **scale)
        below.set_xlabel(f"{of_elements.sum():.0f} {name}\n{of_elements.mean():.2f} {unit.label}")
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[], frame_on=panel.has_data())
    for above, below in zip(axes[::2, 0], axes[1::2, 0]):
        above.set_ylabel("images")
        below.set_ylabel(f"{name} of each pixel")
    figure.colorbar(shown, ax=axes, label=f"{name} per pixel")
    figure.suptitle(f"Where the model spends its {name}")
    _save(figure, path)


def check_figure_path(path: Path) -> None:
    """Raise `ValueError` unless a plot can be written to a file of that name."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("Plots need matplotlib: `pip install matplotlib`.") from error
    suffix, known = os.path.splitext(path)[1], sorted(Figure().canvas.get_supported_filetypes())
    if suffix[1:].lower() not in known:
        raise ValueError(f"{str(path)!r} ends in {suffix!r}, but a plot is written as one of {', '.join(known)}.")


def _subplots(*shape: int, figsize: tuple[float, float], squeeze: bool = True):
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*shape, squeeze=squeeze)


def _save(figure, path: Path | BinaryIO) -> None:
    figure.savefig(path, dpi=120)
