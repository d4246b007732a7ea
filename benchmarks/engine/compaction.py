"""Compaction: dead units are removed from a network while it is trained."""

import dataclasses
from typing import Any

import jax
from flax import nnx

import bregjax
from bregjax import Shrunk


@dataclasses.dataclass(frozen=True)
class Compaction:
    """When a training's network is made smaller, and how."""

    share: float = 0.7
    """the network shrinks when at most this share of its weights leads to live units"""
    most: int = 3
    """how often it shrinks at most; each time the programs are compiled again"""
    round_to: int = 4
    """see `bregjax.shrink`"""


class Compactor:
    """Shrinks a network when it is due, and takes its arrays back to their first shapes.

    Args:
      compaction: when it is due.
      example: a few normalized inputs.
    """

    def __init__(self, compaction: Compaction, example: jax.Array):
        self._compaction, self._example = compaction, example
        self._done: list[Shrunk] = []

    @property
    def count(self) -> int:
        """How often the network has shrunk."""
        return len(self._done)

    def is_due(self, params: Any) -> bool:
        """Whether enough units are dead to shrink the network of these parameters."""
        if self.count == self._compaction.most:
            return False
        kernels = [x for x in jax.tree.leaves(jax.device_get(params)) if x.ndim >= 2]
        live = sum(x.size * x.any(axis=tuple(range(x.ndim - 1))).mean() for x in kernels)
        return live <= self._compaction.share * sum(x.size for x in kernels)

    def shrink(self, model: nnx.Module, optimizer: Any, opt_state: Any) -> tuple[nnx.Module, Any]:
        """The smaller network, in evaluation mode, and the optimizer's state for it."""
        shrunk = bregjax.shrink(model, self._example, round_to=self._compaction.round_to)
        self._done.append(shrunk)
        params = nnx.state(shrunk.network, nnx.Param)
        shrunk_params = shrunk._replace(network=params)
        return shrunk.network, bregjax.shrink_state(optimizer, opt_state, shrunk_params)

    def expand(self, tree: Any) -> Any:
        """Arrays of the smaller network, behind a seed axis, in the shapes of the first network."""
        tree = jax.tree.map(lambda x: x[0], tree)
        for shrunk in reversed(self._done):
            tree = bregjax.unshrink(tree, shrunk)
        return jax.tree.map(lambda x: x[None], tree)
