"""What sparse training is compared with: lasso, magnitude pruning and dynamic sparse training."""

from benchmarks.baselines.densities import erdos_renyi_densities, erdos_renyi_sparsify
from benchmarks.baselines.dynamic import DynamicSparsityState, dynamic_sparsity, rigl, set_training
from benchmarks.baselines.lasso import PenaltyState, add_penalty, lasso
from benchmarks.baselines.pruning import (
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
