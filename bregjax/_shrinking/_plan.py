"""Which units go, what is folded into biases for them, and whether the outputs stay."""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bregjax._shrinking._dataflow import Dataflow, Sum
from bregjax._shrinking._units import ANY

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
    reasons: dict[tuple[int, int], tuple[int, str]]
    """by parameter and axis: how many dead units stay, and why"""


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
    plans = [_Plan(flow, round_to, fold) for flow in flows]
    # Running a network of new sizes compiles it, so the most promising plan comes first.
    for plan in sorted(plans, key=lambda plan: plan.size(plan.everything)):
        if not plan.fault(plan.everything, run):
            return plan.cut(plan.everything)
    return min((_in_parts(plan, run) for plan in plans), key=lambda cut: _size(cut.leaves))


def _in_parts(plan: "_Plan", run: Callable[[list[Any]], Any]) -> Cut:
    """What goes if each group of units is tried by itself."""
    chosen: set[int] = set()
    for group in plan.groups:
        if fault := plan.fault(chosen | group, run):
            plan.refuse(group, fault)
        else:
            chosen |= group
    return plan.cut(chosen)


def _size(leaves: Sequence[Any]) -> int:
    return sum(x.size for x in leaves)


class _Plan:
    def __init__(self, flow: Dataflow, round_to: int, fold: bool):
        self._flow, self._units, self._round_to = flow, flow.units, round_to
        self._may_fold = fold
        self._axes = {
            (index, axis): units
            for index, leaf in enumerate(flow.leaves)
            for axis, units in enumerate(leaf.units)
        }
        self._dead = self._find_dead()
        self.groups, self._refused = self._find_groups()
        self.everything = set().union(*self.groups)

    def _find_dead(self) -> set[int]:
        """Units that add nothing, or what is always the same, to all sums they are in."""
        alive: set[int] = set()
        summed: set[int] = set()
        for part in self._flow.sums:
            roots = self._units.roots(part.units)
            constant = part.known & ~part.nothing & (roots != ANY)
            if constant.any() and not (self._may_fold and self._fold(part, constant)):
                constant[:] = False
            idle = part.nothing | constant
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

    def _fold(self, part: Sum, chosen: np.ndarray) -> tuple[int, np.ndarray] | None:
        """The bias and what is to be added to it when these indices go; None if it cannot be."""
        if part.bias is None:
            return None
        added = np.asarray(part.share(chosen))
        others = tuple(a for a in range(added.ndim) if a not in part.kept_axes)
        first = added[tuple(slice(0, 1) if a in others else slice(None) for a in range(added.ndim))]
        with np.errstate(invalid="ignore", over="ignore"):
            if np.any(np.abs(added - first) > 1e-6 * np.max(np.abs(added), initial=0)):
                return None
        leaf = self._flow.leaves[part.bias]
        places = []
        for units in leaf.units:
            roots = self._units.roots(units)
            alike = [
                axis
                for axis in part.kept_axes
                if np.array_equal(self._units.roots(part.output_units[axis]), roots)
                and axis not in places
            ]
            if not alike and len(roots) != 1:
                return None
            places += alike[:1]
        if sorted(places) != sorted(part.kept_axes):
            return None
        vector = np.squeeze(first, others)
        order = np.argsort(np.argsort(places)) if places else []
        vector = vector.transpose([int(a) for a in order]) if places else vector
        return part.bias, part.sign * vector.reshape(np.shape(leaf.array))

    def _keeps(self, goes: set[int], index: int) -> tuple[np.ndarray, ...]:
        leaf = self._flow.leaves[index]
        return tuple(
            np.flatnonzero(~np.isin(self._units.roots(units), list(goes))) for units in leaf.units
        )

    def _leaves(self, goes: set[int]) -> tuple[list[Any], set[int]]:
        """The smaller parameters, and which of them took in constants."""
        # In NumPy: a step of JAX's would be compiled for each new shape.
        arrays = [np.asarray(leaf.array) for leaf in self._flow.leaves]
        biases = set()
        for part in self._flow.sums:
            gone = np.isin(self._units.roots(part.units), list(goes))
            constant = part.known & ~part.nothing & gone
            if constant.any():
                folded = self._fold(part, constant)
                assert folded is not None
                bias, added = folded
                arrays[bias] = (arrays[bias] + added).astype(arrays[bias].dtype)
                biases.add(bias)
        cuts = []
        for index, x in enumerate(arrays):
            for axis, kept in enumerate(self._keeps(goes, index)):
                if len(kept) < x.shape[axis]:
                    x = np.take(x, kept, axis)
            cuts.append(jnp.asarray(x))
        return cuts, biases

    def refuse(self, units: set[int], why: str) -> None:
        """Note why these stay."""
        self._refused |= dict.fromkeys(units, why)

    def size(self, goes: set[int]) -> int:
        """The number of parameters that are left without these."""
        return sum(
            math.prod(map(len, self._keeps(goes, index))) for index in range(len(self._flow.leaves))
        )

    def fault(self, goes: set[int], run: Callable[[list[Any]], Any]) -> str:
        """Why the network without these does not do; empty if it has the same outputs."""
        try:
            outputs = jax.jit(run)(self._leaves(goes)[0])
        except Exception as error:  # whatever the network's own code raises for other shapes
            said = textwrap.shorten(str(error) or repr(error), 120, placeholder=" …")
            return f"the program does not run without them: {said}"
        expected = [value.array for value in self._flow.outputs]
        for new, old in zip(jax.tree.leaves(outputs), expected, strict=True):
            if np.shape(new) != np.shape(old):
                return "the program has outputs of another shape without them"
            new, old = np.asarray(new, np.float32), np.asarray(old, np.float32)
            scale = np.max(np.abs(old), initial=0)
            if not np.all(np.abs(new - old) <= _TOLERANCE * scale):
                return "the program has other outputs without them"
        return ""

    def cut(self, goes: set[int]) -> Cut:
        """The network without these."""
        reasons = {}
        for (index, axis), units in self._axes.items():
            roots = self._units.roots(units)
            array = np.asarray(self._flow.leaves[index].array)
            others = tuple(a for a in range(array.ndim) if a != axis)
            zero = (array == 0).all(axis=others) & (array.ndim > 1)
            idle = (zero | np.isin(roots, list(self._dead))) & ~np.isin(roots, list(goes))
            if idle.any():
                first = int(roots[idle][0])
                why = self._refused.get(first) or self._units.reason(first)
                reasons[index, axis] = int(idle.sum()), why or "what they put out is needed"
        kept = [self._keeps(goes, index) for index in range(len(self._flow.leaves))]
        leaves, folded = self._leaves(goes)
        return Cut(leaves, kept, folded, reasons)
