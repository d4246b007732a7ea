"""Which weights of a first layer are live, over the image."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report.figures.style import new_figure


def appearing_weights(
    snapshots: Mapping[str, Mapping[int, np.ndarray]], image_shape: tuple[int, int]
) -> Figure:
    """Draw a first layer over time: how many live weights leave each pixel of the image.

    A method that ended early is drawn once more as it was at its end, and not at later epochs.

    Args:
      snapshots: which weights (pixels, neurons) are live, by method and epoch.
      image_shape: height and width of the image; their product is the number of pixels.
    """
    epochs = sorted(set().union(*snapshots.values()))
    shown = sorted({epochs[round(q * (len(epochs) - 1))] for q in (0, 0.05, 0.125, 0.25, 0.5, 1)})
    with new_figure(1.35 * len(shown) + 1.6, 1.5 * len(snapshots) + 0.6, grid=False) as figure:
        grid = figure.subplots(len(snapshots), len(shown), squeeze=False)
        rows = zip(grid, snapshots.items(), strict=True)
        for index, (row, (method, masks)) in enumerate(rows):
            last = max(masks)
            for axes, epoch, before in zip(row, shown, [-1, *shown[:-1]], strict=True):
                if index == 0:
                    axes.set_title(f"epoch {epoch}")
                if last <= before:
                    axes.axis("off")
                    continue
                live = masks[min(epoch, last)]
                image = axes.imshow(
                    live.sum(axis=1).reshape(image_shape),
                    vmin=0,
                    vmax=live.shape[1],
                    cmap="cividis",
                )
                ended = f",\nended at {last}" if last < epoch else ""
                axes.set_xlabel(f"{live.mean():.1%} live{ended}")
                axes.set_xticks([], [])
                axes.set_yticks([], [])
            row[0].set_ylabel(method)
        bar = figure.colorbar(image, ax=grid, shrink=0.8)
        bar.set_label("live weights that leave the pixel")
        figure.suptitle("First-layer weights over the image, one run")
    return figure
