"""Bits per dimension of a model on a data set.

python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-digits
python -m vdm_diffusers.evaluate --pretrained_model_name_or_path vdm-cifar10 --dataset_name cifar10 --split test
accelerate launch -m vdm_diffusers.evaluate --pretrained_model_name_or_path google/ddpm-cifar10-32 --dataset_name cifar10 ...
"""

import json
import math
import platform
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import diffusers
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline
from torch.utils.data import Dataset, Subset

from . import command_line
from .command_line import check_file_to_write, exit_with_message, option, without_traceback
from .data.checking import describe_unreadable
from .data.images import ImageData, load_images
from .data.matching import check_images
from .data.options import SHORT_NAMES, DataOptions
from .data.texts import CAPTION_KINDS, captions_of_kind, with_encoded_captions
from .denoisers import check_denoiser
from .error_profiles import ErrorProfile
from .few_steps import error_profile
from .figures import check_figure_path, save_loss_profiles
from .guards.arguments import Count, Draws, Limit, at_least
from .guards.messages import refuse_if
from .guards.secrecy import guarded_output
from .likelihood.ddpm_bound import VARIANCE_TYPES
from .likelihood.estimates import Difference
from .likelihood.estimators import CONTINUOUS, ESTIMATORS, measurements
from .pixel_space import can_be_evaluated, load_pixel_pipeline
from .probability_flow.dequantization import DEQUANTIZATIONS
from .probability_flow.likelihood import TRACES
from .text_encoders import prompt_encoder_of
from .vdm import VDM


COMMAND = "evaluate.py"
NUM_GAMMAS = 60
"""Of an error profile that is measured."""
POSITIVE = Limit("positive and finite", lambda value: 0 < value < math.inf)


@dataclass(kw_only=True)
class EvaluationOptions(DataOptions):
    """
    Every option of `python -m vdm_diffusers.evaluate`.

    Raises `ValueError`, naming the option and the remedy, for values that no evaluation can have.
    """

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline, folder or Hub name.")
    max_images: Annotated[int, at_least(2)] | None = option(None, "Only so many images, the first. Default: all.")
    estimators: list[Literal[tuple(ESTIMATORS)]] = option(
        ["vlb"], "Variational bound, likelihood by the ODE, DDPM's bound, net rate of the lossless codec."
    )
    num_timesteps: list[Count | Literal[CONTINUOUS]] = option([CONTINUOUS], "Numbers of steps of the bound.")
    captions: list[Literal[tuple(CAPTION_KINDS)]] = option(
        ["own", "none"], "Of a model of text: those of the images, none, those of other images, and what the first are worth."
    )
    reverse_variance: Literal["q", "optimal"] = option(
        "q", "Of the steps of the bound: that of q(z_s|z_t, x), or the one that is optimal for this denoiser."
    )
    error_profile_dir: str | None = option(
        None, "Folder of the error profile for that, as the command few_steps writes it. Default: measured on training images."
    )
    dequantization: Literal[tuple(DEQUANTIZATIONS)] = option("decoder", "How the ODE's latents are drawn and read.")
    num_importance_samples: Draws = option(1, "Draws of that noise for one value of the ODE.")
    trace: Literal[TRACES] = option("rademacher", "The ODE's divergence: by a probe, or exact.")
    tolerance: Annotated[float, POSITIVE] = option(1e-5, "Of the ODE's solver.")
    variance_type: list[Literal[VARIANCE_TYPES]] | None = option(
        None, "DDPM's, one or several. Default: that of the pipeline's scheduler."
    )
    clip_denoised: bool = option(True, "Clip DDPM's estimate of the image, as in published figures.")
    num_indices: Count | None = option(None, "Terms of DDPM's chain to draw for an image. Default: all.")
    dtype: Literal["float32", "float64"] = option(
        "float32", "Of the denoiser. In float64 also the ODE's figure is the same for every batch size, to 1e-5 and better."
    )
    num_repeats: Draws = option(4, "Times and noises an image.")
    batch_size: Count | None = option(
        None, "Images a batch; the result does not depend on it. Default: as many as memory allows."
    )
    seed: int = option(0, "Of the draws.")
    output_path: Path | None = option(None, "A JSON file for the result.")
    figure_path: Path | None = option(None, "A picture of the loss over gamma.")

    def __post_init__(self):
        super().__post_init__()
        refuse_if(
            self.figure_path is not None and "vlb" not in self.estimators,
            "{figure_path} draws the loss of the variational bound: add `vlb` to {estimators}.",
        )
        refuse_if(
            "codec" in self.estimators and not {*self.num_timesteps} - {CONTINUOUS},
            "{estimators:codec} codes in discrete steps: give numbers of them as {num_timesteps}.",
        )
        optimal = self.reverse_variance == "optimal"
        refuse_if(
            optimal and CONTINUOUS in self.num_timesteps,
            "{reverse_variance:optimal} is of discrete steps: give numbers of them as {num_timesteps}.",
        )
        refuse_if(
            self.error_profile_dir is not None and not optimal,
            "{error_profile_dir} is for optimal variances: add {reverse_variance:optimal}.",
        )
        for path in (self.output_path, self.figure_path):
            if path is not None:
                check_file_to_write(path)
        if self.figure_path is not None:
            check_figure_path(self.figure_path)


def main(arguments: Sequence[str] | None = None) -> None:
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # which only `Accelerator` reads by itself
    own_names = SHORT_NAMES | {"num_levels": "the model's `num_levels`"}
    silent = not processes.is_main_process
    with exit_with_message(COMMAND, ValueError, OSError, silent=silent, own_names=own_names):  # which all processes raise
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        with exit_with_message(COMMAND, FloatingPointError):
            result = evaluate(options, processes)
    if not processes.is_main_process:
        return
    if options.output_path is not None:
        options.output_path.write_text(json.dumps(result, indent=2) + "\n")
    if options.figure_path is not None:
        profiles = {row["name"]: row["profile"] for row in result["results"] if "profile" in row}
        save_loss_profiles(profiles, options.figure_path)
    print(table(result))


def parse_options(arguments: Sequence[str]) -> EvaluationOptions:
    """Options from a file, if the first argument is one, then from flags."""
    return EvaluationOptions(
        **command_line.parse_options(EvaluationOptions, arguments, f"python -m {__package__}.evaluate", __doc__.splitlines()[0])
    )


def evaluate(options: EvaluationOptions, processes: PartialState) -> dict:
    """All that was asked for, as it goes into the JSON; `ValueError` if the images are not what the model is one of."""
    name = options.pretrained_model_name_or_path
    pipeline = load_pixel_pipeline(name, options.cache_dir)
    if options.dtype == "float64":
        pipeline.unet.double()
    measured = options.reverse_variance == "optimal" and options.error_profile_dir is None
    data = load_images(num_levels=pipeline.config.get("num_levels", 256), check_train=measured, **options.loading())
    with can_be_evaluated(name):
        check_images(pipeline, data)
        check_denoiser(pipeline.unet, data.shape)
    images = data.validation
    if options.max_images is not None:
        images = Subset(images, range(min(len(images), options.max_images)))
    shared = {
        "num_repeats": options.num_repeats,
        "batch_size": None if options.batch_size is None else min(options.batch_size, len(images)),
        "seed": options.seed,
        "device": processes.device,
        "processes": processes,
    }
    profile = _error_profile(options, pipeline, data, shared) if options.reverse_variance == "optimal" else None
    return {
        "model": name,
        "data": _describe(data, options.validation_split),
        "num_images": len(images),
        "num_repeats": options.num_repeats,
        "num_processes": processes.num_processes,
        "seed": options.seed,
        "dtype": options.dtype,
        "versions": _versions(),
        "results": [
            row for estimator in options.estimators for row in _rows(estimator, pipeline, options, profile, images, shared)
        ],
    }


def _error_profile(options: EvaluationOptions, pipeline: DiffusionPipeline, data: ImageData, shared: dict) -> ErrorProfile:
    """The one of a folder, or else an isotropic one, measured on the training images."""
    if options.error_profile_dir is not None:
        return ErrorProfile.from_pretrained(options.error_profile_dir).to(shared["device"])
    settings = {name: value for name, value in shared.items() if name != "num_repeats"}
    with can_be_evaluated(options.pretrained_model_name_or_path):
        vdm = VDM.from_pipeline(pipeline).to(shared["device"])
    gammas = torch.linspace(*(gamma.item() for gamma in vdm.noise_schedule.end_points()), NUM_GAMMAS)
    train = with_encoded_captions(data.train, vdm.prompt_encoder, vdm.unet)
    return error_profile(vdm, train, gammas, description="errors of the denoiser", **settings).to(shared["device"])


def _rows(
    estimator: str,
    pipeline: DiffusionPipeline,
    options: EvaluationOptions,
    profile: ErrorProfile | None,
    images: Dataset,
    shared: dict,
) -> list[dict]:
    """
    What an estimator measures, as it goes into the JSON; `shared` are the settings of all estimators.

    Of a model of text, with each of the wanted captions, and what the first of them are worth.
    """
    encoder = prompt_encoder_of(pipeline)
    kinds = options.captions if encoder is not None else ["own"]
    if encoder is not None:
        encoder.to(shared["device"])
    with can_be_evaluated(options.pretrained_model_name_or_path):
        found = measurements(estimator, pipeline, shared["device"], Namespace(**vars(options), error_profile=profile))
    rows = []
    for measurement in found:
        first = None
        for kind in kinds:
            told = with_encoded_captions(images, encoder, pipeline.unet, captions_of_kind(kind, images, options.seed))
            name = measurement.name + CAPTION_KINDS[kind]
            estimate = measurement.measure(told, description=name, **shared)
            rows.append({"estimator": estimator, "name": name} | measurement.settings | estimate.record())
            if first is not None:
                rows[-1]["above_the_first"] = asdict(Difference.between(estimate, first))
            first = first or estimate
    return rows


def _describe(data: ImageData, split: str | None) -> dict:
    """What the figures are of."""
    description = {"name": data.name, "split": split, "shape": list(data.shape), "num_levels": data.num_levels}
    return description | {"preparation": str(data.preparation) or None, "unreadable": list(data.unreadable)}


def _versions() -> dict[str, str]:
    from . import __version__

    own = {"vdm_diffusers": __version__, "python": platform.python_version()}
    return own | {module.__name__: module.__version__ for module in (diffusers, torch)}


def table(result: dict) -> str:
    """The results in Markdown, in bits per dimension."""
    columns = ("images alone", "draws alone", "prior", "reconstruction", "diffusion", "variance")
    of, notes = result["data"], []
    prepared = f", {of['preparation']}" if of["preparation"] else ""
    if of["unreadable"]:
        notes += ["", describe_unreadable(of["unreadable"])]
    keys = ("standard_error_images", "standard_error_draws", *columns[2:])
    lines = [
        f"{result['num_images']} images of {of['name']}{prepared}, {result['num_repeats']} repeats, seed {result['seed']};"
        " bits/dim ± standard error\n",
        f"| | bits/dim | {' | '.join(columns)} |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for row in result["results"]:
        low, high = row["interval_95"]
        notes.append(f"- {row['name']}: 95 % interval {low:.4f} to {high:.4f}")
        cells = ("—" if row.get(key) is None else f"{row[key]:.4f}" for key in keys)
        lines.append(f"| {row['name']} | {row['bits_per_dim']:.4f} ± {row['standard_error']:.4f} | {' | '.join(cells)} |")
        if "above_the_first" in row:
            worth = row["above_the_first"]
            notes[-1] += f"; {worth['per_dim']:.4f} ± {worth['standard_error']:.4f} above that with the first captions"
        if "num_evaluations" in row:
            number, largest = round(row["num_evaluations"]), row["max_evaluations"]
            notes[-1] += f", {number} evaluations of the denoiser an image and repeat, {largest} at most"
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
