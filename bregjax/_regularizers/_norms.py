"""Euclidean norms of the groups of an array, of any size, and how XLA's CPU backend sums fast.

The norm of a group is √(Σ xᵢ²). Three things make it more than that line:

* a plain sum over the leading axes of a kernel is slow there: `_sum_of_squares`;
* the squares of extreme entries overflow or vanish: `_in_units` divides each group by a power of
  two near its largest entry, `norms_beside` all of them by one near a threshold;
* the derivative of the root at zero is infinite: `_length` and `norms_beside` make it finite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bregjax._numerics import power_of_two_near
from bregjax._sharding import may_be_split

Pointwise = Callable[[jax.Array], jax.Array]
"""A function of each entry by itself."""


def group_norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norms over ``axes``, kept as axes of size one, of entries of any size."""
    if not axes:
        return jnp.abs(x)
    scaled, unit = _in_units(x, axes)
    return unit * _length(scaled, axes)


def directions(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x_g/‖x_g‖ for each group along ``axes``, of entries of any size; zero for a zero group."""
    scaled, _ = _in_units(x, axes)
    norm = _length(scaled, axes)
    return scaled / jnp.where(norm == 0, 1, norm)


def norms_beside(
    threshold: jax.Array, x: jax.Array, axes: tuple[int, ...], of: Pointwise = jnp.asarray
) -> tuple[jax.Array, jax.Array]:
    """Norms of of(x) over ``axes`` and ``threshold``, both in a unit that fits the threshold.

    They are for comparing: a norm that is nothing beside the threshold is not exact. Norms are
    floored, so that their derivatives are finite. They end in a root, a costly operation, which
    XLA does not repeat for every entry of the group.
    """
    per_unit = 1 / _unit_for(threshold)
    square = _sum_of_squares(x, axes, lambda x: of(x) * per_unit)
    norm = jnp.sqrt(jnp.maximum(square, jnp.finfo(x.dtype).tiny))
    return norm, threshold * per_unit


def _in_units(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """``x`` with each group in a unit near its largest entry, and the units."""
    unit = power_of_two_near(jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0))
    return x * (1 / unit), unit


def _length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norms over ``axes``, kept as axes of size one; the derivative at zero is zero."""
    square = _sum_of_squares(x, axes)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _unit_for(threshold: jax.Array) -> jax.Array:
    """A unit in which a norm that matters beside ``threshold`` has a square that is a float.

    It is 1 unless the threshold is extreme: where the square of a norm overflows, a moderate one is
    nothing beside the norm, and where it vanishes, the norm is nothing beside the threshold. The
    smallest unit is a compromise: in a smaller one larger entries would have NaN as derivatives
    (beside a threshold below 1e-12 in float32 those from 1e23 on do).
    """
    limits = jnp.finfo(threshold.dtype)
    moderate = 2.0 ** (limits.maxexp // 2 - limits.nmant - 1)
    unit = power_of_two_near(threshold)
    unremarkable = (unit >= 1 / moderate) & (unit <= moderate)
    return jnp.where(unremarkable, 1, jnp.maximum(unit, 2.0 ** -(limits.maxexp // 5)))


def _sum_of_squares(x: jax.Array, axes: tuple[int, ...], of: Pointwise = jnp.asarray) -> jax.Array:
    """The sum of of(x)² over ``axes``, which stay as axes of size one.

    Over leading axes it is a sum of rows, in rounds: XLA's CPU backend runs a plain reduction
    over the (kh, kw) axes of a Conv kernel 50 times as slowly, and one over all axes but the last
    twice as slowly where ``x`` is computed on the way.
    """

    def square(entries: jax.Array) -> jax.Array:
        return jnp.square(of(entries))

    leading = axes == tuple(range(len(axes))) and len(axes) < x.ndim
    if not leading or not x.size or may_be_split(x):  # split rows do not come in rounds
        return jnp.sum(square(x), axis=axes, keepdims=True)
    kept = x.shape[len(axes) :]
    # Each row by itself: what is computed of all of x at first is kept in memory.
    total = _sum_of_rows(x.reshape(-1, *kept), square)
    while total.shape[0] > 1:
        total = _sum_of_rows(total, lambda sums: sums)
    return total.reshape((1,) * len(axes) + kept)


# XLA's CPU backend sums so many neighbouring rows in one pass about as fast as it reads them.
_MAX_ROWS = 16


def _sum_of_rows(x: jax.Array, term: Pointwise) -> jax.Array:
    """Sums neighbours along the first axis, as many as its largest divisor up to `_MAX_ROWS` says.

    It sums all of them if there is no such divisor.
    """
    rows = x.shape[0]
    together = max(d for d in range(1, _MAX_ROWS + 1) if rows % d == 0)
    if together == 1:
        return jnp.sum(term(x), axis=0, keepdims=True)
    x = x.reshape(rows // together, together, *x.shape[1:])
    return sum((term(x[:, i]) for i in range(1, together)), start=term(x[:, 0]))
