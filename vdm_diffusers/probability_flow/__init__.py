"""The probability-flow ODE and the likelihood of images under it."""

from .ode import Flow, exact, hutchinson, integrate, velocity


__all__ = ["Flow", "exact", "hutchinson", "integrate", "velocity"]
