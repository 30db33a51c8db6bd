"""The best few steps of a frozen model: chains and variances for its bound, timesteps for what a sampler makes of it."""

from ..error_profiles import ErrorProfile
from ..scheduling.any_timesteps import keep_timesteps, with_timesteps
from .block import KeptTimestepsStep
from .chains import best_chain, chain_cost, grid_costs, refined, step_cost
from .measuring import error_profile
from .sampling import Sampler
from .timesteps import Search, plan, probed


__all__ = [
    "ErrorProfile",
    "KeptTimestepsStep",
    "Sampler",
    "Search",
    "best_chain",
    "chain_cost",
    "error_profile",
    "grid_costs",
    "keep_timesteps",
    "plan",
    "probed",
    "refined",
    "step_cost",
    "with_timesteps",
]
