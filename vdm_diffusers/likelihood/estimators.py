"""The estimators of bits per dimension by name, and what each measures of a pipeline."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..error_profiles import ErrorProfile
from ..vdm import VDM
from .bound import variational_bound
from .ddpm_bound import DDPM, ddpm_bound
from .estimates import Estimate
from .net_rate import net_rate
from .ode_likelihood import ode_likelihood


CONTINUOUS = "continuous"
"""What stands for a number of steps in continuous time."""


@dataclass(frozen=True)
class Measurement:
    """
    A figure to be computed.

    Attributes:
        name (`str`): For tables and plots.
        settings (`dict`): What distinguishes it from other figures of its estimator, as JSON has it.
        measure (`Callable`): `measure(images, num_repeats, batch_size, seed, device, processes, description) -> Estimate`.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[..., Estimate]


def measurements(estimator: str, pipeline: DiffusionPipeline, device: torch.device, options: object) -> list[Measurement]:
    """Those of one of the `ESTIMATORS`, by the attributes of `options` that it has parameters for."""
    function = ESTIMATORS[estimator]
    names = list(signature(function).parameters)[2:]
    return list(function(pipeline, device, **{name: getattr(options, name) for name in names}))


def vlb(
    pipeline: DiffusionPipeline,
    device: torch.device,
    num_timesteps: Sequence[int | str],
    error_profile: ErrorProfile | None,
) -> Iterator[Measurement]:
    """The variational bound in discrete time, for each of these numbers of steps, or in continuous time.

    The variances of the reverse steps are q's, or with an error profile the optimal ones, which need discrete time.
    """
    variance = "q" if error_profile is None else "optimal"
    for steps in num_timesteps:
        steps = None if steps == CONTINUOUS else steps
        vdm = VDM.from_pipeline(pipeline, num_timesteps=steps, error_profile=error_profile).to(device)
        name = "VLB, " + ("continuous time" if steps is None else f"T = {steps}")
        name += "" if error_profile is None else f", optimal variance, {error_profile.basis}"
        yield Measurement(name, {"num_timesteps": steps, "reverse_variance": variance}, partial(variational_bound, vdm))


def ode(
    pipeline: DiffusionPipeline,
    device: torch.device,
    dequantization: str,
    num_importance_samples: int,
    trace: str,
    tolerance: float,
) -> Iterator[Measurement]:
    """The likelihood by the probability flow."""
    settings = {
        "dequantization": dequantization,
        "num_importance_samples": num_importance_samples,
        "trace": trace,
        "tolerance": tolerance,
    }
    samples = f", K = {num_importance_samples}" if num_importance_samples > 1 else ""
    name = f"ODE, {dequantization.replace('_', ' ')}{samples}"
    yield Measurement(name, settings, partial(ode_likelihood, VDM.from_pipeline(pipeline).to(device), **settings))


def ddpm(
    pipeline: DiffusionPipeline,
    device: torch.device,
    variance_type: Sequence[str] | None,
    clip_denoised: bool,
    num_indices: int | None,
) -> Iterator[Measurement]:
    """DDPM's bound, for each of these variances, or for that of the pipeline's scheduler."""
    for variance in variance_type or [None]:
        model = DDPM.from_pipeline(pipeline, variance, clip_denoised).to(device)
        settings = {
            "variance_type": model.variance_type,
            "clip_denoised": model.clip_denoised,
            "num_indices": num_indices,
        }
        name = f"DDPM's bound, {model.variance_type}" + (", clipped" if model.clip_denoised else "")
        yield Measurement(name, settings, partial(ddpm_bound, model, num_indices=num_indices))


def codec(
    pipeline: DiffusionPipeline,
    device: torch.device,
    num_timesteps: Sequence[int | str],
    error_profile: ErrorProfile | None,
) -> Iterator[Measurement]:
    """The net rate of the lossless codec, for each of these numbers of steps, in the chain and with the variances of `vlb`."""
    for steps in num_timesteps:
        if steps == CONTINUOUS:
            continue
        vdm = VDM.from_pipeline(pipeline, num_timesteps=steps, error_profile=error_profile).to(device)
        variance = "q" if error_profile is None else "optimal"
        name = f"codec, net, T = {steps}" + ("" if error_profile is None else f", optimal variance, {error_profile.basis}")
        yield Measurement(name, {"num_timesteps": steps, "reverse_variance": variance}, partial(net_rate, vdm))


ESTIMATORS: dict[str, Callable[..., Iterator[Measurement]]] = {"vlb": vlb, "ode": ode, "ddpm": ddpm, "codec": codec}
"""Functions `(pipeline, device, ...)` whose further parameters are options of `python -m vdm_diffusers.evaluate`.

They raise `ValueError` for a pipeline that has no such figure. A new estimator is one entry.
"""
