"""The pictures of training runs and evaluations. matplotlib is imported only to draw."""

import math
import os
from collections.abc import Mapping

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
    """Write images as a grid of that many columns, each enlarged by a whole factor to at least `min_size` pixels and framed."""
    _grid([_framed(image, min_size) for image in images], columns).save(path)


def save_labelled_grid(blocks: Mapping[str, list[PIL.Image.Image]], path: Path, min_size: int = 64) -> None:
    """Write images as [`save_image_grid`], block by block, each under its caption, as nearly a square as can be.

    A block is a row of the grid, several rows if it has many images, or a part of one if it has few.
    """
    largest = max(len(images) for images in blocks.values())
    side = math.ceil(math.sqrt(len(blocks) * largest))
    columns = min(largest, side)
    pictures = []
    for caption, images in blocks.items():
        framed = [_framed(image, min_size) for image in images]
        framed += [PIL.Image.new(framed[0].mode, framed[0].size)] * (largest - len(framed))
        pictures.append(_under(caption, _grid(framed, columns)))
    _grid(pictures, side // columns).save(path)


def _grid(pictures: list[PIL.Image.Image], columns: int) -> PIL.Image.Image:
    rows = math.ceil(len(pictures) / columns)
    empty = PIL.Image.new(pictures[0].mode, pictures[0].size)
    return make_image_grid(pictures + [empty] * (rows * columns - len(pictures)), rows, columns)


def _framed(image: PIL.Image.Image, min_size: int) -> PIL.Image.Image:
    return PIL.ImageOps.expand(_enlarge(image, min_size), border=4, fill="gray")


def _under(caption: str, picture: PIL.Image.Image, height: int = 18) -> PIL.Image.Image:
    """A picture under a line of text, which is cut to its width."""
    import matplotlib

    font = PIL.ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 12)
    room, line = picture.width - 8, caption[:500]
    while line and font.getlength(line) > room:
        line = line.removesuffix("…")[:-1] + "…" if len(line) > 1 else ""
    whole = PIL.Image.new("RGB", (picture.width, picture.height + height))
    PIL.ImageDraw.Draw(whole).text((4, 2), line, font=font)
    whole.paste(picture, (0, height))
    return whole


def _enlarge(image: PIL.Image.Image, min_size: int) -> PIL.Image.Image:
    factor = max(1, math.ceil(min_size / min(image.size)))
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


@torch.no_grad()
def save_forward_process(x: Tensor, schedule: NoiseSchedule, path: Path, num_times: int = 9, seed: int = 0) -> None:
    """Write `z_t ~ q(z_t|x)` at equidistant times, one row an image and one noise a row: the forward process.

    Args:
        x (`Tensor` of shape `(B, C, H, W)`): Data in (-1, 1), shown as by [`to_picture`]. Of data that are no images,
            nothing is written.
    """
    if x.ndim != 4:
        return
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(0, 1, num_times)
    z = torch.stack([gaussian.diffuse(x, eps, gamma) for gamma in schedule(times.to(schedule.device)).cpu()], dim=1)
    images = ((z.flatten(0, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    save_image_grid([to_picture(image) for image in images], path, columns=num_times)


def save_noise_schedule(records: list[dict], path: Path) -> None:
    """Plot gamma and ᾱ = alpha², the signal's part of the variance, over time: before learning, on the way, and after.

    Each record has a `step` and `gammas`, at equidistant times from 0 to 1.
    """
    figure, (left, right) = _subplots(1, 2, figsize=(9, 3.5))
    for index, record in enumerate(records):
        style = {"color": "lightgrey"}
        if index in (0, len(records) - 1):
            style = {"linestyle": "-" if index else "--", "label": f"step {record['step']}"}
        gamma = torch.tensor(record["gammas"])
        times = torch.linspace(0, 1, len(gamma))
        left.plot(times, gamma, **style)
        right.plot(times, gaussian.alpha(gamma) ** 2, **style)
    left.set(xlabel="t", ylabel=r"$\gamma(t) = -\log\,\mathrm{SNR}$")
    right.set(xlabel="t", ylabel=r"$\bar\alpha(t)$")
    left.legend()
    _save(figure, path)


def save_training_curve(training: list[dict], validation: list[dict], path: Path, unit: Unit = BITS_PER_DIM) -> None:
    """Plot the bound over the steps; each record has `step` and the unit's name, those of the validation `standard_error`."""
    figure, axes = _subplots(figsize=(6, 3.5))
    axes.plot([record["step"] for record in training], [record[unit.name] for record in training], label="training")
    axes.errorbar(
        [record["step"] for record in validation],
        [record[unit.name] for record in validation],
        [record["standard_error"] for record in validation],
        fmt="o-",
        label="validation (EMA)",
    )
    axes.set(xlabel="step", ylabel=unit.label)
    if unit is BITS_PER_DIM:
        lowest = min(record[unit.name] for record in training + validation)
        axes.set_ylim(0.9 * lowest, 3 * lowest)
    axes.legend()
    _save(figure, path)


def save_loss_profiles(profiles: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Plot the diffusion term over gamma, `½ E ||eps - eps_hat||²`, one [`LossProfile`] as a mapping for each name."""
    figure, axes = _subplots(figsize=(6, 3.5))
    for name, profile in profiles.items():
        edges = torch.tensor(profile["gammas"])
        (line,) = axes.step(edges, profile["bits_per_dim"] + profile["bits_per_dim"][-1:], where="post", label=name)
        middle = (edges[1:] + edges[:-1]) / 2
        axes.errorbar(middle, profile["bits_per_dim"], profile["standard_error"], fmt="none", color=line.get_color())
    axes.set(xlabel=r"$\gamma$", ylabel=r"bits/dim per unit of $\gamma$", yscale="log")
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
    above.set(ylabel=label, yscale="log", xlim=(gammas[0], gammas[-1]))
    for row, chain in enumerate(chains.values()):
        below.plot(chain, [row] * len(chain), "|", markersize=8)
    below.set(xlabel=r"$\gamma$", xlim=(gammas[0], gammas[-1]), ylim=(len(chains) - 0.5, -0.5))
    below.set_yticks(range(len(chains)), list(chains), fontsize=7)
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


def _subplots(*shape: int, figsize: tuple[float, float]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*shape)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
