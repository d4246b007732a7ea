"""How many times as fast."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from benchmarks.report.figures.style import looks, name_lines, new_figure


def speedups(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw the speed-up over the share of live weights, a panel for each size and batch size.

    A line per product: medians and quartiles. The dense one, 1, is the horizontal line.
    """
    sizes, batch_sizes = (sorted({row[key] for row in rows}) for key in ("size", "batch_size"))
    products = [m for m in dict.fromkeys(row["method"] for row in rows) if m != "dense"]
    with new_figure(1.9 + 2.2 * len(sizes), 0.6 + 2.2 * len(batch_sizes)) as figure:
        panels = figure.subplots(
            len(batch_sizes), len(sizes), sharex=True, sharey=True, squeeze=False
        )
        for line, batch_size in zip(panels, batch_sizes, strict=True):
            for axes, size in zip(line, sizes, strict=True):
                for product, look in looks(products).items():
                    mine = [
                        row
                        for row in rows
                        if (row["size"], row["batch_size"], row["method"])
                        == (size, batch_size, product)
                    ]
                    medians = np.array([row["speedup"] for row in mine])
                    low, high = np.transpose([row["speedup_quartiles"] for row in mine])
                    axes.errorbar(
                        [100 * row["density"] for row in mine],
                        medians,
                        yerr=(medians - low, high - medians),
                        capsize=2,
                        markersize=4,
                        label=product,
                        **look,
                    )
                axes.axhline(1, color="black", linewidth=0.8)
                axes.set_xscale("log")
                axes.margins(x=0.12)
                axes.set_yscale("log")
                axes.set_xticks(sorted({100 * row["density"] for row in rows}))
                axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} ×"))
                axes.set_title(f"{size} × {size}, batch of {batch_size}", fontsize="medium")
        for axes in panels[:, -1]:
            name_lines(axes)
        for axes in panels[-1]:
            axes.set_xlabel("live weights, share of all")
        for axes in panels[:, 0]:
            axes.set_ylabel("as fast as the dense product")
        figure.suptitle(title)
    return figure
