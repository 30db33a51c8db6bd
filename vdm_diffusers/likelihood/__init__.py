"""Figures of a data set, with their errors: the variational bound, DDPM's bound, the likelihood by the ODE.

And the bound of single images, pixel by pixel.
"""

from .bits_map import bits_per_pixel
from .bound import LossProfile, VariationalBound, variational_bound


__all__ = ["LossProfile", "VariationalBound", "bits_per_pixel", "variational_bound"]
