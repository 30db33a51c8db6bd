"""Images drawn by a sampler that is chosen, and their latents on the way."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Annotated, NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from ..autoencoders import decode
from ..conditioning import Condition
from ..guards.arguments import Seed, Within, checked
from ..pipeline_vdm import VDMPipeline
from ..scheduling.any_timesteps import KEPT
from ..scheduling_vdm import VDMScheduler


MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 16, 250, 20
MAX_FRAMES = 24
"""Of the latents on the way, evenly among the steps."""


@dataclass(frozen=True)
class Sampler:
    """
    A way to sample.

    Attributes:
        scheduler (`type[SchedulerMixin]`): Its class.
        eta (`float`, *optional*): The share of fresh noise that it has by default; `None` if it can't be told.
    """

    scheduler: type[SchedulerMixin]
    eta: float | None = None

    def of(self, pipeline: VDMPipeline) -> VDMPipeline:
        """A pipeline that samples so, and shares all else."""
        sampling = copy.copy(pipeline)
        sampling.register_modules(scheduler=self.scheduler.from_config(pipeline.scheduler.config))
        return sampling

    def few_steps(self, pipeline: VDMPipeline) -> list[int]:
        """The numbers of steps that the pipeline keeps timesteps for."""
        kept = pipeline.scheduler.config.get(KEPT) or {}
        return sorted(map(int, kept.get(self.scheduler.__name__, {})))


SAMPLERS = {
    "VDM": Sampler(VDMScheduler, eta=1.0),
    "DPM-Solver++": Sampler(DPMSolverMultistepScheduler),
    "DDIM": Sampler(DDIMScheduler, eta=0.0),
    "UniPC": Sampler(UniPCMultistepScheduler),
}


class Frame(NamedTuple):
    """
    What there is after a step.

    Attributes:
        step (`int`): How many were made.
        gamma (`float`): The noise level that it led to, `-inf` being none.
        images (`Tensor` of shape `(B, C, H, W)`): In [0, 1]: the latents, or after all steps the images.
        is_last (`bool`): Whether these are the images.
    """

    step: int
    gamma: float
    images: Tensor
    is_last: bool = False


@checked
def sample(
    pipeline: VDMPipeline,
    condition: Condition,
    batch_size: Annotated[int, Within(1, MAX_IMAGES)] = 1,
    num_inference_steps: Annotated[int, Within(1, MAX_STEPS)] = 50,
    sampler: str = "VDM",
    eta: Annotated[float, Within(0, 1)] | None = None,
    guidance_scale: Annotated[float, Within(0, MAX_GUIDANCE)] = 1.0,
    seed: Seed = 0,
) -> Iterator[Frame]:
    """
    Draw images, and yield what becomes of them: some of the latents on the way, and the images last.

    Args:
        pipeline ([`VDMPipeline`]): It is left as it is.
        condition (`Condition`): What the denoiser is told, with `batch_size` rows.
        batch_size (`int`): Number of images.
        sampler (`str`): One of `SAMPLERS`.
        eta (`float`, *optional*): The share of fresh noise of samplers that can be told it.
        num_inference_steps, guidance_scale, seed: As [`VDMPipeline`] takes them; the seed makes a generator on the CPU.

    Raises:
        `TypeError` and `ValueError`: at once for arguments beyond their limits, and later as the pipeline.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` is {sampler!r}, but must be one of {', '.join(SAMPLERS)}.")
    chosen = SAMPLERS[sampler]
    call = {
        "condition": condition or None,
        "batch_size": batch_size,
        "num_inference_steps": num_inference_steps,
        "eta": None if eta == chosen.eta else eta,  # ancestral steps, of whatever variance, if it is 1
        "guidance_scale": guidance_scale,
        "generator": torch.Generator().manual_seed(seed),
    }
    return _frames(chosen.of(pipeline), call)


def _frames(pipeline: VDMPipeline, call: dict) -> Iterator[Frame]:
    """Those of a call, which is made in a thread and ended when nobody wants more of them."""
    frames, unwanted = SimpleQueue(), Event()

    def watch(pipeline: VDMPipeline, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        step, number = index + 1, pipeline.num_timesteps
        if step < number and step % -(-number // MAX_FRAMES) == 0:
            frames.put(Frame(step, _gamma(pipeline, step), _shown(tensors["latents"], pipeline)))
        pipeline._interrupt = unwanted.is_set()

    def run() -> None:
        try:
            images = pipeline(**call, callback_on_step_end=watch, output_type="pt").images
            number = pipeline.num_timesteps
            frames.put(Frame(number, _gamma(pipeline, number), images.cpu(), is_last=True))
        except Exception as error:  # to be raised where the frames are wanted
            frames.put(error)

    thread = Thread(target=run)
    thread.start()
    try:
        while True:
            frame = frames.get()
            if isinstance(frame, Exception):
                raise frame
            yield frame
            if frame.is_last:
                return
    finally:
        unwanted.set()
        thread.join()


def _gamma(pipeline: VDMPipeline, step: int) -> float:
    """Where so many steps lead."""
    scheduler = VDMScheduler.from_config(pipeline.scheduler.config)
    timesteps = pipeline.scheduler.timesteps
    if step < len(timesteps):
        return scheduler.timestep_map.inverse(timesteps[step].cpu().double()).item()
    return pipeline.scheduler.gamma_0.item() if isinstance(pipeline.scheduler, VDMScheduler) else -torch.inf


def _shown(latents: Tensor, pipeline: VDMPipeline) -> Tensor:
    """Latents as images in [0, 1], as near as they come to some."""
    x = latents if pipeline.vae is None else decode(pipeline.vae, latents)
    return ((x + 1) / 2).clamp(0, 1).float().cpu()
