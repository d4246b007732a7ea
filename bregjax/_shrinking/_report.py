"""What shrinking gave: a table."""

import dataclasses


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
        return next(array for array in self.arrays if array.name == name)

    def __str__(self) -> str:
        rows = [("array", "before", "after", "dead units that stay")]
        rows += [
            (array.name, _shape(array.before), _shape(array.after), array.stays)
            for array in self.arrays
        ]
        for name in ("parameters", "multiply_adds", "bytes"):
            before, after = getattr(self, name)
            share = f"{after / before:.1%}" if before else ""
            rows.append((name.replace("_", "-"), f"{before:,}", f"{after:,}", share))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]]
            ).rstrip()
            for row in rows
        ]
        rule = "─" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
