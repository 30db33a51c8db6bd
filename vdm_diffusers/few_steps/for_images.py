"""The objective "images" of the command: timesteps for a sampler, and what it samples with them."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import diffusers
from accelerate import PartialState
from diffusers import DiffusionPipeline, SchedulerMixin
from tqdm import tqdm

from ..figures import save_chains
from ..guards.foreign_models import check_pipeline
from ..guards.loading import refused_as
from ..guards.messages import Message
from ..pipeline_vdm import VDMPipeline
from ..scheduling.any_timesteps import keep_timesteps
from ..scheduling_vdm import VDMScheduler
from .options import FIGURE, RESULT, SAMPLES, SCHEDULER, FewStepsOptions
from .sampling import Sampler, save_samples
from .timesteps import TEACHER_STEPS, Choice, Search, plan, probed


class ForImages:
    """
    The best timesteps for what a sampler makes of a model, with any pipeline.

    Args:
        options ([`FewStepsOptions`]): Those of the command.
        processes (`PartialState`): The only one.

    Raises:
        `ValueError`: for a pipeline that can't be loaded or sampled, and for several processes.
    """

    def __init__(self, options: FewStepsOptions, processes: PartialState):
        if processes.num_processes > 1:
            raise ValueError("Timesteps for images are found by one process: start the command without `accelerate launch`.")
        self.options, name = options, options.pretrained_model_name_or_path
        remedy = "Give the folder of a saved pipeline, or its name on the Hub."
        with refused_as(Message("{pretrained_model_name_or_path} {!r} could not be loaded", name), remedy):
            pipeline = DiffusionPipeline.from_pretrained(check_pipeline(name, options.cache_dir))
        scheduler_class = _scheduler(options.scheduler)
        with refused_as(Message("{pretrained_model_name_or_path} {!r} can't be sampled", name)):
            pipeline = _any_scheduler(pipeline).to(processes.device)
            same = type(pipeline.scheduler) is scheduler_class
            scheduler = pipeline.scheduler if same else scheduler_class.from_config(pipeline.scheduler.config)
            rows = {name: value for name, value in options.arguments.items() if isinstance(value, list)}
            arguments = {name: value for name, value in options.arguments.items() if name not in rows}
            self.scheduler = scheduler
            self.sampler = Sampler(pipeline, scheduler, arguments, rows, options.batch_size, options.seed)
            probe = probed(self.sampler)
        self.plan = plan(probe, options.num_inference_steps, options.num_draws)

    def describe_calls(self) -> str:
        """How often the denoiser is called, in a sentence."""
        return f"The denoiser is called at most {self.plan.calls:,} times for one image, twice that with guidance."

    def run(self) -> None:
        """Find the timesteps."""
        self.search = Search(self.sampler, self.plan)
        self.found = [self.search.best(number) for number in tqdm(self.options.num_inference_steps, desc="numbers of steps")]

    def save(self) -> None:
        """Write the timesteps, a scheduler whose configuration keeps them, their picture, and one of samples."""
        options, folder = self.options, Path(self.options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        scheduler = copy.deepcopy(self.scheduler)
        for _, best in self.found:
            keep_timesteps(scheduler, best.timesteps)
        scheduler.save_pretrained(folder / SCHEDULER)
        facts = {"objective": "images", "model": options.pretrained_model_name_or_path, "scheduler": options.scheduler}
        facts |= {"distance": "energy" if self.plan.is_random else "mean square", "num_draws": self.plan.calls}
        facts["call_arguments"] = options.arguments
        (folder / RESULT).write_text(json.dumps(facts | {"results": self._rows()}, indent=2) + "\n")
        self._save_chains(folder / FIGURE)
        self._save_samples(folder / SAMPLES)

    def _rows(self) -> list[dict]:
        names = ("its own", "found")
        return [
            {"num_inference_steps": len(choice.timesteps), "name": name} | asdict(choice)
            for both in self.found
            for name, choice in zip(names, both)
        ]

    def _save_chains(self, path: Path) -> None:
        gammas, chains = self.search.scale.gamma, {}
        for own, best in self.found:
            chains[f"{len(own.timesteps)} steps, its own"] = gammas(own.timesteps).tolist()
            chains[f"{len(best.timesteps)} steps, found"] = gammas(best.timesteps).tolist()
        places = TEACHER_STEPS // 10
        points, errors = gammas(self.search.points.timesteps).flip(0)[places - 1 :], self.search.errors.diagonal(places)
        save_chains(points.tolist(), errors.tolist(), chains, path, "error of a tenth of the way")

    def _save_samples(self, path: Path) -> None:
        """A row of pictures for the fine sampler, and two for each number of steps."""
        lists = [self.search.scale.fine_timesteps(TEACHER_STEPS)]
        lists += [choice.timesteps for both in self.found for choice in both]
        save_samples([(self.sampler, timesteps) for timesteps in lists], path)

    def table(self) -> str:
        """The distances in Markdown."""
        lines = ["| steps | timesteps | denoiser calls | distance to many steps |", "| --- | --- | --- | --- |"]
        for own, best in self.found:
            for name, choice in (("its own", own), ("found", best)):
                lines.append(f"| {len(choice.timesteps)} | {name} | {choice.calls} | {_figure(choice)} |")
        return "\n".join(lines)


def _figure(choice: Choice) -> str:
    return f"{choice.distance.value:.4g} ± {choice.distance.standard_error:.2g}"


def _any_scheduler(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline that takes every scheduler: those of diffusers that have nothing but a denoiser take only some."""
    components = {name for name, component in pipeline.components.items() if component is not None}
    return VDMPipeline.from_pipe(pipeline) if components == {"unet", "scheduler"} else pipeline


def _scheduler(name: str) -> type[SchedulerMixin]:
    found = VDMScheduler if name == "VDMScheduler" else getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(Message("{scheduler} is {!r}, but must be VDMScheduler or a scheduler of diffusers.", name))
    return found
