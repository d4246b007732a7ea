"""What shrinking gave: a table."""

import dataclasses

from bregjax._tables import table


@dataclasses.dataclass(frozen=True)
class ShrunkArray:
    """What `ShrinkReport` says of one array."""

    name: str
    before: tuple[int, ...]
    """its shape"""
    after: tuple[int, ...]
    stays: str
    """which dead units stay, and why; empty where none does"""
    folded: bool = False
    """whether what dead units put out was added to it"""


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` and `shrink_params` made of a network; ``print`` it, or read the fields."""

    arrays: tuple[ShrunkArray, ...]
    parameters: tuple[int, int]
    """before and after"""
    multiply_adds: tuple[int, int]
    """of the forward pass on the example, likewise"""
    bytes: tuple[int, int]
    """of all arrays, likewise"""

    def __getitem__(self, name: str) -> ShrunkArray:
        """What is said of the array of this name."""
        return {array.name: array for array in self.arrays}[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is an array of this name."""
        return any(array.name == name for array in self.arrays)

    def __str__(self) -> str:
        head = ("array", "before", "after", "dead units that stay")
        rows = [
            (array.name, _shape(array.before), _shape(array.after), array.stays)
            for array in self.arrays
        ]
        totals = []
        for name in ("parameters", "multiply_adds", "bytes"):
            before, after = getattr(self, name)
            share = f"{after / before:.1%}" if before else ""
            totals.append((name.replace("_", "-"), f"{before:,}", f"{after:,}", share))
        return table(head, rows, totals, "<>><")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
