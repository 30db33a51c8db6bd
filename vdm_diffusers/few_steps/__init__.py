"""The best few steps of a frozen model: from one profile of its errors, the chain and the variances of its steps."""

from ..error_profiles import ErrorProfile
from .chains import best_chain, chain_cost, grid_costs, refined, step_cost
from .measuring import error_profile


__all__ = ["ErrorProfile", "best_chain", "chain_cost", "error_profile", "grid_costs", "refined", "step_cost"]
