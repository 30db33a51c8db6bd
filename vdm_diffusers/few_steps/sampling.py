"""What any pipeline samples with given timesteps, seen from its scheduler."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import make_image_grid
from torch import Tensor

from ..pipeline_vdm import VDMPipeline
from ..scheduling.any_timesteps import KEPT, keep_timesteps, with_timesteps
from ..scheduling_vdm import VDMScheduler


NUM_PICTURES, MIN_PIXELS = 8, 64
"""Of a row, and of the sides of a picture."""


@dataclass
class Trajectories:
    """
    What a scheduler saw of some images.

    Attributes:
        ends (`Tensor` of shape `(B, *shape)`): The last samples.
        calls (`int`): Of the denoiser, for one image.
        draws (`Tensor`): The state in which the first image's generator was left: the same unless the number of draws differs.
        timesteps (`list[float]`): Those of its steps.
        latents, outputs (`Tensor` of shape `(N, B, *shape)`): `z_t` as the denoiser got it, and its output, guided; N = 0 where
            they were not to be kept.
    """

    ends: Tensor
    calls: int
    draws: Tensor
    timesteps: list[float]
    latents: Tensor
    outputs: Tensor

    def points(self) -> "Trajectories":
        """Without what samplers of higher order look at on the way: of each timestep the last."""
        last = {timestep: place for place, timestep in enumerate(self.timesteps)}
        places = list(last.values())
        return replace(self, timesteps=list(last), latents=self.latents[places], outputs=self.outputs[places])

    def visited(self) -> list[float]:
        """The timesteps, each once."""
        return list(dict.fromkeys(self.timesteps))


@dataclass
class Recorder:
    """Listens to the steps of a scheduler."""

    scheduler: SchedulerMixin
    keeps_points: bool
    timesteps: list[float] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    end: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        step = self.scheduler.step

        @wraps(step)
        def recorded(model_output: Tensor, timestep: Tensor | float, sample: Tensor, *args: Any, **kwargs: Any):
            self._record(model_output, timestep, sample)
            result = step(model_output, timestep, sample, *args, **kwargs)
            self.end = result[0]
            return result

        self.scheduler.step = recorded
        try:
            yield
        finally:
            del self.scheduler.step

    def _record(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor) -> None:
        expected = float(self.scheduler.init_noise_sigma)
        if not self.timesteps and expected > 2 and sample.std() < expected / 2:
            raise ValueError(
                f"This pipeline does not scale its first latents by {expected:.4g}, as {type(self.scheduler).__name__} needs:"
                " take a scheduler whose latents preserve the variance."
            )
        self.timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
        if self.keeps_points:
            self.latents.append(self.scheduler.scale_model_input(sample, timestep).float().cpu())
            self.outputs.append(model_output[:, : sample.shape[1]].float().cpu())


class Sampler:
    """
    A pipeline with a scheduler of its own, called with given timesteps and seeds.

    Args:
        pipeline (`DiffusionPipeline`): Left as it is.
        scheduler (`SchedulerMixin`): Any that takes timesteps by [`with_timesteps`]; it is copied.
        arguments (`dict`, *optional*): Of the pipeline's call, the same for all images, such as `guidance_scale`.
        rows (`dict[str, list | Tensor]`, *optional*): Those with an element an image, such as `prompt`, taken in turns.
        batch_size (`int`, defaults to 64): Images a call.
        seed (`int`, defaults to 0): Of all seeds: others for each.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        scheduler: SchedulerMixin,
        arguments: Mapping[str, Any] | None = None,
        rows: Mapping[str, Sequence | Tensor] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.pipeline, self.scheduler = pipeline, with_timesteps(copy.deepcopy(scheduler))
        self.arguments, self.rows, self.batch_size = dict(arguments or {}), dict(rows or {}), batch_size
        self.seed = seed
        self.parameters = inspect.signature(pipeline.__call__).parameters

    def without_noise(self) -> "Sampler":
        """Deterministic sampling of the same model, by DDIM."""
        still = VDMScheduler.from_config(self.scheduler.config, eta=0.0, error_profile=None)
        return Sampler(self.pipeline, still, self.arguments, self.rows, self.batch_size, self.seed)

    def __call__(self, timesteps: Sequence[float] | int, seeds: Sequence[int], keep_points: bool = False) -> Trajectories:
        """Sample an image for each seed with these timesteps, or so many of the scheduler's own."""
        number, starts = self._set(timesteps), range(0, len(seeds), self.batch_size)
        parts = [self._batch(number, seeds[start : start + self.batch_size], keep_points) for start in starts]
        first = parts[0]
        return Trajectories(
            torch.cat([part.ends for part in parts]),
            first.calls,
            first.draws,
            first.timesteps,
            torch.cat([part.latents for part in parts], dim=1),
            torch.cat([part.outputs for part in parts], dim=1),
        )

    @property
    def has_pictures(self) -> bool:
        """Whether the samples can be shown."""
        return not isinstance(self.pipeline, VDMPipeline) or self.pipeline.has_pictures

    def pictures(self, timesteps: Sequence[float] | int, seeds: Sequence[int]) -> list[PIL.Image.Image]:
        """The same as pictures."""
        return self._call(self._set(timesteps), seeds, self._generators(seeds), {"output_type": "pil"}).images

    def _set(self, timesteps: Sequence[float] | int) -> int:
        """Have the scheduler visit these timesteps, or its own, and return how many."""
        self.scheduler.register_to_config(**{KEPT: None})
        if isinstance(timesteps, int):
            return timesteps
        keep_timesteps(self.scheduler, timesteps)
        return len(timesteps)

    def _generators(self, seeds: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(10**6 * self.seed + seed) for seed in seeds]

    def _call(
        self, num_inference_steps: int, seeds: Sequence[int], generators: list[torch.Generator], output: Mapping[str, str]
    ) -> Any:
        given = {name: _turns(values, seeds) for name, values in self.rows.items()}
        if not given and "batch_size" in self.parameters:
            given["batch_size"] = len(seeds)
        if "output_type" in self.parameters:
            given |= output
        with self._in_place():
            return self.pipeline(num_inference_steps=num_inference_steps, generator=generators, **given, **self.arguments)

    def _batch(self, num_inference_steps: int, seeds: Sequence[int], keep_points: bool) -> Trajectories:
        generators, recorder = self._generators(seeds), Recorder(self.scheduler, keep_points)
        with recorder.listening():
            self._call(num_inference_steps, seeds, generators, {"output_type": "latent"})
        end = recorder.end.float().cpu()
        return Trajectories(
            end,
            len(recorder.timesteps),
            generators[0].get_state(),
            recorder.timesteps,
            *(torch.stack(kept) if kept else end.new_empty(0, len(end)) for kept in (recorder.latents, recorder.outputs)),
        )

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The pipeline with this scheduler, silent."""
        scheduler, bar = self.pipeline.scheduler, getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.scheduler = self.scheduler
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            self.pipeline.scheduler = scheduler
            self.pipeline.set_progress_bar_config(**bar)


def save_samples(rows: Sequence[tuple[Sampler, Sequence[float] | int]], path: Path) -> None:
    """Write a picture with a row of samples for each sampler and its timesteps, of the same seeds, if they can be shown."""
    if all(sampler.has_pictures for sampler, _ in rows):
        seeds = range(NUM_PICTURES)
        pictures = [_enlarged(picture) for sampler, timesteps in rows for picture in sampler.pictures(timesteps, seeds)]
        make_image_grid(pictures, rows=len(rows), cols=NUM_PICTURES).save(path)


def _enlarged(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of `MIN_PIXELS` at least, its pixels as squares."""
    factor = -(-MIN_PIXELS // min(picture.size))
    return picture.resize([side * factor for side in picture.size], PIL.Image.Resampling.NEAREST)


def _turns(values: Sequence | Tensor, seeds: Sequence[int]) -> Sequence | Tensor:
    places = [seed % len(values) for seed in seeds]
    return values[places] if isinstance(values, Tensor) else [values[place] for place in places]
