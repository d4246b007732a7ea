"""The connections of a dense block that survive."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from benchmarks.report.figures.style import new_figure


def surviving_connections(exhibits: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Draw each network as a graph of its feature maps.

    Args:
      exhibits: by method, ``live``: the share of live kernels in the connection from feature map s
        (column) to layer t (row t − 1), and ``norms``, its Euclidean norm, 0 where it is off.
      title: of the figure.
    """
    with new_figure(8.0, 2.6 * len(exhibits) + 0.6, grid=False) as figure:
        grid = figure.subplots(len(exhibits), 1, squeeze=False)
        colors = mpl.colormaps["viridis_r"]
        for axes, (method, arrays) in zip(grid[:, 0], exhibits.items(), strict=True):
            size = len(arrays["norms"])
            survivors = 0
            for target in range(1, size + 1):
                for source in range(target):
                    if arrays["norms"][target - 1, source] == 0:
                        continue
                    survivors += 1
                    share = arrays["live"][target - 1, source]
                    arc = FancyArrowPatch(
                        (source, 0),
                        (target, 0),
                        connectionstyle=f"arc3,rad={-0.38 if (target - source) % 2 else 0.38}"
                        if target - source > 1
                        else "arc3",
                        arrowstyle="-|>",
                        mutation_scale=9,
                        shrinkA=9,
                        shrinkB=9,
                        color=colors(share),
                        linewidth=1 + 2.5 * share,
                    )
                    axes.add_patch(arc)
            axes.scatter(range(size + 1), [0] * (size + 1), s=190, c="white", ec="black", zorder=3)
            for feature_map in range(size + 1):
                axes.annotate(
                    str(feature_map), (feature_map, 0), ha="center", va="center", zorder=4
                )
            axes.set_xlim(-0.4, size + 0.4)
            axes.set_ylim(-0.4 * size, 0.4 * size)
            axes.set_axis_off()
            total = size * (size + 1) // 2
            axes.set_title(f"{method}: {survivors} of {total} connections survive")
        scale = ScalarMappable(Normalize(0, 1), colors)
        bar = figure.colorbar(scale, ax=list(grid[:, 0]), shrink=0.6)
        bar.set_label("live kernels in the connection, share of 1")
        figure.suptitle(f"{title}: feature maps 0 (stem) to the last layer")
    return figure
