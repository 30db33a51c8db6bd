"""Local errors of single steps along a fine trajectory of the same model, between any two of its points."""

import torch
from torch import Tensor

from .. import gaussian
from .sampling import Trajectories


def local_errors(trajectories: Trajectories, gammas: Tensor, gamma_end: Tensor, prediction_type: str) -> Tensor:
    """
    How far one deterministic step of first order from each point of trajectories leads from each later one.

    Args:
        trajectories ([`Trajectories`]): Of N steps.
        gammas (`Tensor` of shape `(N,)`): Where they were, decreasing, float64.
        gamma_end (`Tensor` of shape `()`): Where they ended; `-inf` for data.
        prediction_type (`str`): Of the outputs.

    Returns:
        `Tensor` of shape `(N + 1, N + 1)`: at `[s, t]` the root of the mean square distance after the step from t to s, points
        being counted from the end; infinite unless s < t.
    """
    z, output = trajectories.latents.double(), trajectories.outputs.double()
    points = torch.cat([z, trajectories.ends.double()[None]])
    level = gammas.reshape(-1, *[1] * (z.ndim - 1))
    x = gaussian.predicted_sample(prediction_type, output, z, level)
    eps = gaussian.predicted_epsilon(prediction_type, output, z, level)
    targets = torch.cat([gammas, gamma_end[None]])
    errors = gammas.new_full((len(points), len(points)), torch.inf)
    for i in range(len(gammas)):
        later = targets[i + 1 :].reshape(-1, *[1] * (z.ndim - 1))
        reached = gaussian.alpha(later) * x[i] + gaussian.sigma(later) * eps[i]
        errors[i + 1 :, i] = (reached - points[i + 1 :]).square().flatten(1).mean(1).sqrt()
    return errors.flip(0, 1)
