"""Tables in plain text, which the reports print."""

from collections.abc import Sequence


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    totals: Sequence[Sequence[str]],
    align: str,
) -> str:
    """Lay out rows between two rules; ``align`` has a ``<`` or ``>`` for each column."""
    widths = [max(map(len, column)) for column in zip(head, *rows, *totals, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, align, widths, strict=True)
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip()

    rule = "─" * len(line(head))
    return "\n".join([line(head), rule, *map(line, rows), rule, *map(line, totals)])
