"""The architecture that emerges in an autoencoder, and what it makes of images."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator

from benchmarks.report.figures.style import new_figure

Snapshots = Mapping[str, Mapping[int, np.ndarray]]


def architectures(neurons: Snapshots, skips: Snapshots, title: str) -> Figure:
    """Draw live neurons of each layer over the epochs and at the end, with the skips that are on.

    Args:
      neurons: by case and epoch, live neurons (seeds, layers); the first seed is drawn.
      skips: likewise the strengths (seeds, ·) of the skips, those that end at the first layer
        first, where the case has any.
      title: of the figure.
    """
    with new_figure(9.0, 2.5 * len(neurons) + 0.5, grid=False) as figure:
        grid = figure.subplots(len(neurons), 2, squeeze=False, width_ratios=(1, 1.5))
        for (over_time, network), (case, epochs) in zip(grid, neurons.items(), strict=True):
            counts = np.stack([epochs[epoch][0] for epoch in sorted(epochs)])
            for layer, curve in enumerate(counts.T, start=1):
                over_time.plot(sorted(epochs), curve, label=f"layer {layer}")
            over_time.set_ylabel(f"{case}\nlive neurons")
            over_time.grid(visible=True, alpha=0.3)
            over_time.set_ylim(0, 800)
            over_time.xaxis.set_major_locator(MaxNLocator(integer=True))
            strengths = skips[case][max(epochs)][0] if case in skips else np.zeros(0)
            _draw_network(network, counts[-1], strengths)
        grid[0, 0].legend(ncols=2, fontsize="small")
        grid[-1, 0].set_xlabel("epoch")
        grid[-1, 1].set_xlabel(
            "layer (0 is the image); orange: skips that are on, and their strengths"
        )
        figure.suptitle(title)
    return figure


def _draw_network(axes: Axes, live: np.ndarray, strengths: np.ndarray) -> None:
    """Bars as high as the layers are wide, and an arc for every skip that is on."""
    widths = np.array([784, *live])
    layers = range(len(widths))
    colors = ["0.7", *["#0072B2"] * len(live)]
    axes.bar(layers, widths, bottom=-widths / 2, width=0.5, color=colors)
    for layer, width in zip(layers, widths, strict=True):
        axes.annotate(str(width), (layer, -width / 2), ha="center", va="top", fontsize="small")
    starts = [0] * len(widths)
    pairs = [(source, target) for target in layers[1:] for source in range(target)]
    for (source, target), strength in zip(pairs, strengths, strict=False):
        if strength != 0:
            arc = FancyArrowPatch(
                (source, widths[source] / 2 + 15),
                (target, widths[target] / 2 + 15),
                connectionstyle=f"arc3,rad=-{0.25 if target - source > 1 else 0.4}",
                arrowstyle="-|>",
                mutation_scale=10,
                color="#D55E00",
                linewidth=1.2,
            )
            axes.add_patch(arc)
            # Beside the start of the arc, one above the other.
            place = source + 0.06, widths[source] / 2 + 60 + 55 * starts[source]
            axes.annotate(f"{strength:+.3f}", place, ha="right", color="#D55E00", fontsize=7)
            starts[source] += 1
    axes.set_ylim(-480, 480 + (80 * len(live) if np.any(strengths) else 0))
    axes.set_xlim(-0.6, len(live) + 0.6)
    axes.set_xticks(layers)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def restored_images(exhibits: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw corrupted images, what each network makes of them, and the clean ones.

    Args:
      exhibits: by case, ``input``, ``output`` and ``target``: images (n, height, width, 1).
    """
    rows = math.ceil(len(exhibits) / 2)
    with new_figure(9.0, 2.0 * rows, grid=False) as figure:
        panels = figure.subplots(rows, 2, squeeze=False).flat
        for axes, (case, images) in zip(panels, exhibits.items(), strict=False):
            stack = [
                np.concatenate(list(images[name][..., 0].astype(np.float32)), axis=1)
                for name in ("input", "output", "target")
            ]
            axes.imshow(np.concatenate(stack), cmap="gray", vmin=0, vmax=1)
            height = images["input"].shape[1]
            axes.set_yticks([height * (i + 0.5) for i in range(3)], ["input", "output", "clean"])
            axes.set_xticks([])
            axes.set_title(case)
    return figure
