"""Which units go, what is folded into biases for them, and whether the outputs stay."""

import dataclasses
import functools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bregjax._shrinking._dataflow import Dataflow
from bregjax._shrinking._units import ANY
from bregjax._shrinking._values import Bias, Sum

_TOLERANCE = 1e-4
"""by how much of the largest output a wrong cut is told from rounding"""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Smaller parameters, and how they were cut."""

    leaves: list[Any]
    kept: list[tuple[np.ndarray, ...]]
    """of each parameter and axis the indices that are left"""
    folded: set[int]
    """the parameters to which constants of dead units were added"""
    reasons: dict[tuple[int, int], Counter[str]]
    """by parameter and axis: why dead units stay, and how many"""


def cut(
    flows: Sequence[Dataflow],
    run: Callable[[list[Any]], Any],
    round_to: int,
    fold: bool,
) -> Cut:
    """Remove every unit that the program's outputs do not need.

    Args:
      flows: of the program, one for each choice that there is; the smallest network wins.
      run: from parameters, which may be smaller, to the outputs on the example; may raise.
      round_to: sizes stay multiples of this where they were cut.
      fold: whether units may go that put out a constant.
    """
    plans = [_Plan(flow, run, round_to, fold) for flow in flows]
    # Running a network of new sizes compiles it, so the most promising plan comes first.
    for plan in sorted(plans, key=lambda plan: plan.size(plan.everything)):
        if not plan.fault(plan.everything):
            return plan.cut(plan.everything)
    return min(map(_in_parts, plans), key=lambda cut: _size(cut.leaves))


def _in_parts(plan: "_Plan") -> Cut:
    """What goes if each group of units is tried by itself."""
    chosen: set[int] = set()
    for group in plan.groups:
        if fault := plan.fault(chosen | group):
            plan.refuse(group, fault)
        else:
            chosen |= group
    return plan.cut(chosen)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same up to rounding."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.all(np.abs(a - b) <= 1e-6 * np.max(np.abs(a), initial=0)))


def _numbers(jaxpr: Any) -> set[float]:
    """The real numbers that a program has written in it, without NaN, which equals nothing."""
    found = set()
    for eqn in jaxpr.eqns:
        literals = [var.val for var in eqn.invars if isinstance(var, core.Literal)]
        reals = [float(x) for x in literals if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
        found |= {x for x in reals if not math.isnan(x)}
        found = found.union(*map(_numbers, core.jaxprs_in_params(eqn.params)))
    return found


def _size(leaves: Sequence[Any]) -> int:
    return sum(x.size for x in leaves)


class _Plan:
    def __init__(self, flow: Dataflow, run: Callable[[list[Any]], Any], round_to: int, fold: bool):
        self._flow, self._units, self._round_to = flow, flow.units, round_to
        self._run, self._may_fold = jax.jit(run), fold
        self._axes = {
            (index, axis): units
            for index, leaf in enumerate(flow.leaves)
            for axis, units in enumerate(leaf.units)
        }
        self._nothing = self._find_nothing()
        self._constant = self._find_constant()
        self._dead = self._find_dead()
        self.groups, self._refused = self._find_groups()
        self.everything = set().union(*self.groups)

    def _find_nothing(self) -> dict[Sum, np.ndarray]:
        """For each sum which of its indices add nothing to what is read."""
        sums, roots = self._flow.sums, self._units.roots
        unread = np.zeros(self._units.count + 1, bool)  # the last is of ANY
        for part in sums:
            unread[roots(part.units)] = True
        pinned = [root for root in np.flatnonzero(unread[:-1]).tolist() if self._units.reason(root)]
        unread[[*pinned, ANY]] = False
        # Unread until something read reads it. A few rounds, as the last sums come first.
        found: dict[Sum, np.ndarray] = {}
        changed = True
        while changed:
            changed = False
            for part in reversed(sums):
                mine = roots(part.units)
                if part not in found or unread[mine].any():
                    found[part] = part.nothing(lambda units: unread[roots(units)])
                    read = mine[~found[part]]
                    changed |= bool(unread[read].any())
                    unread[read] = False
        return {part: part.nothing(lambda units: unread[roots(units)]) for part in sums}

    def _find_constant(self) -> dict[Sum, np.ndarray]:
        """For each sum of which of its indices a bias can take in what they add."""
        found = {
            part: part.known & ~nothing & (self._units.roots(part.units) != ANY) & self._may_fold
            for part, nothing in self._nothing.items()
        }
        while refused := self._fold(found)[1]:
            for part in refused:
                found[part] = np.zeros_like(found[part])
        return found

    def _find_dead(self) -> set[int]:
        """Units that add nothing, or what a bias can take in, to all sums they are in."""
        alive: set[int] = set()
        summed: set[int] = set()
        for part in self._flow.sums:
            roots = self._units.roots(part.units)
            idle = self._nothing[part] | self._constant[part]
            alive |= set(roots[~idle].tolist())
            summed |= set(roots.tolist())
        return summed - alive - {ANY}

    def _find_groups(self) -> tuple[list[set[int]], dict[int, str]]:
        """What may go, in parts that have no axis in common, and what is spared, and why."""
        spared: dict[int, str] = {}
        goes = {root for root in self._dead if self._units.reason(root) is None}
        for units in self._axes.values():
            roots = self._units.roots(units).tolist()
            distinct = list(dict.fromkeys(roots))
            gone = [root for root in distinct if root in goes]
            if not gone:
                continue
            left = sum(root not in goes for root in roots)
            missing = 1 if left == 0 else 0
            if len(distinct) == len(roots):  # where units are single indices
                wanted = max(left, 1)
                missing = min(-wanted % self._round_to + (left == 0), len(gone))
            goes -= set(gone[:missing])
            why = f"sizes are multiples of {self._round_to}" if left else "something has to stay"
            spared |= dict.fromkeys(gone[:missing], why)
        groups: list[set[int]] = []
        for units in self._axes.values():
            mine = set(self._units.roots(units).tolist()) & goes
            if mine:
                joined = [group for group in groups if group & mine]
                groups = [group for group in groups if not group & mine]
                groups.append(mine.union(*joined))
        return groups, spared

    def _fold(self, chosen: dict[Sum, np.ndarray]) -> tuple[dict[int, np.ndarray], set[Sum]]:
        """What is to be added to which parameters when these indices go, and where it cannot be."""
        added: dict[int, np.ndarray] = {}
        refused = {part for part, mask in chosen.items() if mask.any()}
        refused -= {part for bias in self._flow.biases for _, part in bias.sums}
        for leaf in dict.fromkeys(bias.leaf for bias in self._flow.biases):
            uses = [bias for bias in self._flow.biases if bias.leaf == leaf]
            parts = {part for bias in uses for _, part in bias.sums if chosen[part].any()}
            if parts:
                # A parameter that is used several times has to take in the same each time.
                first, *others = [self._missing(bias, chosen) for bias in uses]
                if first is None or any(x is None or not _alike(x, first) for x in others):
                    refused |= parts
                else:
                    added[leaf] = first
        return added, refused

    def _missing(self, bias: Bias, chosen: dict[Sum, np.ndarray]) -> np.ndarray | None:
        """What sums lack without these indices, in the shape of a bias; None if it has another."""
        leaf = self._flow.leaves[bias.leaf]
        leaf_roots = [self._units.roots(units).tolist() for units in leaf.units]
        total = np.zeros(np.shape(leaf.array))
        for sign, part in bias.sums:
            if not chosen[part].any():
                continue
            share = np.asarray(part.share(chosen[part]), float)
            roots = [self._units.roots(units).tolist() for units in part.output_units]
            places: list[int] = []
            for mine in reversed(leaf_roots):
                same = [a for a in range(share.ndim) if roots[a] == mine and a not in places]
                if not same and len(mine) != 1:
                    return None
                places = same[-1:] + places
            others = [axis for axis in range(share.ndim) if axis not in places]
            share = share.transpose(*others, *places).reshape(-1, *np.shape(leaf.array))
            if not _alike(share, share[:1]):
                return None
            total += sign * share[0]
        return total

    def _keeps(self, goes: set[int], index: int) -> tuple[np.ndarray, ...]:
        leaf = self._flow.leaves[index]
        return tuple(
            np.flatnonzero(~np.isin(self._units.roots(units), list(goes))) for units in leaf.units
        )

    def _leaves(self, goes: set[int]) -> tuple[list[Any], set[int]]:
        """The smaller parameters, and which of them took in constants."""
        # In NumPy: a step of JAX's would be compiled for each new shape.
        arrays = [np.asarray(leaf.array) for leaf in self._flow.leaves]
        gone = {
            part: mask & np.isin(self._units.roots(part.units), list(goes))
            for part, mask in self._constant.items()
        }
        added, refused = self._fold(gone)
        assert not refused
        for index, more in added.items():
            arrays[index] = (arrays[index] + more).astype(arrays[index].dtype)
        cuts = []
        for index, x in enumerate(arrays):
            for axis, kept in enumerate(self._keeps(goes, index)):
                if len(kept) < x.shape[axis]:
                    x = np.take(x, kept, axis)
            cuts.append(jnp.asarray(x))
        return cuts, set(added)

    def _why_it_stays(self, root: int) -> str:
        why = self._refused.get(root) or self._units.reason(root)
        return why or "what they put out is needed"

    def refuse(self, units: set[int], why: str) -> None:
        """Note why these stay."""
        self._refused |= dict.fromkeys(units, why)

    def size(self, goes: set[int]) -> int:
        """The number of parameters that are left without these."""
        return sum(
            math.prod(map(len, self._keeps(goes, index))) for index in range(len(self._flow.leaves))
        )

    @functools.cached_property
    def _numbers_before(self) -> set[float]:
        """The real numbers in the program of the whole network."""
        traced = self._run.trace([leaf.array for leaf in self._flow.leaves])
        return _numbers(traced.jaxpr.jaxpr)

    def fault(self, goes: set[int]) -> str:
        """Why the network without these does not do; empty if it has the same outputs."""
        try:
            leaves = self._leaves(goes)[0]
            traced = self._run.trace(leaves)
            outputs = traced.lower().compile()(leaves)
        except Exception as error:  # whatever the network's own code raises for other shapes
            said = textwrap.shorten(str(error) or repr(error), 120, placeholder=" …")
            return f"the program does not run without them: {said}"
        # The example may not show it: attention is scaled by 1/√n, and all scores are small.
        if more := _numbers(traced.jaxpr.jaxpr) - self._numbers_before:
            return f"the program computes with their number: {min(more):.6g} is new"
        expected = [value.array for value in self._flow.outputs]
        for new, old in zip(jax.tree.leaves(outputs), expected, strict=True):
            if np.shape(new) != np.shape(old):
                return "the program has outputs of another shape without them"
            new, old = np.asarray(new, np.float32), np.asarray(old, np.float32)
            scale = np.max(np.abs(old), initial=0, where=np.isfinite(old))  # −∞ is a mask
            if not np.allclose(new, old, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
                return "the program has other outputs without them"
        return ""

    def cut(self, goes: set[int]) -> Cut:
        """The network without these."""
        reasons: dict[tuple[int, int], Counter[str]] = {}
        biases = {bias.leaf for bias in self._flow.biases}
        for (index, axis), units in self._axes.items():
            roots = self._units.roots(units)
            array = np.asarray(self._flow.leaves[index].array)
            others = tuple(a for a in range(array.ndim) if a != axis)
            zero = (array == 0).all(axis=others) & (array.ndim > 1 and index not in biases)
            idle = (zero | np.isin(roots, list(self._dead))) & ~np.isin(roots, list(goes))
            reasons[index, axis] = Counter(map(self._why_it_stays, roots[idle].tolist()))
        kept = [self._keeps(goes, index) for index in range(len(self._flow.leaves))]
        leaves, folded = self._leaves(goes)
        return Cut(leaves, kept, folded, reasons)
