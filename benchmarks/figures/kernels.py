"""The kernels of a convolutional network, those that are left."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.style import STYLE


def learned_kernels(layers: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw every kernel of some convolutions, inputs down and outputs across.

    Args:
      layers: by name, kernels of shape (height, width, inputs, outputs), with few inputs or few
        live ones: inputs without a live kernel are left out, and counted.
      title: of the figure.
    """
    kept = {name: _without_dead_inputs(kernels) for name, kernels in layers.items()}
    heights = [max(1, kernels.shape[2]) for kernels in kept.values()]
    style: dict[Any, Any] = {**STYLE, "axes.grid": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.0, 1.6 + 0.14 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(kept), 1, squeeze=False, height_ratios=heights)
        for axes, (name, kernels) in zip(panels[:, 0], kept.items(), strict=True):
            image = _mosaic(axes, kernels)
            whole = layers[name]
            live = int(np.any(whole != 0, axis=(0, 1)).sum())
            total = whole.shape[2] * whole.shape[3]
            axes.set_title(f"{name}: {live} of {total} kernels are live ({live / total:.1%})")
            axes.set_ylabel(f"{kernels.shape[2]} of {whole.shape[2]}\ninput channels")
            bar = figure.colorbar(image, ax=axes, aspect=8, pad=0.01)
            bar.set_label("weight")
        panels[-1, 0].set_xlabel("output channel")
        figure.suptitle(title)
    return figure


def _without_dead_inputs(kernels: np.ndarray) -> np.ndarray:
    return kernels[:, :, np.any(kernels != 0, axis=(0, 1, 3))]


def _mosaic(axes: Axes, kernels: np.ndarray) -> Any:
    """Kernels side by side, a line between them; dead ones are white."""
    height, width, inputs, outputs = kernels.shape
    grid = np.full((inputs * (height + 1), outputs * (width + 1)), np.nan)
    for i in range(inputs):
        for o in range(outputs):
            kernel = kernels[:, :, i, o]
            if kernel.any():
                top, left = i * (height + 1), o * (width + 1)
                grid[top : top + height, left : left + width] = kernel
    limit = np.abs(kernels).max() if kernels.size else 1.0
    image = axes.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    shown = range(0, outputs, 8)
    axes.set_xticks([o * (width + 1) + width / 2 for o in shown], [str(o) for o in shown])
    axes.set_yticks([])
    axes.set_aspect("auto")
    return image
