"""The options of `python -m vdm_diffusers.few_steps`, and the names of the files that it writes."""

import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..command_line import check_file_to_write, option
from ..data.options import DataOptions
from ..error_profiles import Basis
from ..figures import check_figure_path
from ..guards.arguments import Count, Draws, Seed, Within, at_least
from ..guards.messages import Message, refuse_if
from .search import GRID


RESULT, FIGURE, SAMPLES, SCHEDULER = "few_steps.json", "few_steps.png", "samples.png", "scheduler"
ISOTROPIC_DRAWS, DRAWS = 10_000, 30_000
IMAGES_A_BATCH = 128


@dataclass(kw_only=True)
class FewStepsOptions(DataOptions):
    """Every option of `python -m vdm_diffusers.few_steps`."""

    pretrained_model_name_or_path: str = option(MISSING, "A saved pipeline, folder or Hub name; of pixels for the bound.")
    output_dir: str = option(MISSING, "Where everything that is found goes; must not exist, or be empty.")
    num_inference_steps: list[Annotated[int, Within(1, GRID - 1)]] = option([5, 10, 20], "Numbers of steps to find chains of.")
    objective: Literal["bound", "images"] = option("bound", "The best chain for the bound, or timesteps for images.")
    num_draws: Draws | None = option(
        None, f"Denoiser calls of the search. Default: {ISOTROPIC_DRAWS:,} for isotropic errors, else {DRAWS:,}."
    )
    batch_size: Count | None = option(
        None, f"Images a batch. Default: for the bound as many as memory allows, for images {IMAGES_A_BATCH}."
    )
    seed: Seed = option(0, "Of all draws.")
    dry_run: bool = option(False, "Print how often the denoiser will be called, and exit.")

    # For the bound
    basis: Basis = option("isotropic", "In which the optimal variances differ: in none, or by entry, frequency or axis.")
    num_gammas: Annotated[int, Within(2, 10**4)] = option(60, "Noise levels to measure the denoiser's errors at.")
    num_repeats: Draws = option(4, "Times and noises a held-out image, for the bounds.")
    max_images: Annotated[int, at_least(2)] | None = option(None, "Only so many held-out images, the first. Default: all.")

    # For images
    scheduler: str = option("VDMScheduler", "The sampler to find timesteps for, by its name in diffusers.")
    call_arguments: str = option(
        "{}", 'Of the pipeline, as JSON, lists having an element an image: {"prompt": ["a cat", "a dog"], "guidance_scale": 5}.'
    )

    def __post_init__(self):
        super().__post_init__()
        isotropic = self.objective == "bound" and self.basis == "isotropic"
        self.num_draws = self.num_draws or (ISOTROPIC_DRAWS if isotropic else DRAWS)
        if self.objective == "images":
            self.batch_size = self.batch_size or IMAGES_A_BATCH
        refuse_if(
            self.objective == "bound" and self.scheduler != "VDMScheduler",
            "{scheduler} is {!r}, but the bound is that of VDMScheduler's steps: add {objective:images} for others.",
            self.scheduler,
        )
        try:
            self.arguments = json.loads(self.call_arguments)
        except json.JSONDecodeError:
            self.arguments = None
        if not isinstance(self.arguments, dict):
            raise ValueError(Message("{call_arguments} must be JSON of names and values, but is {!r}.", self.call_arguments))
        folder = Path(self.output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{self.output_dir!r} is there already: name another folder.")
        check_file_to_write(folder)
        check_figure_path(FIGURE)
