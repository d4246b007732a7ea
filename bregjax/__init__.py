"""Sparse neural networks by Bregman iterations, as Optax gradient transformations."""

import importlib
from typing import TYPE_CHECKING, Any

from bregjax import baselines
from bregjax._compaction import shrink_state, unshrink, unshrink_state
from bregjax._diagnosis import diagnose
from bregjax._export import load_sparse, save_sparse
from bregjax._initializers import positive_biases, sparse_initializer, sparse_start, sparsify
from bregjax._landing import LandingState, land, landing
from bregjax._leaves import label_by_kind, label_by_path, leaf_name, weight_mask
from bregjax._measures import (
    density,
    effective_rank,
    live_groups,
    regularizer_value,
    relative_rank,
    sparsest_within,
)
from bregjax._mirror import MirrorState, bregman_step, mirror_step
from bregjax._optimizers import adabreg, linbreg, prox_sgd
from bregjax._plateau import PlateauState, grow_rank_on_plateau, relax_on_plateau
from bregjax._prox import ProxState, prox_step
from bregjax._regularizers._base import Regularizer
from bregjax._regularizers._batched import batched
from bregjax._regularizers._elementwise import l1, none, nonneg_l1
from bregjax._regularizers._group import (
    group_l2,
    per_filter,
    per_head,
    per_input_channel,
    per_kernel,
    per_neuron,
    per_token,
    sparse_group,
)
from bregjax._regularizers._nuclear import nuclear
from bregjax._regularizers._soft_bernoulli import soft_bernoulli
from bregjax._regularizers._spectral import NuclearState
from bregjax._report import LayerSparsity, SparsityReport, sparsity_report
from bregjax._shrinking._report import ShrinkReport, ShrunkArray
from bregjax._shrinking._share import shrunk_share_params
from bregjax._shrinking._shrink import Shrunk, shrink_params
from bregjax._states import states_of
from bregjax._steering import SteeringRule, SteerState, adaptive_rule, discrepancy_rule, steer
from bregjax._strength import waking_strength
from bregjax._support import FreezeSupportState, MultilevelState, freeze_support, multilevel
from bregjax._theory import (
    bregman_distance,
    elastic_net,
    elastic_net_conjugate_grad,
    symmetric_bregman_distance,
)
from bregjax._to_density import adabreg_to_density, to_density

if TYPE_CHECKING:
    from bregjax._flax import factorize
    from bregjax._flax_shrinking import shrink, shrink_optimizer, shrunk_share

__version__ = "0.1.0"

__all__ = [
    "FreezeSupportState",
    "LandingState",
    "LayerSparsity",
    "MirrorState",
    "MultilevelState",
    "NuclearState",
    "PlateauState",
    "ProxState",
    "Regularizer",
    "ShrinkReport",
    "Shrunk",
    "ShrunkArray",
    "SparsityReport",
    "SteerState",
    "SteeringRule",
    "adabreg",
    "adabreg_to_density",
    "adaptive_rule",
    "baselines",
    "batched",
    "bregman_distance",
    "bregman_step",
    "density",
    "diagnose",
    "discrepancy_rule",
    "effective_rank",
    "elastic_net",
    "elastic_net_conjugate_grad",
    "factorize",
    "freeze_support",
    "group_l2",
    "grow_rank_on_plateau",
    "l1",
    "label_by_kind",
    "label_by_path",
    "land",
    "landing",
    "leaf_name",
    "linbreg",
    "live_groups",
    "load_sparse",
    "mirror_step",
    "multilevel",
    "none",
    "nonneg_l1",
    "nuclear",
    "per_filter",
    "per_head",
    "per_input_channel",
    "per_kernel",
    "per_neuron",
    "per_token",
    "positive_biases",
    "prox_sgd",
    "prox_step",
    "regularizer_value",
    "relative_rank",
    "relax_on_plateau",
    "save_sparse",
    "shrink",
    "shrink_optimizer",
    "shrink_params",
    "shrink_state",
    "shrunk_share",
    "shrunk_share_params",
    "soft_bernoulli",
    "sparse_group",
    "sparse_initializer",
    "sparse_start",
    "sparsest_within",
    "sparsify",
    "sparsity_report",
    "states_of",
    "steer",
    "symmetric_bregman_distance",
    "to_density",
    "unshrink",
    "unshrink_state",
    "waking_strength",
    "weight_mask",
]


_WITH_FLAX = {
    "factorize": "_flax",
    "shrink": "_flax_shrinking",
    "shrink_optimizer": "_flax_shrinking",
    "shrunk_share": "_flax_shrinking",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_FLAX:
        return getattr(importlib.import_module(f"bregjax.{_WITH_FLAX[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
