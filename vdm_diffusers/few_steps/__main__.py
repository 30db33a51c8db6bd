"""The best few steps of a frozen model for its bound.

python -m vdm_diffusers.few_steps --pretrained_model_name_or_path vdm-digits --basis principal --output_dir few-steps
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import Dataset, Subset

from .. import command_line
from ..command_line import check_file_to_write, exit_with_message, option, without_traceback
from ..data.images import ImageData, load_images
from ..data.matching import check_images
from ..data.options import SHORT_NAMES, DataOptions
from ..denoisers import check_denoiser
from ..error_profiles import Basis, ErrorProfile
from ..figures import check_figure_path, save_chains
from ..guards.arguments import Count, Draws, Seed, Within, at_least
from ..guards.secrecy import guarded_output
from ..likelihood.estimates import Estimate
from ..pixel_space import can_be_evaluated, load_pixel_pipeline
from ..vdm import VDM
from .measuring import error_profile
from .search import GRID, Steps, bounds


COMMAND = "few_steps.py"
RESULT, FIGURE = "few_steps.json", "few_steps.png"
ISOTROPIC_DRAWS, DRAWS = 10_000, 30_000


@dataclass(kw_only=True)
class FewStepsOptions(DataOptions):
    """Every option of `python -m vdm_diffusers.few_steps`."""

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline of pixels, folder or Hub name.")
    output_dir: str = option(MISSING, "Where the error profile, the chains and their picture go; must not exist, or be empty.")
    num_inference_steps: list[Annotated[int, Within(1, GRID - 1)]] = option([5, 10, 20], "Numbers of steps to find chains of.")
    basis: Basis = option("isotropic", "In which the optimal variances differ: in none, or by entry, frequency or axis.")
    num_gammas: Annotated[int, Within(2, 10**4)] = option(60, "Noise levels to measure the denoiser's errors at.")
    num_draws: Draws | None = option(
        None, f"Denoiser calls for that. Default: {ISOTROPIC_DRAWS:,} for isotropic, {DRAWS:,} for others."
    )
    num_repeats: Draws = option(4, "Times and noises a held-out image, for the bounds.")
    max_images: Annotated[int, at_least(2)] | None = option(None, "Only so many held-out images, the first. Default: all.")
    batch_size: Count = option(128, "Images a batch.")
    seed: Seed = option(0, "Of all draws.")
    dry_run: bool = option(False, "Print how often the denoiser will be called, and exit.")

    def __post_init__(self):
        super().__post_init__()
        self.num_draws = self.num_draws or (ISOTROPIC_DRAWS if self.basis == "isotropic" else DRAWS)
        folder = Path(self.output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{self.output_dir!r} is there already: name another folder.")
        check_file_to_write(folder)
        check_figure_path(FIGURE)


def main(arguments: Sequence[str] | None = None) -> None:
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    silent = not processes.is_main_process
    with exit_with_message(COMMAND, ValueError, OSError, FloatingPointError, silent=silent, own_names=SHORT_NAMES):
        arguments = sys.argv[1:] if arguments is None else arguments
        command = f"python -m {__package__}"
        options = FewStepsOptions(**command_line.parse_options(FewStepsOptions, arguments, command, __doc__.splitlines()[0]))
        vdm, data, held_out = load(options, processes.device)
        if processes.is_main_process:
            print(describe_calls(options, len(held_out)))
        if options.dry_run:
            return
        profile, found = search(options, vdm, data, held_out, processes)
    if processes.is_main_process:
        save(options, vdm, data, profile, found)
        print(table(found))


def load(options: FewStepsOptions, device: torch.device) -> tuple[VDM, ImageData, Dataset]:
    """The model, the data set, and its held-out images; `ValueError` unless they belong together."""
    pipeline = load_pixel_pipeline(options.pretrained_model_name_or_path, options.cache_dir)
    data = load_images(num_levels=pipeline.config.get("num_levels", 256), **options.loading())
    with can_be_evaluated(options.pretrained_model_name_or_path):
        check_images(pipeline, data)
        check_denoiser(pipeline.unet, data.shape)
        vdm = VDM.from_pipeline(pipeline).to(device)
    number = min(len(data.validation), options.max_images or len(data.validation))
    return vdm, data, Subset(data.validation, range(number))


def describe_calls(options: FewStepsOptions, num_images: int) -> str:
    """How often the denoiser is called, in a sentence."""
    calls = 3 * len(options.num_inference_steps) * num_images * options.num_repeats
    return (
        f"The denoiser is called {options.num_draws:,} times for one image to measure its errors, and {calls:,} times for the"
        " bounds on held-out images."
    )


def search(
    options: FewStepsOptions, vdm: VDM, data: ImageData, held_out: Dataset, processes: PartialState
) -> tuple[ErrorProfile, list[tuple[Steps, Estimate]]]:
    """Measure the errors on the training images, find the chains, and take their bounds on the held-out ones."""
    settings = {
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": processes.device,
        "processes": processes,
    }
    gammas = torch.linspace(*(gamma.item() for gamma in vdm.noise_schedule.end_points()), options.num_gammas)
    profile = error_profile(
        vdm, data.train, gammas, options.basis, options.num_draws, description="errors of the denoiser", **settings
    ).to(processes.device)
    return profile, bounds(vdm, profile, options.num_inference_steps, held_out, num_repeats=options.num_repeats, **settings)


def save(
    options: FewStepsOptions, vdm: VDM, data: ImageData, profile: ErrorProfile, found: list[tuple[Steps, Estimate]]
) -> None:
    """Write the profile, the chains as plain lists, with the timesteps that they stand for, and their picture."""
    folder = Path(options.output_dir)
    profile.save_pretrained(folder)
    rows = [
        {"num_inference_steps": len(steps.gammas) - 1, "name": steps.name, "reverse_variance": steps.variance}
        | {"gammas": steps.gammas.tolist(), "timesteps": vdm.timestep_map(steps.gammas[1:].flip(0)).tolist()}
        | bound.record()
        for steps, bound in found
    ]
    facts = {"model": options.pretrained_model_name_or_path, "data": data.name, "basis": options.basis}
    facts |= {"num_gammas": options.num_gammas, "num_draws": options.num_draws, "seed": options.seed}
    (folder / RESULT).write_text(json.dumps(facts | {"results": rows}, indent=2) + "\n")
    chains = {f"{len(steps.gammas) - 1} steps, {steps.name}": steps.gammas.tolist() for steps, _ in found}
    save_chains(profile.gammas.tolist(), profile.mean().tolist(), chains, folder / FIGURE)


def table(found: list[tuple[Steps, Estimate]]) -> str:
    """The bounds in Markdown."""
    lines = ["| steps | chain | bits/dim | diffusion |", "| --- | --- | --- | --- |"]
    for steps, bound in found:
        figure = f"{bound.bits_per_dim:.4f} ± {bound.standard_error:.4f}"
        lines.append(f"| {len(steps.gammas) - 1} | {steps.name} | {figure} | {bound.diffusion:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with guarded_output(), without_traceback(COMMAND):
        main()
