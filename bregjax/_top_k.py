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
        ranks = [_rank(x).astype(jnp.uint32) for x in _stacked(key, kinds)]
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
    """Integers from 0, that of zero, in the order of the magnitudes of floats."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return bits & jnp.int32(_HIGHEST)


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
        sums = [_sums(x, y)[:, 0] for x, y in zip(marked, bounds, strict=True)]
        return list(jnp.sum(jnp.stack(sums), axis=0, dtype=jnp.uint32))

    return counts


_LARGE = 2**18  # entries: copying so many takes longer than a kernel of their own


class Pool:
    """Non-negative numbers of several arrays, counted in each array and taken together.

    Each number may stand for several entries, such as those of a group: then ``sizes`` says for how
    many in each array. NaN is above all numbers.

    All is done with ranks, integers in the order of the numbers: comparing these is as fast as it
    is with floats, and adding one leads to the next number.
    """

    def __init__(self, values: Sequence[jax.Array], sizes: Sequence[int] | None = None):
        sizes = [1] * len(values) if sizes is None else list(sizes)
        entries = [n * x.size for x, n in zip(values, sizes, strict=True)]
        self._total = count_entries(entries)
        self._sizes, self._entries = np.array(sizes, np.uint32), np.array(entries, np.uint32)
        split = any(map(may_be_split, values))
        self._kinds = [
            kind
            for alike in _alike(values)
            for kind in (
                [alike] if split or values[alike[0]].size < _LARGE else [[i] for i in alike]
            )
        ]
        stacks = [_rank(x) for x in _stacked(values, self._kinds)]
        self._stacks = stacks if split else [x.reshape(len(x), -1) for x in stacks]

    def kth_largest(
        self, k: ArrayLike, least: ArrayLike = 0, near: jax.Array | None = None
    ) -> jax.Array:
        """The number that ``k`` entries reach, exactly, shape (), float32.

        Args:
          k: below 1 it is taken for 1, above the number of entries for that.
          least: of each array at least so many entries are counted, a number or one an array.
          near: a number near the one that is looked for, which is then found in fewer passes.
        """
        k = jnp.clip(jnp.asarray(k, jnp.uint32), 1, jnp.uint32(self._total))
        least = jnp.asarray(least, jnp.uint32)

        def reached(counts: jax.Array) -> jax.Array:
            return jnp.sum(jnp.maximum(counts, least), axis=-1, dtype=jnp.uint32)

        return self._largest(k, reached, near, lambda x: jnp.max(x, axis=-1))

    def kth_largest_of_each(self, k: jax.Array, near: jax.Array | None = None) -> jax.Array:
        """The numbers that ``k[i]`` entries of array i reach, shape (arrays,), float32."""
        k = jnp.clip(jnp.asarray(k, jnp.uint32), 1, jnp.maximum(self._entries, 1))
        return self._largest(k, lambda counts: counts, near, lambda x: x)

    def count_above(self, bounds: jax.Array) -> jax.Array:
        """How many entries of each array are above its bound, or above one for all."""
        bounds = jnp.broadcast_to(_rank(bounds), self._entries.shape)
        # The second is never more; see `_reduced`.
        numbers = jnp.max(self._count(jnp.stack([bounds + 1, bounds + 2])), axis=0)
        return jnp.asarray(self._sizes) * numbers

    def largest_below(self, bounds: jax.Array) -> jax.Array:
        """The largest number of each array below its bound, 0 where there is none, float32."""
        return _unranked(self._largest_below(_rank(bounds)))

    def largest_outside(self, masks: Sequence[jax.Array]) -> jax.Array:
        """The largest number of each array where its mask is False, 0 where there is none."""
        return _unranked(self._extremes(self._like_stacks(masks))[0])

    def smallest_outside(self, masks: Sequence[jax.Array]) -> jax.Array:
        """The smallest number of each array where its mask is False, infinite without any."""
        ranks = self._extremes(self._like_stacks(masks))[1]
        return _unranked(jnp.minimum(ranks, _INFINITY))

    def _largest_below(self, bounds: jax.Array) -> jax.Array:
        spread = self._by_stack(jnp.broadcast_to(bounds, self._entries.shape)[None])
        masks = [x >= y[0] for x, y in zip(self._stacks, spread, strict=True)]
        return self._extremes(masks)[0]

    def _like_stacks(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        stacks = zip(_stacked(arrays, self._kinds), self._stacks, strict=True)
        return [x if x.shape == like.shape else x.reshape(like.shape) for x, like in stacks]

    def _extremes(self, masks: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The largest and the smallest rank of each array where the mask of its stack is False."""
        largest, smallest = zip(*map(_extremes, self._stacks, masks), strict=True)
        return self._of_arrays(largest), self._of_arrays(smallest)

    def _largest(
        self,
        k: jax.Array,
        reached: Callable[[jax.Array], jax.Array],
        near: jax.Array | None,
        joined: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """The largest numbers that so many reach, where ``reached`` adds the arrays' counts up.

        In each pass over the memory entries are counted for several candidates. A GPU, which would
        wait for the host at each round of a loop of unknown length, always makes eight passes of
        four bits. On a CPU the first candidates are around the number that is ``near``, ever closer
        to it, and the next ones divide what is left evenly, until one number is left.
        """

        def of_arrays(candidates: jax.Array) -> jax.Array:
            each = candidates if k.ndim else candidates[:, None]
            return jnp.broadcast_to(each, (len(candidates), *self._entries.shape))

        def enough(numbers: jax.Array) -> jax.Array:
            return reached(jnp.asarray(self._sizes) * numbers) >= k

        def bracketed() -> jax.Array:
            start = _Bracket(
                jnp.zeros(k.shape, jnp.int32),
                jnp.full(k.shape, _HIGHEST, jnp.int32),
                jnp.asarray(self._entries // self._sizes),
                jnp.zeros(self._entries.shape, jnp.uint32),
            )

            def narrow(candidates: jax.Array, bracket: _Bracket) -> _Bracket:
                # Behind the barrier they are computed once, and not anew for each entry.
                numbers = self._count(lax.optimization_barrier(of_arrays(candidates)))
                reach = enough(numbers)
                each = of_arrays(reach)
                low, high, above, beyond = bracket
                return _Bracket(
                    jnp.max(jnp.where(reach, candidates, low), axis=0),
                    jnp.min(jnp.where(reach, high, candidates), axis=0),
                    jnp.min(jnp.where(each, numbers, above), axis=0),
                    jnp.max(jnp.where(each, beyond, numbers), axis=0),
                )

            def divide(bracket: _Bracket) -> _Bracket:
                low, width = bracket.low, bracket.high - bracket.low
                parts = np.arange(1, 8, dtype=np.int32).reshape(-1, *(1,) * k.ndim)
                # In two steps, as the product of width and part may be too large.
                steps = width // 8 * parts + width % 8 * parts // 8
                return narrow(low + jnp.maximum(steps, 1), bracket)

            def several(bracket: _Bracket) -> jax.Array:
                inside = bracket.above - bracket.beyond
                inside = inside if k.ndim else jnp.sum(inside, dtype=jnp.uint32)
                return jnp.any((inside > 1) & (bracket.high - bracket.low > 1))

            if near is not None:
                first = jnp.clip(jnp.broadcast_to(_rank(near), k.shape), _WIDEST, _INFINITY)
                start = narrow(first + _OFFSETS.reshape(-1, *(1,) * k.ndim), start)
            return joined(self._largest_below(lax.while_loop(several, divide, start).high))

        def in_eight_passes() -> jax.Array:
            found = jnp.zeros(k.shape, jnp.int32)
            for shift in range(28, -1, -4):
                # The first bit would be the sign, which no rank has.
                digits = np.arange(1, 8 if shift == 28 else 16, dtype=np.int32) << shift
                candidates = found + digits.reshape(-1, *(1,) * k.ndim)
                reach = enough(self._count(of_arrays(candidates)))
                found = jnp.max(jnp.where(reach, candidates, found), axis=0)
            return found

        return _unranked(lax.platform_dependent(cpu=bracketed, default=in_eight_passes))

    def _count(self, bounds: jax.Array) -> jax.Array:
        """How many numbers of each array reach each of its bounds, in one pass."""
        spread = zip(self._stacks, self._by_stack(bounds), strict=True)
        return self._of_arrays([_sums(x, ys) for x, ys in spread])

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


class _Bracket(NamedTuple):
    """Between which ranks the number lies that is looked for."""

    low: jax.Array
    """which enough entries reach"""
    high: jax.Array
    """which fewer reach"""
    above: jax.Array
    """how many numbers of each array reach the first"""
    beyond: jax.Array
    """and the second"""


_HIGHEST, _INFINITY, _WIDEST = 2**31 - 1, 0x7F800000, 2**20
_STEPS = 2 ** np.array([11, 16, 20], np.int32)
_OFFSETS = np.concatenate([-_STEPS[::-1], [0], _STEPS]).astype(np.int32)
"""of the first candidates, in ranks: 2¹⁶ are a change by 0.4 to 0.8 %"""


def _sums(stack: jax.Array, bounds: jax.Array) -> jax.Array:
    """How many entries of each array of a stack reach each bound, in one pass."""
    if may_be_split(stack):
        several, arrays, *entries = jnp.broadcast_shapes(bounds.shape, (1, *stack.shape))
        rows = (stack >= bounds).reshape(several * arrays, *entries)
        sums = jnp.sum(rows, axis=range(1, rows.ndim), dtype=jnp.uint32)
        return sums.reshape(several, arrays)
    numbers = tuple((stack >= bound).astype(jnp.uint32) for bound in bounds)
    return jnp.stack(_reduced(numbers, (0,) * len(numbers), (lax.add,) * len(numbers)))


def _extremes(stack: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest and the smallest rank of each array of a stack where its mask is False."""
    ends = 0, _HIGHEST
    numbers = tuple(jnp.where(mask, end, stack) for end in ends)
    if may_be_split(stack):
        axes = range(1, stack.ndim)
        smallest = jnp.min(numbers[1], axes, initial=_HIGHEST)
        return jnp.max(numbers[0], axes, initial=0), smallest
    outside = (~mask).astype(jnp.int32)
    largest, smallest, found = _reduced(
        (*numbers, outside), (*ends, 0), (lax.max, lax.min, lax.max)
    )
    return jnp.where(found > 0, largest, 0), jnp.where(found > 0, smallest, _HIGHEST)


def _reduced(
    stacks: Sequence[jax.Array],
    starts: Sequence[int],
    joins: Sequence[Callable[[jax.Array, jax.Array], jax.Array]],
) -> Sequence[jax.Array]:
    """Each of several stacks reduced to a number for each of its arrays, all in one pass.

    XLA's CPU backend makes a reduction of several arrays one vectorized kernel, and one of a single
    array, or of several of which one is used, a loop that is up to 30 times as slow. Over several
    devices it would gather the arrays.
    """

    def join(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(f(a, b) for f, a, b in zip(joins, one, other, strict=True))

    initial = tuple(jnp.asarray(x0, x.dtype) for x0, x in zip(starts, stacks, strict=True))
    return lax.reduce(tuple(stacks), initial, join, range(1, stacks[0].ndim))
