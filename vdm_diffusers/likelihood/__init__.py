"""Figures of a data set, with their errors: the variational bound, DDPM's bound, the likelihood by the ODE."""

from .bound import LossProfile, VariationalBound, variational_bound


__all__ = ["LossProfile", "VariationalBound", "variational_bound"]
