"""Whether a scheduler is one for a model: the same chain, told by the same timesteps, and the same kind of prediction.

Any scheduler will step, and the pictures of a wrong one look like those of a bad model. So a pipeline remembers what its
denoiser was trained for, in its configuration, and compares.
"""

import math
from typing import Any

import torch
from diffusers import SchedulerMixin


GAMMA_TOLERANCE = 0.25
"""Between chains that are the same: a float32 chain of a VDM misses its gammas by up to 0.18."""


def trained_for(scheduler: SchedulerMixin) -> dict[str, Any] | None:
    """
    What the denoiser that a scheduler belongs to estimates, and the gammas that its timesteps stand for, at four of them.

    `None` for schedulers that are not of a variance-preserving chain, as those of EDM, of flow matching and of a cosine of
    their own.
    """
    config, alphas_cumprod = scheduler.config, getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None or config.get("use_flow_sigmas") or not hasattr(scheduler, "init_noise_sigma"):
        return None
    index = torch.arange(4) * len(alphas_cumprod) // 4
    alphas = torch.as_tensor(alphas_cumprod).cpu().double()[index].clamp(1e-6, 1 - 1e-6)  # beyond, float32 is too coarse
    return {
        "prediction_type": config.get("prediction_type", "epsilon"),
        "num_train_timesteps": len(alphas_cumprod),
        "gammas": torch.log((1 - alphas) / alphas).tolist(),
    }


def check_scheduler(scheduler: SchedulerMixin, expected: dict[str, Any] | None) -> None:
    """Raise `ValueError` unless a scheduler is one for the denoiser that `expected`, by [`trained_for`], describes."""
    name, found = type(scheduler).__name__, trained_for(scheduler)
    remedy = f"make one by `{name}.from_config(config)` of the scheduler's `config` that the model was saved with."
    if found is None:
        raise ValueError(
            f"{name} is no scheduler of a variance-preserving diffusion, as this model's is: take one for a β-chain, such as"
            " `DDIMScheduler.from_config(pipe.scheduler.config)`."
        )
    if expected is None:
        return
    for key in ("prediction_type", "num_train_timesteps"):
        if found[key] != expected[key]:
            raise ValueError(
                f"This {name} was not made for the model: its `{key}` is {found[key]!r}, the model's {expected[key]!r};"
                f" {remedy}"
            )
    pairs = list(zip(found["gammas"], expected["gammas"]))
    if any(abs(mine - its) > GAMMA_TOLERANCE for mine, its in pairs):
        chains = [", ".join(f"{gamma:.2f}" for gamma in gammas) for gammas in zip(*pairs)]
        raise ValueError(
            f"This {name} was not made for the model: along its chain gamma is {chains[0]}, along the model's {chains[1]};"
            f" {remedy}"
        )


def check_description(description: object) -> None:
    """Raise `ValueError` unless it is `None` or as [`trained_for`] gives it."""
    if description is None:
        return
    numbers = description.get("gammas") if isinstance(description, dict) else None
    well_formed = (
        isinstance(numbers, (list, tuple))
        and len(numbers) == 4
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        and {"prediction_type", "num_train_timesteps"} <= description.keys()
    )
    if not well_formed:
        raise ValueError("`trained_for` must be what a pipeline wrote into its `model_index.json`, or left out.")
