"""What all figures share: their looks, and the files they are saved to."""

import io
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib.figure import Figure

from benchmarks.report.results import write_file

_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_LINES = ["-", "--", "-.", ":"]

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
    # Okabe and Ito's palette keeps the lines apart for colour-blind readers and in grey; after a
    # round of it each colour comes with another kind of line.
    "axes.prop_cycle": cycler(
        color=_COLORS * len(_LINES),
        linestyle=[
            _LINES[(place + turn) % len(_LINES)]
            for turn in range(len(_LINES))
            for place in range(len(_COLORS))
        ],
    ),
}


def save(figure: Figure, out: Path, name: str) -> None:
    """Write NAME.png and NAME.pdf."""
    for ending in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=ending, dpi=160)
        write_file(out / f"{name}.{ending}", content.getvalue())
