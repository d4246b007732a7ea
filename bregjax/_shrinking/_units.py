"""Units: indices of axes that live or die together, found by following a program."""

import numpy as np

ANY = -1
"""an index that goes with every unit, such as one along an axis that was broadcast"""


class Units:
    """Disjoint sets of units; some are pinned, as nothing may be removed of them."""

    def __init__(self) -> None:
        self._parents = np.zeros(0, np.int64)
        self._pins: dict[int, str] = {}

    def new(self, count: int) -> np.ndarray:
        """So many new units."""
        first = len(self._parents)
        fresh = np.arange(first, first + count)
        self._parents = np.concatenate([self._parents, fresh])
        return fresh

    @property
    def count(self) -> int:
        """How many units there are, whichever are one."""
        return len(self._parents)

    def roots(self, units: np.ndarray) -> np.ndarray:
        """For each unit the one that stands for its set."""
        known = np.where(units == ANY, 0, units)
        while len(known):
            above = self._parents[known]
            if np.array_equal(above, known):
                break
            self._parents[known] = self._parents[above]
            known = above
        return np.where(units == ANY, ANY, known)

    def unite(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Make one of each pair; returns them."""
        a, b = np.broadcast_arrays(a, b)
        for x, y in zip(self.roots(a).tolist(), self.roots(b).tolist(), strict=True):
            if ANY in (x, y) or x == y:
                continue
            x, y = (int(root) for root in self.roots(np.array([x, y])))
            if x != y:
                self._parents[max(x, y)] = min(x, y)
                why = self._pins.pop(max(x, y), None)
                if why is not None:
                    self._pins.setdefault(min(x, y), why)
        return self.roots(np.where(a == ANY, b, a))

    def pin(self, units: np.ndarray, why: str) -> None:
        """Keep these units, and say why."""
        for root in np.unique(self.roots(units)).tolist():
            if root != ANY:
                self._pins.setdefault(root, why)

    def reason(self, root: int) -> str | None:
        """Why a unit has to stay; None where nothing says so."""
        return self._pins.get(root)
