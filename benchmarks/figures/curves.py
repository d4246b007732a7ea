"""Figures, drawn from what an experiment wrote: PNG for the screen, PDF for print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.errors import BenchmarkError

_STYLE: dict[Any, Any] = {
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


def plot_curves(
    axes: Axes, rows: Sequence[dict[str, Any]], field: str, label: str, scale: float = 1.0
) -> None:
    """Plot ``field`` over the epochs, a line per method: mean over seeds and ± one deviation."""
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row[field] is not None]
        epochs = sorted({row["epoch"] for row in mine})
        values = [[scale * row[field] for row in mine if row["epoch"] == e] for e in epochs]
        mean = np.array([np.mean(v) for v in values])
        deviation = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
        (line,) = axes.plot(epochs, mean, label=method)
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)


def learning_curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """The paper's four panels: train and validation accuracy, ℓ1 norm, non-zero weights."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 5.6), layout="constrained")
        panels = figure.subplots(2, 2)
        plot_curves(panels[0, 0], rows, "train_accuracy", "training accuracy in %", 100)
        plot_curves(panels[0, 1], rows, "validation_accuracy", "validation accuracy in %", 100)
        plot_curves(panels[1, 0], rows, "l1_norm", "ℓ1 norm of the weights")
        plot_curves(panels[1, 1], rows, "nonzero", "non-zero weights")
        for axes in panels[0]:
            # The first epochs would flatten what the reader looks for.
            settled = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata())[2:]]
            if settled:
                axes.set_ylim(min(settled) - 1, 100.3)
        panels[1, 0].set_ylim(bottom=0)
        panels[1, 1].set_yscale("log")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        seeds = len({row["seed"] for row in rows})
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
        figure.suptitle(f"{title} (mean ± deviation over {seeds} seeds)" if seeds > 1 else title)
    return figure


def appearing_weights(
    snapshots: Mapping[str, Mapping[int, np.ndarray]], image_shape: tuple[int, int]
) -> Figure:
    """Draw a first layer over time: how many live weights leave each pixel of the image.

    Args:
      snapshots: which weights (pixels, neurons) are live, by method and epoch.
      image_shape: height and width of the image; their product is the number of pixels.
    """
    epochs = sorted(next(iter(snapshots.values())))
    shown = sorted({epochs[round(q * (len(epochs) - 1))] for q in (0, 0.05, 0.125, 0.25, 0.5, 1)})
    style: dict[Any, Any] = {**_STYLE, "axes.grid": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(1.35 * len(shown) + 1.6, 1.5 * len(snapshots) + 0.6))
        grid = figure.subplots(len(snapshots), len(shown), squeeze=False)
        rows = zip(grid, snapshots.items(), strict=True)
        for index, (row, (method, masks)) in enumerate(rows):
            for axes, epoch in zip(row, shown, strict=True):
                live = masks[epoch]
                image = axes.imshow(
                    live.sum(axis=1).reshape(image_shape),
                    vmin=0,
                    vmax=live.shape[1],
                    cmap="cividis",
                )
                axes.set_xlabel(f"{live.mean():.1%} live")
                axes.set_xticks([], [])
                axes.set_yticks([], [])
                if index == 0:
                    axes.set_title(f"epoch {epoch}")
            row[0].set_ylabel(method)
        bar = figure.colorbar(image, ax=grid, shrink=0.8)
        bar.set_label("live weights that leave the pixel")
        figure.suptitle("First-layer weights over the image, one run")
    return figure
