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
        Which they are.
    """
    if not keys[0]:
        return TopK([], jnp.uint32(0))
    count_entries(x.size for x in keys[0])
    kinds = _alike(keys[0])
    firsts = list(itertools.accumulate((x.size for x in keys[0]), initial=0))
    allowed = (
        [x != 0 for x in _stacked(keys[0], kinds)] if among is None else _stacked(among, kinds)
    )
    undecided = allowed
    found = k = jnp.minimum(jnp.asarray(k, jnp.uint32), count_true(allowed))
    marked = [jnp.zeros_like(x) for x in allowed]
    for key in keys:
        ranks = [_rank(jnp.abs(x)) for x in _stacked(key, kinds)]
        last, above = _kth_largest_rank(_reaching(lambda ranks=ranks: ranks, undecided), k)
        marked = [m | (u & (x > last)) for m, u, x in zip(marked, undecided, ranks, strict=True)]
        undecided = [u & (x == last) for u, x in zip(undecided, ranks, strict=True)]
        k -= above

    # No two entries have the same place: all down to the last one are marked.
    def places() -> list[jax.Array]:
        first = [np.array([firsts[i] for i in kind], np.uint32) for kind in kinds]
        return [_from_last_to_first(x, at) for x, at in zip(undecided, first, strict=True)]

    last, _ = _kth_largest_rank(_reaching(places, undecided), k)
    marked = [m | (u & (x >= last)) for m, u, x in zip(marked, undecided, places(), strict=True)]
    return TopK(_unstacked(marked, kinds), found)


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

    def counts(candidates: Sequence[jax.Array]) -> list[jax.Array]:
        marked = [jnp.where(may, x, 0)[None] for x, may in zip(ranks(), among, strict=True)]
        bounds = [jnp.stack(candidates).reshape(-1, *(1,) * x.ndim) for x in marked]
        sums = [_sums(jnp.greater_equal, x, y)[:, 0] for x, y in zip(marked, bounds, strict=True)]
        return list(jnp.sum(jnp.stack(sums), axis=0, dtype=jnp.uint32))

    return counts


_LARGE = 2**18  # entries: copying so many takes longer than a kernel of their own


class Pool:
    """Non-negative numbers of several arrays, counted in each array and taken together.

    Each number may stand for several entries, such as those of a group: then ``sizes`` says for how
    many in each array. NaN is above all numbers.
    """

    def __init__(self, values: Sequence[jax.Array], sizes: Sequence[int] | None = None):
        sizes = [1] * len(values) if sizes is None else list(sizes)
        entries = [n * x.size for x, n in zip(values, sizes, strict=True)]
        self._total = count_entries(entries)
        self._sizes, self._entries = np.array(sizes, np.uint32), np.array(entries, np.uint32)
        values = [x.astype(jnp.float32) for x in values]
        split = any(map(may_be_split, values))
        self._kinds = [
            kind
            for alike in _alike(values)
            for kind in (
                [alike] if split or values[alike[0]].size < _LARGE else [[i] for i in alike]
            )
        ]
        stacks = _stacked(values, self._kinds)
        self._stacks = stacks if split else [x.reshape(len(x), -1) for x in stacks]

    def kth_largest(self, k: ArrayLike, least: ArrayLike = 0) -> jax.Array:
        """The number that ``k`` entries reach, exactly, shape (), float32.

        The order of non-negative floats is that of their bits read as integers, which are found
        from the first to the last by counting. A GPU counts for 15 candidates, four bits, in one
        pass over the memory, and has no loop, for which it would wait for the host; a CPU is faster
        with two bits at a time, and a loop compiles faster than as many copies.

        Args:
          k: below 1 it is taken for 1, above the number of entries for that.
          least: of each array at least so many entries are counted, a number or one an array.
        """
        k = jnp.clip(jnp.asarray(k, jnp.uint32), 1, jnp.uint32(self._total))
        least = jnp.asarray(least, jnp.uint32)

        def reached(counts: jax.Array) -> jax.Array:
            return jnp.sum(jnp.maximum(counts, least), axis=-1, dtype=jnp.uint32)

        return self._largest(k, reached)

    def kth_largest_of_each(self, k: jax.Array) -> jax.Array:
        """The numbers that ``k[i]`` entries of array i reach, shape (arrays,), float32."""
        k = jnp.clip(jnp.asarray(k, jnp.uint32), 1, jnp.maximum(self._entries, 1))
        return self._largest(k, lambda counts: counts)

    def count_above(self, bounds: jax.Array) -> jax.Array:
        """How many entries of each array are above its bound, or above one for all."""
        bounds = jnp.broadcast_to(bounds, self._entries.shape)[None]
        return self._count(jnp.greater, bounds, self._stacks)[0]

    def largest_below(self, bounds: jax.Array) -> jax.Array:
        """The largest number of each array below its bound, 0 where there is none, float32."""
        spread = self._by_stack(jnp.broadcast_to(bounds, self._entries.shape)[None])
        masks = [x >= y[0] for x, y in zip(self._stacks, spread, strict=True)]
        return self._extremes(masks)[0]

    def largest_outside(self, masks: Sequence[jax.Array]) -> jax.Array:
        """The largest number of each array where its mask is False, 0 where there is none."""
        return self._extremes(self._like_stacks(masks))[0]

    def smallest_outside(self, masks: Sequence[jax.Array]) -> jax.Array:
        """The smallest number of each array where its mask is False, infinite without any."""
        return self._extremes(self._like_stacks(masks))[1]

    def _like_stacks(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        stacks = zip(_stacked(arrays, self._kinds), self._stacks, strict=True)
        return [x if x.shape == like.shape else x.reshape(like.shape) for x, like in stacks]

    def _extremes(self, masks: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The largest and the smallest number of each array where the mask of its stack is False.

        Without any they are 0 and infinite.
        """
        largest, smallest = zip(*map(_extremes, self._stacks, masks), strict=True)
        return self._of_arrays(largest), self._of_arrays(smallest)

    def _largest(self, k: jax.Array, reached: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The largest numbers that so many reach, where ``reached`` adds the arrays' counts up."""
        ranks = [_rank(x) for x in self._stacks]

        def search(bits: int, found: jax.Array, shift: Any, ranks: list[jax.Array]) -> jax.Array:
            digits = jnp.arange(1, 2**bits, dtype=jnp.uint32)
            candidates = found + jnp.expand_dims(digits << shift, range(1, 1 + found.ndim))
            bounds = candidates if found.ndim else candidates[:, None]
            bounds = jnp.broadcast_to(bounds, (len(digits), *self._entries.shape))
            enough = reached(self._count(jnp.greater_equal, bounds, ranks)) >= k
            return found + (jnp.sum(enough, axis=0, dtype=jnp.uint32) << shift)

        def in_turns(found: jax.Array, ranks: list[jax.Array]) -> jax.Array:
            def two_bits(i: jax.Array, found: jax.Array) -> jax.Array:
                return search(2, found, jnp.asarray(30 - 2 * i, jnp.uint32), ranks)

            return lax.fori_loop(0, 16, two_bits, found)

        def without_loop(found: jax.Array, ranks: list[jax.Array]) -> jax.Array:
            for shift in range(28, -1, -4):
                found = search(4, found, jnp.uint32(shift), ranks)
            return found

        found = jnp.zeros_like(k)
        found = lax.platform_dependent(found, ranks, cpu=in_turns, default=without_loop)
        return _unranked(found)

    def _count(
        self,
        holds: Callable[[jax.Array, jax.Array], jax.Array],
        bounds: jax.Array,
        stacks: Sequence[jax.Array],
    ) -> jax.Array:
        """For how many entries of each array it holds with each of its bounds, in one pass."""
        spread = zip(stacks, self._by_stack(bounds), strict=True)
        numbers = self._of_arrays([_sums(holds, x, ys) for x, ys in spread])
        return jnp.asarray(self._sizes) * numbers

    def _by_stack(self, bounds: jax.Array) -> list[jax.Array]:
        """Bounds of shape (n, arrays) as each stack compares its numbers with them."""
        return [
            jnp.expand_dims(bounds[:, np.array(kind)], tuple(range(2, x.ndim + 1)))
            for kind, x in zip(self._kinds, self._stacks, strict=True)
        ]

    def _of_arrays(self, of_stacks: Sequence[jax.Array]) -> jax.Array:
        """From numbers of each stack, the arrays being last, to those of all in their order."""
        order = np.argsort(list(itertools.chain.from_iterable(self._kinds)))
        return jnp.concatenate(of_stacks, axis=-1)[..., order]


def _sums(
    holds: Callable[[jax.Array, jax.Array], jax.Array], stack: jax.Array, bounds: jax.Array
) -> jax.Array:
    """In how many entries of each array of a stack it holds with each bound, in one pass."""
    if may_be_split(stack):
        several, arrays, *entries = jnp.broadcast_shapes(bounds.shape, (1, *stack.shape))
        rows = holds(stack, bounds).reshape(several * arrays, *entries)
        sums = jnp.sum(rows, axis=range(1, rows.ndim), dtype=jnp.uint32)
        return sums.reshape(several, arrays)
    numbers = tuple(holds(stack, bound).astype(jnp.uint32) for bound in bounds)
    return jnp.stack(_reduced(numbers, (0,) * len(numbers), (lax.add,) * len(numbers)))


def _extremes(stack: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest and the smallest number of each array of a stack where its mask is False."""
    ends, choose = (0.0, math.inf), (lax.max, lax.min)
    numbers = tuple(jnp.where(mask, end, stack) for end in ends)
    if may_be_split(stack):
        axes = range(1, stack.ndim)
        return jnp.max(numbers[0], axes, initial=0), jnp.min(numbers[1], axes, initial=math.inf)
    largest, smallest = _reduced(numbers, ends, choose)
    return largest, smallest


def _reduced(
    stacks: Sequence[jax.Array],
    starts: Sequence[float],
    joins: Sequence[Callable[[jax.Array, jax.Array], jax.Array]],
) -> Sequence[jax.Array]:
    """Each of several stacks reduced to a number for each of its arrays, all in one pass.

    XLA's CPU backend makes a reduction of several arrays one vectorized kernel, and one of a single
    array a loop that is up to 30 times as slow. Over several devices it would gather the arrays.
    """
    if len(stacks) == 1:
        return _reduced(2 * list(stacks), 2 * list(starts), 2 * list(joins))[:1]

    def join(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(f(a, b) for f, a, b in zip(joins, one, other, strict=True))

    initial = tuple(jnp.asarray(x0, x.dtype) for x0, x in zip(starts, stacks, strict=True))
    return lax.reduce(tuple(stacks), initial, join, range(1, stacks[0].ndim))
