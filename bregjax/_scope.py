"""How a wanted number of weights is shared among the layers."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bregjax._top_k import count_entries
from bregjax._validation import check_choice

Scope = Literal["global", "layer", "erdos_renyi"]
"""Which weights compete: all of them, or those of each layer for a number of its own, which is in
proportion to its size or to the sum of its axes."""


def check_scope(scope: Scope) -> None:
    """Raises `ValueError` unless ``scope`` is one of the three."""
    check_choice("scope", scope, get_args(Scope))


class ErdosRenyi:
    r"""Shares in which small layers stay denser than large ones.

    Layer l of :math:`n_l` entries gets :math:`k_l = \min(n_l, \epsilon s_l)` of them, where
    :math:`s_l` is the sum of its axes and ε such that all get k.
    """

    def __init__(self, sizes: Sequence[int], sums: Sequence[int]):
        self._sizes, self._sums = np.array(sizes, np.float64), np.array(sums, np.float64)
        # k rises with ε in straight pieces, which end where a layer is full.
        fulls = np.unique(self._sizes / self._sums)
        totals = [np.minimum(self._sizes, full * self._sums).sum() for full in fulls]
        self._fulls, self._totals = np.append(0, fulls), np.append(0, totals)

    def numbers(self, k: float) -> np.ndarray:
        """The k_l, not rounded."""
        return np.minimum(self._sizes, np.interp(k, self._totals, self._fulls) * self._sums)

    def traced_numbers(self, k: jax.Array) -> jax.Array:
        """The same of a number that may be traced, in float32."""
        totals, fulls = np.float32(self._totals), np.float32(self._fulls)
        epsilon = jnp.interp(k.astype(jnp.float32), totals, fulls)
        return jnp.minimum(np.float32(self._sizes), epsilon * np.float32(self._sums))


_FLOOR = 0.1
"""the share of its Erdős–Rényi number that each layer keeps where all weights compete"""


class LayerCounts:
    """How many weights each of several layers should have of a number k.

    Of the layers the shapes are given, and how much can be counted in each, if that is not entries.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int] | None = None):
        sizes = [math.prod(shape) for shape in shapes] if sizes is None else sizes
        count_entries(sizes)
        self._sizes = np.array(sizes, np.uint32)
        sums = [max(1, sum(shape)) for shape in shapes]
        self._erdos_renyi = ErdosRenyi([max(1, int(n)) for n in self._sizes], sums)

    def counts(self, k: jax.Array, scope: Scope) -> jax.Array:
        """The number k in whole numbers, shape (layers,): at least one a layer where k allows."""
        least, counts = self._at_least_one(k), self._rounded_down(k, scope)
        counts = jnp.maximum(counts, least)
        total = jnp.sum(counts, dtype=jnp.uint32)
        counts -= _filled(jnp.maximum(total, k) - k, counts - least)
        for most in (1, 2**32 - 1):  # what is left over, one for each as long as it lasts
            room = jnp.minimum(self._sizes - counts, jnp.uint32(most))
            counts += _filled(k - jnp.sum(counts, dtype=jnp.uint32), room)
        return counts

    def floors(self, k: jax.Array) -> jax.Array:
        """How many each layer has at least where all compete for k, shape (layers,), uint32."""
        if len(self._sizes) == 1:
            return jnp.zeros(1, jnp.uint32)
        share = (_FLOOR * k.astype(jnp.float32)).astype(jnp.uint32)
        return jnp.maximum(self._rounded_down(share, "erdos_renyi"), self._at_least_one(k))

    def _at_least_one(self, k: jax.Array) -> jax.Array:
        enough = k >= jnp.uint32(len(self._sizes))
        return jnp.where(enough, jnp.minimum(1, self._sizes), 0).astype(jnp.uint32)

    def _rounded_down(self, k: jax.Array, scope: Scope) -> jax.Array:
        if scope == "layer":
            shares = k.astype(jnp.float32) * jnp.float32(self._sizes / self._sizes.sum())
        else:
            shares = self._erdos_renyi.traced_numbers(k)
        # Rounded down also where float32 rounds up.
        floors = jnp.floor(shares * (1 - 2.0**-20)).astype(jnp.uint32)
        return jnp.minimum(floors, self._sizes)


def _filled(amount: ArrayLike, room: jax.Array) -> jax.Array:
    """The amount poured into the rooms, the first ones first."""
    before = jnp.cumsum(room, dtype=jnp.uint32) - room
    return jnp.minimum(room, jnp.where(amount > before, amount - before, 0)).astype(jnp.uint32)
