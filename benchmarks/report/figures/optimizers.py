"""Several optimizers, each dense, with `to_density` behind it, and with pruning around it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report.figures.curves import quality_of
from benchmarks.report.figures.style import looks, new_figure, spread
from benchmarks.report.results import Run, by_method, over_seeds


def of_optimizers(runs: Sequence[Run], title: str) -> Figure:
    """Draw a row for each optimizer, and in it the mean quality of each way to train with it.

    There is a panel for each density. A way is what follows the optimizer in a method's name, such
    as ``to_density``; without any it is dense, and in all panels.
    """
    quality, label = quality_of(runs)
    targets = {run.target_density for run in runs if run.target_density is not None}
    densities = sorted(targets, reverse=True) or [1.0]
    optimizers = list(dict.fromkeys(_optimizer(run) for run in runs))
    lines = looks(dict.fromkeys(_way(run) for run in runs))
    with new_figure(3.0 + 3.2 * len(densities), 1.4 + 0.42 * len(optimizers)) as figure:
        panels = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
        drawn = {}
        for axes, density in zip(panels, densities, strict=True):
            for place, (way, look) in enumerate(lines.items()):
                groups = {
                    optimizer: [
                        quality(run)
                        for run in runs
                        if (_optimizer(run), _way(run)) == (optimizer, way)
                        and run.target_density in (None, density)
                    ]
                    for optimizer in optimizers
                }
                rows = [i for i, optimizer in enumerate(optimizers) if groups[optimizer]]
                values = [groups[optimizers[i]] for i in rows]
                drawn[way] = axes.errorbar(
                    [np.mean(v) for v in values],
                    [i + 0.16 * (place - len(lines) / 2 + 0.5) for i in rows],
                    xerr=[spread(v) for v in values],
                    capsize=2,
                    markersize=5,
                    **look | {"linestyle": ""},
                )
            axes.set_title(f"density {100 * density:g} %")
            axes.set_xlabel(label)
            axes.set_yticks(range(len(optimizers)), optimizers)
        panels[0].invert_yaxis()
        figure.legend(list(drawn.values()), list(drawn), loc="outside right center")
        seeds = over_seeds([len(group) for group in by_method(runs).values()])
        figure.suptitle(f"{title} ({seeds})" if seeds else title)
    return figure


def _optimizer(run: Run) -> str:
    return run.kind.partition(", ")[0]


def _way(run: Run) -> str:
    return run.kind.partition(", ")[2] or "dense"
