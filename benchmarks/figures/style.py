"""What all figures share: their looks, and the files they are saved to."""

from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib.figure import Figure

from benchmarks.errors import BenchmarkError

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
    # Okabe and Ito's palette keeps the lines apart for colour-blind readers and in grey.
    "axes.prop_cycle": cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
        linestyle=["-", "--", "-.", ":", "-", "--", "-."],
    ),
}


def save(figure: Figure, out: Path, name: str) -> None:
    """Write NAME.png and NAME.pdf."""
    for ending in ("png", "pdf"):
        path = out / f"{name}.{ending}"
        try:
            figure.savefig(path, dpi=160)
        except OSError as error:
            raise BenchmarkError(f"cannot write {path} ({error.strerror}).") from error
