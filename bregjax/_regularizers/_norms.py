"""Euclidean norms of the groups of an array, for entries of any size, fast on XLA's CPU backend.

The norm of a group is √(Σ xᵢ²). Three things make it more than one line:

* On the CPU a plain sum over the leading axes of a kernel is slow: see `_sum_of_squares`.
* The squares of extreme entries overflow or vanish: `_in_units` divides each group by a power of
  two near its largest entry, and `norms_beside` divides all groups by one near a threshold.
* The derivative of the root at zero is infinite: `_length` and `norms_beside` make it finite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bregjax._numerics import power_of_two_near
from bregjax._sharding import may_be_split

Pointwise = Callable[[jax.Array], jax.Array]
"""A function that acts on each entry by itself."""


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
    """The norms of of(x) over ``axes`` and the threshold, in a unit that suits the threshold.

    They serve to be compared: a norm that is tiny beside the threshold is not exact. Norms have a
    smallest value, which makes their derivatives finite. Their last operation is a root: it is
    costly, so XLA does not repeat it for every entry of the group.
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
    """A unit in which the square of any norm that matters beside ``threshold`` is a float.

    It is 1 unless the threshold is extreme. Beside a moderate threshold it does not matter that the
    square of a norm overflows or vanishes: the threshold is tiny beside the first norm, and the
    second norm is tiny beside the threshold. The smallest unit is a compromise: in smaller ones
    large entries would have NaN as derivatives. (In float32 with a threshold below 1e-12, entries
    from 1e23 on have.)
    """
    limits = jnp.finfo(threshold.dtype)
    moderate = 2.0 ** (limits.maxexp // 2 - limits.nmant - 1)
    unit = power_of_two_near(threshold)
    unremarkable = (unit >= 1 / moderate) & (unit <= moderate)
    return jnp.where(unremarkable, 1, jnp.maximum(unit, 2.0 ** -(limits.maxexp // 5)))


def _sum_of_squares(x: jax.Array, axes: tuple[int, ...], of: Pointwise = jnp.asarray) -> jax.Array:
    """The sum of of(x)² over ``axes``, which stay as axes of size one.

    Over leading axes it is computed as a sum of rows, in rounds. On XLA's CPU backend a plain
    reduction over the (kh, kw) axes of a Conv kernel takes 50 times as long, and a reduction over
    all axes but the last takes twice as long if ``x`` is computed in the same kernel.
    """

    def square(entries: jax.Array) -> jax.Array:
        return jnp.square(of(entries))

    leading = axes == tuple(range(len(axes))) and len(axes) < x.ndim
    # Rows on several devices cannot be summed in rounds.
    if not leading or not x.size or may_be_split(x):
        return jnp.sum(square(x), axis=axes, keepdims=True)
    kept = x.shape[len(axes) :]
    # Row by row, because a square of all of x would be stored in memory.
    total = _sum_of_rows(x.reshape(-1, *kept), square)
    while total.shape[0] > 1:
        total = _sum_of_rows(total, lambda sums: sums)
    return total.reshape((1,) * len(axes) + kept)


# XLA's CPU backend sums this many neighbouring rows about as fast as it reads them.
_MAX_ROWS = 16


def _sum_of_rows(x: jax.Array, term: Pointwise) -> jax.Array:
    """Sums neighbouring rows; how many is the largest divisor of their number up to `_MAX_ROWS`.

    If that divisor is 1, it sums all rows.
    """
    rows = x.shape[0]
    together = max(d for d in range(1, _MAX_ROWS + 1) if rows % d == 0)
    if together == 1:
        return jnp.sum(term(x), axis=0, keepdims=True)
    x = x.reshape(rows // together, together, *x.shape[1:])
    return sum((term(x[:, i]) for i in range(1, together)), start=term(x[:, 0]))
