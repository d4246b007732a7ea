"""The kernels of a convolutional network, those that are left."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.figures.style import new_figure

_IN_A_ROW = 16


def learned_kernels(layers: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw every kernel of some convolutions, inputs down and outputs across.

    Each kernel is scaled by its largest weight. A layer with a single input is drawn 16 kernels in
    a row.

    Args:
      layers: by name, kernels of shape (height, width, inputs, outputs), with few inputs or few
        live ones: inputs without a live kernel are left out, and counted.
      title: of the figure.
    """
    shown = {name: _arranged(kernels) for name, kernels in layers.items()}
    heights = [max(1, kernels.shape[2]) / kernels.shape[3] for kernels in shown.values()]
    with new_figure(8.0, 1.2 + 6.5 * sum(heights), grid=False) as figure:
        panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, kernels) in zip(panels, shown.items(), strict=True):
            image = _draw(axes, kernels)
            whole = layers[name]
            live = int(np.any(whole != 0, axis=(0, 1)).sum())
            total = whole.shape[2] * whole.shape[3]
            axes.set_title(f"{name}: {live} of {total} kernels are live ({live / total:.1%})")
            if whole.shape[2] == 1:
                axes.set_xlabel(f"{total} output channels, {kernels.shape[3]} in a row")
            else:
                axes.set_ylabel(f"{kernels.shape[2]} of {whole.shape[2]} input channels")
                axes.set_xlabel(f"{whole.shape[3]} output channels")
        bar = figure.colorbar(image, ax=list(panels), shrink=0.6, aspect=30, pad=0.01)
        bar.set_label("weight, share of the largest in its kernel")
        figure.suptitle(title)
    return figure


def _arranged(kernels: np.ndarray) -> np.ndarray:
    """Kernels as they are drawn: a single input in several rows, else without dead inputs."""
    height, width, inputs, outputs = kernels.shape
    if inputs == 1 and outputs % _IN_A_ROW == 0:
        return kernels.reshape(height, width, outputs // _IN_A_ROW, _IN_A_ROW)
    live = np.any(kernels != 0, axis=(0, 1, 3))
    return kernels[:, :, live] if live.any() else kernels[:, :, :1]


def _draw(axes: Axes, kernels: np.ndarray) -> Any:
    """Kernels side by side, a gap between them; dead ones are white."""
    largest = np.abs(kernels).max(axis=(0, 1), keepdims=True)
    scaled = np.where(largest > 0, kernels / np.where(largest > 0, largest, 1), np.nan)
    gap = np.pad(scaled, ((0, 1), (0, 1), (0, 0), (0, 0)), constant_values=np.nan)
    height, width, rows, columns = gap.shape
    grid = gap.transpose(2, 0, 3, 1).reshape(rows * height, columns * width)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
