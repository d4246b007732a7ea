"""The largest entries of many arrays taken together, found exactly by counting."""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bregjax._sharding import is_sharded


def top_k_masks(
    keys: Sequence[Sequence[jax.Array]], k: ArrayLike, among: Sequence[jax.Array]
) -> list[jax.Array]:
    """Mark the ``k`` largest entries of several arrays taken together.

    The order of non-negative floats is that of their bits read as integers, so the k-th largest is
    found exactly by 32 counts, one for each bit. That works for a traced ``k``, gathers no array
    that is sharded, and costs a sixth of a sort of 11 million entries on the CPU.

    Args:
      keys: what the entries are ranked by, each in magnitude and in float32: for each key an array
        for each of the arrays. The first key decides, the next one among equals. Of what is equal
        in all keys the first entries are taken.
      k: how many to mark.
      among: boolean arrays, the entries that may be marked; where ``k`` is more, all of them are.

    Returns:
        Boolean arrays with ``k`` entries True in all.
    """
    count_entries(among)
    rankings = [[_rank(jnp.abs(x)) for x in key] for key in keys]
    rankings.append(_from_first_to_last(among))
    k = jnp.asarray(k, jnp.uint32)
    marked, undecided = [jnp.zeros_like(x) for x in among], list(among)
    for ranks in rankings:
        last = _kth_largest_rank(ranks, k, undecided)
        for i, rank in enumerate(ranks):
            sure = undecided[i] & (rank > last)
            marked[i] |= sure
            k -= count_true([sure])
            undecided[i] &= rank == last
    # No two entries are equal in the last ranking: one is left, or all where k is more, or k is 0.
    return [sure | (rest & (k > 0)) for sure, rest in zip(marked, undecided, strict=True)]


def count_true(masks: Iterable[jax.Array]) -> jax.Array:
    """How many entries of boolean arrays are True, uint32."""
    return sum((jnp.sum(x, dtype=jnp.uint32) for x in masks), start=jnp.uint32(0))


def count_entries(arrays: Iterable[jax.Array]) -> int:
    """The number of entries; raises `ValueError` where 32 bits cannot count them."""
    entries = sum(x.size for x in arrays)
    if entries >= 2**32:
        raise ValueError(
            f"params have {entries} entries to count: the exact number can be met among at most"
            f" {2**32 - 1}. Give a mask, or steer without exact=True."
        )
    return entries


def _rank(x: jax.Array) -> jax.Array:
    """Integers in the order of non-negative floats; 0 is that of zero."""
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _from_first_to_last(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Ranks of entries by their place, in C order from array to array: the first is largest."""
    ranks, before = [], 0
    for x in arrays:
        shape, places = x.shape, jnp.full_like(x, before, jnp.uint32)
        for axis in range(len(shape)):
            stride = math.prod(shape[axis + 1 :])
            places += jnp.uint32(stride) * lax.broadcasted_iota(jnp.uint32, shape, axis)
        ranks.append(~places)
        before += math.prod(shape)
    return ranks


def _kth_largest_rank(
    ranks: Sequence[jax.Array], k: jax.Array, among: Sequence[jax.Array]
) -> jax.Array:
    """The largest rank that ``k`` of the entries reach; 0 where there are not so many."""

    def set_bit(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.uint32(1) << jnp.asarray(31 - i, jnp.uint32))
        reached = count_true(
            may & (rank >= candidate) for rank, may in zip(ranks, among, strict=True)
        )
        return jnp.where(reached >= k, candidate, found)

    return lax.fori_loop(0, 32, set_bit, jnp.uint32(0))


def kth_largest(
    values: Sequence[jax.Array], k: jax.Array, sizes: Sequence[int] | None = None
) -> jax.Array:
    """The k-th largest entry of several non-negative float32 arrays taken together, exactly.

    The order of non-negative floats is that of their bits read as integers, which are found from
    the first to the last by counting. A GPU counts for 15 candidates, four bits, in one pass over
    the memory, and has no loop, for which it would wait for the host; a CPU is faster with one bit
    and one candidate at a time, and a loop of 32 turns compiles faster than as many copies.

    Args:
      values: the arrays, not all empty. NaN is above all numbers.
      k: how many entries there are that are as large; below 1 it is taken for 1, above the
        number of entries for that.
      sizes: for how many entries each of an array's stands, by default 1.

    Returns:
        The entry, shape (), float32.
    """
    sizes = [1] * len(values) if sizes is None else sizes
    total = sum(size * count_entries([x]) for x, size in zip(values, sizes, strict=True))
    k = jnp.clip(k.astype(jnp.uint32), 1, jnp.uint32(total))
    entries = [_rank(x) for x in values]
    if not any(map(is_sharded, entries)):  # one pass over all alike is fewer kernels
        ranked = list(zip(entries, sizes, strict=True))
        alike = {size: [x.ravel() for x, n in ranked if n == size] for size in sizes}
        entries, sizes = [jnp.concatenate(xs) for xs in alike.values()], list(alike)

    def reached(entries: list[jax.Array], candidate: jax.Array) -> jax.Array:
        total = jnp.uint32(0)
        for x, size in zip(entries, sizes, strict=True):
            total = total + jnp.uint32(size) * count_true([x >= candidate])
        return total

    def bit_by_bit(entries: list[jax.Array], k: jax.Array) -> jax.Array:
        def set_bit(i: jax.Array, found: jax.Array) -> jax.Array:
            candidate = found | (jnp.uint32(1) << jnp.asarray(31 - i, jnp.uint32))
            return jnp.where(reached(entries, candidate) >= k, candidate, found)

        return lax.fori_loop(0, 32, set_bit, jnp.uint32(0))

    def without_loop(entries: list[jax.Array], k: jax.Array) -> jax.Array:
        found = jnp.uint32(0)
        for shift in range(28, -1, -4):
            candidates = [found + jnp.uint32(digit << shift) for digit in range(1, 16)]
            enough = [reached(entries, each) >= k for each in candidates]
            digit = sum((one.astype(jnp.uint32) for one in enough), jnp.uint32(0))
            found = found + digit * jnp.uint32(2**shift)
        return found

    found = lax.platform_dependent(entries, k, cpu=bit_by_bit, default=without_loop)
    return lax.bitcast_convert_type(found, jnp.float32)
