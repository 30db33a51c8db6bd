"""The objective "bound" of the command: error profile, chains, and their bounds on held-out images."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Dataset, Subset

from ..data.images import ImageData, load_images
from ..data.matching import check_images
from ..data.texts import with_encoded_captions
from ..denoisers import check_denoiser
from ..figures import save_chains
from ..likelihood.estimates import Estimate
from ..pixel_space import can_be_evaluated, load_pixel_pipeline
from ..scheduling.any_timesteps import keep_timesteps
from ..vdm import VDM
from .measuring import error_profile
from .options import FIGURE, RESULT, SAMPLES, SCHEDULER, FewStepsOptions
from .sampling import Sampler, save_samples
from .search import Steps, bounds


class ForBound:
    """
    The best chains for the bound of a model in pixel space.

    Args:
        options ([`FewStepsOptions`]): Those of the command.
        processes (`PartialState`): That share the work.

    Raises:
        `ValueError`: unless model and images belong together.
    """

    def __init__(self, options: FewStepsOptions, processes: PartialState):
        self.options, self.processes = options, processes
        self.vdm, self.data, self.held_out = _load(options, processes.device)

    def describe_calls(self) -> str:
        """How often the denoiser is called, in a sentence."""
        options = self.options
        calls = 3 * len(options.num_inference_steps) * len(self.held_out) * options.num_repeats
        return (
            f"The denoiser is called {options.num_draws:,} times for one image to measure its errors, and {calls:,} times for"
            " the bounds on held-out images."
        )

    def run(self) -> None:
        """Measure the errors on the training images, find the chains, and take their bounds on the held-out ones."""
        options = self.options
        settings = {
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": self.processes.device,
            "processes": self.processes,
        }
        ends = (gamma.item() for gamma in self.vdm.noise_schedule.end_points())
        profile = error_profile(
            self.vdm,
            self.data.train,
            torch.linspace(*ends, options.num_gammas),
            options.basis,
            options.num_draws,
            description="errors of the denoiser",
            **settings,
        )
        self.profile = profile.to(self.processes.device)
        self.found = bounds(
            self.vdm, self.profile, options.num_inference_steps, self.held_out, num_repeats=options.num_repeats, **settings
        )

    def save(self) -> None:
        """
        Write the profile, the chains as plain lists, with the timesteps that they stand for, and their picture; a scheduler
        that samples the best ones with their variances, and a picture of samples.
        """
        options, folder = self.options, Path(self.options.output_dir)
        self.profile.save_pretrained(folder)
        facts = {"objective": "bound", "model": options.pretrained_model_name_or_path, "data": self.data.name}
        facts |= {"basis": options.basis, "num_gammas": options.num_gammas}
        facts |= {"num_draws": options.num_draws, "seed": options.seed, "results": [self._row(*each) for each in self.found]}
        (folder / RESULT).write_text(json.dumps(facts, indent=2) + "\n")
        chains = {f"{len(steps.gammas) - 1} steps, {steps.name}": steps.gammas.tolist() for steps, _ in self.found}
        schedulers = {"q": self.vdm.to_scheduler(), "optimal": self.vdm.to_scheduler()}
        schedulers["optimal"].set_error_profile(self.profile.cpu())
        for steps, _ in self.found:
            if steps.variance == "optimal":
                keep_timesteps(schedulers["optimal"], self._timesteps(steps))
        schedulers["optimal"].save_pretrained(folder / SCHEDULER)
        pipeline = self.vdm.to_pipeline()
        samplers = {name: Sampler(pipeline, scheduler) for name, scheduler in schedulers.items()}
        save_samples([(samplers[steps.variance], self._timesteps(steps)) for steps, _ in self.found], folder / SAMPLES)
        save_chains(self.profile.gammas.tolist(), self.profile.mean().tolist(), chains, folder / FIGURE)

    def _timesteps(self, steps: Steps) -> list[float]:
        """Of a chain, in the order in which a sampler visits them."""
        gammas = steps.gammas[1:].flip(0).to(self.vdm.noise_schedule.device)
        return self.vdm.timestep_map(gammas).tolist()

    def _row(self, steps: Steps, bound: Estimate) -> dict:
        row = {"num_inference_steps": len(steps.gammas) - 1, "name": steps.name, "reverse_variance": steps.variance}
        return row | {"gammas": steps.gammas.tolist(), "timesteps": self._timesteps(steps)} | bound.record()

    def table(self) -> str:
        """The bounds in Markdown."""
        lines = ["| steps | chain | bits/dim | diffusion |", "| --- | --- | --- | --- |"]
        for steps, bound in self.found:
            figure = f"{bound.bits_per_dim:.4f} ± {bound.standard_error:.4f}"
            lines.append(f"| {len(steps.gammas) - 1} | {steps.name} | {figure} | {bound.diffusion:.4f} |")
        return "\n".join(lines)


def _load(options: FewStepsOptions, device: torch.device) -> tuple[VDM, ImageData, Dataset]:
    """The model, the data set, and its held-out images."""
    pipeline = load_pixel_pipeline(options.pretrained_model_name_or_path, options.cache_dir)
    data = load_images(num_levels=pipeline.config.get("num_levels", 256), **options.loading())
    with can_be_evaluated(options.pretrained_model_name_or_path):
        check_images(pipeline, data)
        check_denoiser(pipeline.unet, data.shape)
        vdm = VDM.from_pipeline(pipeline).to(device)
    if vdm.prompt_encoder is not None:
        vdm.prompt_encoder.to(device)
    train, validation = (with_encoded_captions(split, vdm.prompt_encoder, vdm.unet) for split in (data.train, data.validation))
    number = min(len(validation), options.max_images or len(validation))
    return vdm, replace(data, train=train), Subset(validation, range(number))
