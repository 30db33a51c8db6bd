"""The model that images are coded with: a VDM in few steps, as a pipeline has them."""

import torch
from diffusers import DiffusionPipeline

from ..pixel_space import check_pixel_space
from ..scheduling.any_timesteps import KEPT, kept_timesteps
from ..scheduling_vdm import VDMScheduler
from ..vdm import VDM


NUM_STEPS = 20
"""Where the pipeline keeps no chain of few steps."""


def coding_model(pipeline: DiffusionPipeline, num_inference_steps: int | None = None) -> VDM:
    """
    The model of a pipeline in pixel space, in T steps: a VDM, or one of a β-chain with the VDM's decoder.

    Its chain is the best one that its [`VDMScheduler`] keeps for that number of steps, or else even in gamma; the variances are
    optimal where that scheduler has an error profile, or else q's.

    Args:
        pipeline (`DiffusionPipeline`): Such as a [`VDMPipeline`] or a [`~diffusers.DDPMPipeline`], on any device.
        num_inference_steps (`int`, *optional*): T. Defaults to the largest number that the scheduler keeps a chain for, or else
            to `NUM_STEPS`.

    Raises:
        `ValueError`: for pipelines that have no bits per dimension, a chain in pure noise, and less than one step.
    """
    check_pixel_space(pipeline)
    vdm = VDM.from_pipeline(pipeline)
    scheduler = pipeline.scheduler if isinstance(pipeline.scheduler, VDMScheduler) else None
    if num_inference_steps is None:
        kept = {} if scheduler is None else (scheduler.config.get(KEPT) or {}).get(type(scheduler).__name__, {})
        num_inference_steps = max(map(int, kept), default=NUM_STEPS)
    if type(num_inference_steps) is not int or num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` is {num_inference_steps!r}, but must be a whole number of at least 1.")
    profile = None if scheduler is None else scheduler.error_profile
    return vdm.in_steps(_chain(vdm, scheduler, num_inference_steps), profile).to(pipeline.device)


def _chain(vdm: VDM, scheduler: VDMScheduler | None, num_steps: int) -> list[float]:
    """Of gammas, `num_steps + 1`."""
    gamma_0, gamma_1 = (gamma.item() for gamma in vdm.noise_schedule.end_points())
    timesteps = None if scheduler is None else kept_timesteps(scheduler, num_steps)
    if timesteps is None:
        return torch.linspace(gamma_0, gamma_1, num_steps + 1, dtype=torch.float64).tolist()
    return [gamma_0, *vdm.timestep_map.inverse(torch.tensor(timesteps[::-1], dtype=torch.float64)).tolist()]
