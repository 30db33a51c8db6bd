"""Bits per dimension of a model on a data set.

python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-digits
python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-cifar10 --dataset_name cifar10 --split test
accelerate launch -m vdm_diffusers.evaluate --pretrained_model_name_or_path google/ddpm-cifar10-32 --dataset_name cifar10 ...
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import diffusers
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline
from torch.utils.data import Subset

from .data import ImageData, load_images
from .ddpm_bound import DDPM, VARIANCE_TYPES, ddpm_bound
from .dequantization import DEQUANTIZATIONS
from .figures import check_figure_path, save_loss_profiles
from .likelihood import variational_bound
from .ode_likelihood import TRACES, ode_likelihood
from .pixel_space import check_images, check_pixel_space
from .vdm import VDM


CONTINUOUS = "continuous"
ESTIMATORS = ("vlb", "ode", "ddpm")
OWN_NAMES = {
    "`--train_data_dir`": "`--data_dir`",
    "`--validation_split`": "`--split`",
    "`--num_levels`": "the model's `num_levels`",
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # which only `Accelerator` reads by itself
    try:
        result = evaluate(options, processes)
    except ValueError as error:  # which all processes raise
        raise SystemExit(f"evaluate.py: {error}" if processes.is_main_process else 1) from error
    except FloatingPointError as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    if not processes.is_main_process:
        return
    print(table(result))
    if options.output_path is not None:
        options.output_path.write_text(json.dumps(result, indent=2) + "\n")
    if options.figure_path is not None:
        profiles = {_name(row): row["profile"] for row in result["results"] if "profile" in row}
        save_loss_profiles(profiles, options.figure_path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vdm_diffusers.evaluate",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="A saved pipeline, folder or Hub name.")
    parser.add_argument("--dataset_name", help="A data set on the Hub.")
    parser.add_argument("--dataset_config_name", help="Its configuration, if it has several.")
    parser.add_argument("--data_dir", help="A folder of images or parquet files. Without either: the embedded digits.")
    parser.add_argument("--image_column", help="The column of images. Default: the only one, or image.")
    parser.add_argument("--label_column", help="The column of class labels, for a class-conditional model.")
    parser.add_argument("--split", help="The split to evaluate. Default: validation or test.")
    parser.add_argument("--max_images", type=int, help="Only so many images, the first. Default: all.")
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=ESTIMATORS,
        default=["vlb"],
        help="Variational bound, likelihood by the ODE, DDPM's bound.",
    )
    parser.add_argument(
        "--num_timesteps",
        type=_num_timesteps,
        nargs="+",
        default=[None],
        metavar="T",
        help=f"Numbers of steps of the bound, or '{CONTINUOUS}'. Default: {CONTINUOUS}.",
    )
    parser.add_argument(
        "--dequantization",
        choices=tuple(DEQUANTIZATIONS),
        default="decoder",
        help="How the ODE's latents are drawn and read.",
    )
    parser.add_argument("--num_importance_samples", type=int, default=1, help="Draws of that noise for one value of the ODE.")
    parser.add_argument("--trace", choices=TRACES, default="rademacher", help="The ODE's divergence: by a probe, or exact.")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="Of the ODE's solver.")
    parser.add_argument(
        "--variance_type",
        choices=VARIANCE_TYPES,
        nargs="+",
        default=[None],
        help="DDPM's. Default: that of the pipeline's scheduler.",
    )
    parser.add_argument(
        "--clip_denoised",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Clip DDPM's estimate of the image, as in published figures.",
    )
    parser.add_argument("--num_indices", type=int, help="Terms of DDPM's chain to draw for an image. Default: all.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="Of the denoiser. In float64 also the ODE's figure is the same for every batch size, to 1e-5 and better.",
    )
    parser.add_argument("--num_repeats", type=int, default=4, help="Times and noises an image.")
    parser.add_argument("--batch_size", type=int, default=128, help="Images a batch; the result does not depend on it.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draws.")
    parser.add_argument("--output_path", type=Path, help="A JSON file for the result.")
    parser.add_argument("--figure_path", type=Path, help="A picture of the loss over gamma.")
    return parser


def _num_timesteps(text: str) -> int | None:
    if text == CONTINUOUS:
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps nor {CONTINUOUS!r}.")
    return int(text)


def evaluate(options: argparse.Namespace, processes: PartialState) -> dict:
    """All that was asked for, as it goes into the JSON; `ValueError` if the images are not what the model is one of."""
    _check_options(options)
    pipeline = load_pipeline(options.pretrained_model_name_or_path)
    if options.dtype == "float64":
        pipeline.unet.double()
    data = load_data(options, pipeline.config.get("num_levels", 256))
    check_images(pipeline, data)
    images = data.validation
    if options.max_images is not None:
        images = Subset(images, range(min(len(images), options.max_images)))
    shared = {
        "num_repeats": options.num_repeats,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": processes.device,
        "processes": processes,
    }
    return {
        "model": options.pretrained_model_name_or_path,
        "data": {"name": data.name, "split": options.split, "shape": list(data.shape), "num_levels": data.num_levels},
        "num_images": len(images),
        "num_repeats": options.num_repeats,
        "num_processes": processes.num_processes,
        "seed": options.seed,
        "dtype": options.dtype,
        "versions": _versions(),
        "results": [
            row | measure(images, description=_name(row), **shared).record()
            for estimator in options.estimators
            for row, measure in MEASUREMENTS[estimator](pipeline, options, processes.device)
        ],
    }


Measurements = Iterator[tuple[dict, Callable]]
"""What says which measurement it is, and the function that makes it, but for the images and what all have in common."""


def _bounds(pipeline: DiffusionPipeline, options: argparse.Namespace, device: torch.device) -> Measurements:
    for num_timesteps in options.num_timesteps:
        vdm = VDM.from_pipeline(pipeline, num_timesteps=num_timesteps).to(device)
        yield {"estimator": "vlb", "num_timesteps": num_timesteps}, partial(variational_bound, vdm)


def _ode(pipeline: DiffusionPipeline, options: argparse.Namespace, device: torch.device) -> Measurements:
    settings = {name: getattr(options, name) for name in ("dequantization", "num_importance_samples", "trace", "tolerance")}
    yield {"estimator": "ode"} | settings, partial(ode_likelihood, VDM.from_pipeline(pipeline).to(device), **settings)


def _ddpm(pipeline: DiffusionPipeline, options: argparse.Namespace, device: torch.device) -> Measurements:
    for variance_type in options.variance_type:
        ddpm = DDPM.from_pipeline(pipeline, variance_type, options.clip_denoised).to(device)
        settings = {"num_indices": options.num_indices}
        row = {"estimator": "ddpm", "variance_type": ddpm.variance_type, "clip_denoised": ddpm.clip_denoised}
        yield row | settings, partial(ddpm_bound, ddpm, **settings)


MEASUREMENTS = {"vlb": _bounds, "ode": _ode, "ddpm": _ddpm}


def _versions() -> dict[str, str]:
    from . import __version__

    own = {"vdm_diffusers": __version__, "python": platform.python_version()}
    return own | {module.__name__: module.__version__ for module in (diffusers, torch)}


def load_pipeline(name: str) -> DiffusionPipeline:
    """The pipeline of a folder or of the Hub, if it has a likelihood of pixels."""
    try:
        pipeline = DiffusionPipeline.from_pretrained(name)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`--pretrained_model_name_or_path` {name!r} could not be loaded: {reason} Give the folder of a saved pipeline, or"
            " its name on the Hub."
        ) from error
    check_pixel_space(pipeline)
    return pipeline


def load_data(options: argparse.Namespace, num_levels: int) -> ImageData:
    """The images that the options name."""
    try:
        return load_images(
            dataset_name=options.dataset_name,
            dataset_config_name=options.dataset_config_name,
            train_data_dir=options.data_dir,
            image_column=options.image_column,
            label_column=options.label_column,
            validation_split=options.split,
            num_levels=num_levels,
        )
    except ValueError as error:
        raise ValueError(_in_own_names(str(error))) from error


def _in_own_names(message: str) -> str:
    """A message of [`load_images`], which names the options of training, in the names of this command."""
    for name, own_name in OWN_NAMES.items():
        message = message.replace(name, own_name)
    return message


def _check_options(options: argparse.Namespace) -> None:
    at_least_one = {name: getattr(options, name) for name in ("num_repeats", "batch_size", "num_importance_samples")}
    at_least_one |= {"num_timesteps": min(1 if steps is None else steps for steps in options.num_timesteps)}
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"`--{name}` is {value}, but must be at least 1.")
    if options.max_images is not None and options.max_images < 2:
        raise ValueError(f"`--max_images` is {options.max_images}, but a standard error needs two images.")
    if not options.tolerance > 0:
        raise ValueError(f"`--tolerance` is {options.tolerance}, but must be positive.")
    for path in (options.output_path, options.figure_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into: make it first.")
        if path is not None and path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder: name a file to write.")
    if options.figure_path is not None:
        if "vlb" not in options.estimators:
            raise ValueError("`--figure_path` draws the loss of the variational bound: add `vlb` to `--estimators`.")
        check_figure_path(options.figure_path)


def _name(row: dict) -> str:
    if row["estimator"] == "ode":
        samples = f", K = {row['num_importance_samples']}" if row["num_importance_samples"] > 1 else ""
        return f"ODE, {row['dequantization'].replace('_', ' ')}{samples}"
    if row["estimator"] == "ddpm":
        return f"DDPM's bound, {row['variance_type']}" + (", clipped" if row["clip_denoised"] else "")
    return "VLB, " + ("continuous time" if row["num_timesteps"] is None else f"T = {row['num_timesteps']}")


def table(result: dict) -> str:
    """The results in Markdown, in bits per dimension."""
    columns = ("images alone", "draws alone", "prior", "reconstruction", "diffusion", "variance")
    notes = []
    keys = ("standard_error_images", "standard_error_draws", *columns[2:])
    lines = [
        f"{result['num_images']} images of {result['data']['name']}, {result['num_repeats']} repeats, seed {result['seed']};"
        " bits/dim ± standard error\n",
        f"| | bits/dim | {' | '.join(columns)} |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for row in result["results"]:
        low, high = row["interval_95"]
        notes.append(f"- {_name(row)}: 95 % interval {low:.4f} to {high:.4f}")
        cells = ("—" if row.get(key) is None else f"{row[key]:.4f}" for key in keys)
        lines.append(f"| {_name(row)} | {row['bits_per_dim']:.4f} ± {row['standard_error']:.4f} | {' | '.join(cells)} |")
        if row["estimator"] == "ode":
            number, largest = round(row["num_evaluations"]), row["max_evaluations"]
            notes[-1] += f", {number} evaluations of the denoiser an image and repeat, {largest} at most"
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    main()
