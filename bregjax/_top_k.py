"""The largest entries of many arrays taken together, found exactly by counting."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bregjax._sharding import may_be_split


class TopK(NamedTuple):
    """The largest entries of several arrays."""

    masks: list[jax.Array]
    """boolean arrays, True for them"""
    count: jax.Array
    """how many they are, shape (), uint32"""
    last: jax.Array
    """the smallest first key among them, shape (), float32; infinite if there are none"""
    next: jax.Array
    """the largest first key of the other entries, shape (), float32; 0 if there are none"""


def top_k(
    keys: Sequence[Sequence[jax.Array]], k: ArrayLike, among: Sequence[jax.Array] | None = None
) -> TopK:
    """Find the ``k`` largest entries of several arrays taken together.

    The order of non-negative floats is that of their bits read as integers, so the k-th largest is
    found exactly by counting, two bits in each pass. That works for a traced ``k`` and gathers no
    array that is sharded.

    Args:
      keys: what the entries are ranked by, each in magnitude and in float32: for each key an array
        for each of the arrays. The first key decides, the next one among equals. Of what is equal
        in all keys the first entries are taken.
      k: how many to find.
      among: boolean arrays, the entries that may be found, by default all whose first key is not
        zero; where ``k`` is more, all of them are.

    Returns:
        Which they are, and where the boundary to the others is.
    """
    if not keys[0]:
        return TopK([], jnp.uint32(0), jnp.float32(jnp.inf), jnp.float32(0))
    count_entries(x.size for x in keys[0])
    kinds = _alike(keys[0])
    firsts = list(itertools.accumulate((x.size for x in keys[0]), initial=0))
    allowed = (
        [x != 0 for x in _stacked(keys[0], kinds)] if among is None else _stacked(among, kinds)
    )
    undecided = allowed
    found = k = jnp.minimum(jnp.asarray(k, jnp.uint32), count_true(allowed))
    marked = [jnp.zeros_like(x) for x in allowed]
    ranked, lasts = [], []
    for key in keys:
        ranks = [_rank(jnp.abs(x)) for x in _stacked(key, kinds)]
        last, above = _kth_largest_rank(_reaching(lambda ranks=ranks: ranks, undecided), k)
        marked = [m | (u & (x > last)) for m, u, x in zip(marked, undecided, ranks, strict=True)]
        undecided = [u & (x == last) for u, x in zip(undecided, ranks, strict=True)]
        k -= above
        ranked.append(ranks)
        lasts.append(last)

    # No two entries have the same place: all down to the last one are marked.
    def places() -> list[jax.Array]:
        first = [np.array([firsts[i] for i in kind], np.uint32) for kind in kinds]
        return [_from_last_to_first(x, at) for x, at in zip(undecided, first, strict=True)]

    last, _ = _kth_largest_rank(_reaching(places, undecided), k)
    marked = [m | (u & (x >= last)) for m, u, x in zip(marked, undecided, places(), strict=True)]
    others = zip(ranked[0], allowed, marked, strict=True)
    rests = [jnp.max(jnp.where(a & ~m, x, 0), initial=0) for x, a, m in others]
    return TopK(
        masks=_unstacked(marked, kinds),
        count=found,
        last=jnp.where(found == 0, jnp.inf, _unranked(lasts[0])),
        next=_unranked(jnp.max(jnp.stack(rests))),
    )


def count_true(masks: Iterable[jax.Array]) -> jax.Array:
    """How many entries of boolean arrays are True, uint32."""
    # A sum of scalars one by one would be computed again in every array's kernel that uses it.
    counts = [jnp.sum(x, dtype=jnp.uint32) for x in masks]
    return jnp.sum(jnp.stack(counts), dtype=jnp.uint32) if counts else jnp.uint32(0)


def count_entries(sizes: Iterable[int]) -> int:
    """The number of entries of all arrays; raises `ValueError` where 32 bits cannot count them."""
    entries = sum(sizes)
    if entries >= 2**32:
        raise ValueError(
            f"params have {entries} entries to count: the exact number can be met among at most"
            f" {2**32 - 1}. Give a mask, or steer without exact=True."
        )
    return entries


def _rank(x: jax.Array) -> jax.Array:
    """Integers in the order of non-negative floats; 0 is that of zero."""
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _unranked(rank: jax.Array) -> jax.Array:
    """The float of a rank."""
    return lax.bitcast_convert_type(rank, jnp.float32)


def _alike(arrays: Sequence[jax.Array]) -> list[list[int]]:
    """The indices of the arrays, those together that have a shape and sharding in common."""
    kinds: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        kinds.setdefault((x.shape, jax.typeof(x).sharding), []).append(i)
    return list(kinds.values())


def _stacked(arrays: Sequence[jax.Array], kinds: list[list[int]]) -> list[jax.Array]:
    """The arrays of each kind as one along a new first axis, split over devices as before."""
    return [jnp.stack([arrays[i] for i in kind]) for kind in kinds]


def _merged(arrays: Sequence[jax.Array], smaller_than: float = math.inf) -> list[jax.Array]:
    """The entries of the arrays in few: those of the small ones are copied into one."""
    if any(map(may_be_split, arrays)):
        return _stacked(arrays, _alike(arrays))
    small = [x.ravel() for x in arrays if x.size < smaller_than]
    large = [x.ravel() for x in arrays if x.size >= smaller_than]
    return [*large, jnp.concatenate(small)] if small else large


def _unstacked(stacks: Sequence[jax.Array], kinds: list[list[int]]) -> list[jax.Array]:
    """The arrays of which these are stacks."""
    places = itertools.chain.from_iterable(kinds)
    found = dict(zip(places, itertools.chain.from_iterable(stacks), strict=True))
    return [found[i] for i in range(len(found))]


def _from_last_to_first(x: jax.Array, first: np.ndarray) -> jax.Array:
    """Ranks by place of the entries of a stack, whose arrays begin at ``first``, in C order."""
    shape = x.shape
    places = jnp.zeros_like(x, jnp.uint32) + jnp.expand_dims(first, tuple(range(1, x.ndim)))
    for axis in range(1, len(shape)):
        stride = math.prod(shape[axis + 1 :])
        places += jnp.uint32(stride) * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return jnp.uint32(2**32 - 2) - places


CountReaching = Callable[[Sequence[jax.Array]], list[jax.Array]]
"""From several ranks to how many entries reach each of them."""


def _kth_largest_rank(reaching: CountReaching, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest rank that ``k`` of the entries reach, and how many are above it.

    Where there are not so many, the rank is 0; where ``k`` is 0, it is the largest one there is.
    """

    def set_bits(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        largest, above = found
        shift = jnp.asarray(30 - 2 * i, jnp.uint32)
        candidates = [largest | (jnp.uint32(digit) << shift) for digit in (1, 2, 3)]
        counts = reaching(candidates)
        for candidate, count in zip(candidates, counts, strict=True):
            largest = jnp.where(count >= k, candidate, largest)
        # The first candidate that too few reach is the next rank.
        for count in reversed(counts):
            above = jnp.where(count >= k, above, count)
        return largest, above

    return lax.fori_loop(0, 16, set_bits, (jnp.uint32(0), jnp.uint32(0)))


def _reaching(
    ranks: Callable[[], Sequence[jax.Array]], among: Sequence[jax.Array]
) -> CountReaching:
    """How many of the marked entries reach each of several ranks."""
    return lambda candidates: _counts(
        [may & (x >= y) for y in candidates] for x, may in zip(ranks(), among, strict=True)
    )


def _counts(conditions: Iterable[Sequence[jax.Array]]) -> list[jax.Array]:
    """In how many entries of all arrays each of several conditions holds, in one pass.

    XLA's CPU backend makes a reduction of several arrays one vectorized kernel, which is nine times
    as fast as a sum for each of them. Over several devices it would gather the arrays.
    """
    conditions = list(conditions)
    if any(may_be_split(x) for several in conditions for x in several):
        return [count_true(each) for each in zip(*conditions, strict=True)]

    def add(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(one, other, strict=True))

    totals = [
        lax.reduce(
            tuple(x.astype(jnp.uint32) for x in several),
            (jnp.uint32(0),) * len(several),
            add,
            range(several[0].ndim),
        )
        for several in conditions
    ]
    return [jnp.sum(jnp.stack(each), dtype=jnp.uint32) for each in zip(*totals, strict=True)]


_LARGE = 2**18  # entries: copying so many takes longer than a kernel of their own


class Pool:
    """Non-negative numbers of several arrays taken together, not all empty.

    Each number may stand for several entries, such as those of a group: then ``sizes`` says for how
    many in each array. NaN is above all numbers.
    """

    def __init__(self, values: Sequence[jax.Array], sizes: Sequence[int] | None = None):
        sizes = [1] * len(values) if sizes is None else sizes
        self._total = count_entries(n * x.size for x, n in zip(values, sizes, strict=True))
        by_size: dict[int, list[jax.Array]] = {}
        for x, size in zip(values, sizes, strict=True):
            by_size.setdefault(size, []).append(x.astype(jnp.float32))
        self._values = {size: _merged(xs, _LARGE) for size, xs in by_size.items()}

    def kth_largest(self, k: jax.Array) -> jax.Array:
        """The number that ``k`` entries reach, exactly, shape (), float32.

        The order of non-negative floats is that of their bits read as integers, which are found
        from the first to the last by counting. A GPU counts for 15 candidates, four bits, in one
        pass over the memory, and has no loop, for which it would wait for the host; a CPU is faster
        with two bits at a time, and a loop compiles faster than as many copies.

        Args:
          k: below 1 it is taken for 1, above the number of entries for that.
        """
        k = jnp.clip(k.astype(jnp.uint32), 1, jnp.uint32(self._total))
        ranks = {size: [_rank(x) for x in xs] for size, xs in self._values.items()}

        def in_turns(ranks: dict[int, list[jax.Array]], k: jax.Array) -> jax.Array:
            def reaching(candidates: Sequence[jax.Array]) -> list[jax.Array]:
                totals = [jnp.uint32(0)] * len(candidates)
                for size, xs in ranks.items():
                    counts = _counts([x >= y for y in candidates] for x in xs)
                    totals = [
                        total + jnp.uint32(size) * count
                        for total, count in zip(totals, counts, strict=True)
                    ]
                return totals

            return _kth_largest_rank(reaching, k)[0]

        def without_loop(ranks: dict[int, list[jax.Array]], k: jax.Array) -> jax.Array:
            ranks = {size: _merged(xs) for size, xs in ranks.items()}  # as each counts 120 times
            found = jnp.uint32(0)
            for shift in range(28, -1, -4):
                candidates = [found + jnp.uint32(digit << shift) for digit in range(1, 16)]
                enough = [_count(ranks, lambda x, y=y: x >= y) >= k for y in candidates]
                digit = sum((one.astype(jnp.uint32) for one in enough), jnp.uint32(0))
                found = found + digit * jnp.uint32(2**shift)
            return found

        found = lax.platform_dependent(ranks, k, cpu=in_turns, default=without_loop)
        return _unranked(found)

    def count_above(self, bound: jax.Array) -> jax.Array:
        """How many entries are above ``bound``, shape (), uint32."""
        return _count(self._values, lambda x: x > bound)

    def largest_below(self, bound: jax.Array) -> jax.Array:
        """The largest number below ``bound``, 0 where there is none, shape (), float32."""
        arrays = itertools.chain.from_iterable(self._values.values())
        below = [jnp.max(jnp.where(x < bound, x, 0), initial=0) for x in arrays]
        return jnp.max(jnp.stack(below))


def _count(
    arrays: dict[int, list[jax.Array]], holds: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """For how many entries it holds, where each number stands for as many as its key says."""
    total = jnp.uint32(0)
    for size, xs in arrays.items():
        total += jnp.uint32(size) * count_true(map(holds, xs))
    return total
