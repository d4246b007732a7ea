"""Singular values over a training."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.report.figures.style import new_figure


def singular_values(spectra: Mapping[str, Mapping[int, np.ndarray]], title: str) -> Figure:
    """Draw the live singular values of each layer over the epochs, a line for each.

    Args:
      spectra: for each layer its singular values (n,), in falling order, by epoch.
      title: of the figure.
    """
    with new_figure(2.6 * len(spectra) + 0.6, 3.0) as figure:
        panels = figure.subplots(1, len(spectra), squeeze=False)[0]
        for axes, (layer, by_epoch) in zip(panels, spectra.items(), strict=True):
            epochs = sorted(by_epoch)
            values = np.stack([by_epoch[epoch] for epoch in epochs])
            largest = values.max(initial=0)
            values = np.where(values > 1e-5 * largest, values, np.nan)
            live = int(np.isfinite(values[-1]).sum())
            axes.plot(epochs, values, color="#0072B2", linestyle="-", linewidth=0.8)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{layer.removesuffix('.kernel')}: {live} of {values.shape[1]}")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("live singular values")
        figure.suptitle(title)
    return figure
