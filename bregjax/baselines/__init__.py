"""Methods to compare sparse training with: lasso, magnitude pruning, RigL and SET.

They are Optax transformations too, so all methods run in the same training loop.
"""

from bregjax.baselines._densities import erdos_renyi_densities, erdos_renyi_sparsify
from bregjax.baselines._dynamic import DynamicSparsityState, dynamic_sparsity, rigl, set_training
from bregjax.baselines._lasso import PenaltyState, add_penalty, lasso
from bregjax.baselines._pruning import (
    MagnitudePruningState,
    cubic_density_schedule,
    magnitude_pruning,
)

__all__ = [
    "DynamicSparsityState",
    "MagnitudePruningState",
    "PenaltyState",
    "add_penalty",
    "cubic_density_schedule",
    "dynamic_sparsity",
    "erdos_renyi_densities",
    "erdos_renyi_sparsify",
    "lasso",
    "magnitude_pruning",
    "rigl",
    "set_training",
]
