"""Test error over the remaining weights, beside published results."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report.figures.style import looks, name_lines, name_points, new_figure, spread
from benchmarks.report.results import Run, by_method, over_seeds

Published = Mapping[str, Sequence[tuple[float, float]]]
"""By work, its remaining weights and test errors, both in %."""

_STARS = "#8C6D31"


def error_and_weights(runs: Sequence[Run], title: str, published: Published) -> Figure:
    """Draw test error over the share of weights that remain, a line per kind of method.

    Methods that were not told a density are dense: their lines are horizontal. Published results
    are stars.
    """
    with new_figure(8.0, 5.2) as figure:
        axes = figure.subplots()
        for kind, look in looks(run.kind for run in runs).items():
            groups = by_method([run for run in runs if run.kind == kind])
            points = sorted(map(_point, groups.values()))
            shares, errors, spreads = zip(*points, strict=True)
            if all(run.target_density is None for group in groups.values() for run in group):
                dense = {"color": look["color"], "linestyle": "--", "label": f"{kind}, dense"}
                axes.axhline(errors[0], **dense)
            else:
                axes.errorbar(
                    shares, errors, yerr=spreads, capsize=2, markersize=4, label=kind, **look
                )
        points = [(work, *point) for work, several in published.items() for point in several]
        works, shares, errors = zip(*points, strict=True)
        axes.plot(
            shares,
            errors,
            "*",
            color=_STARS,
            markersize=10,
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=4,
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("remaining weights, share of all in %")
        axes.set_ylabel("test error in %")
        seeds = over_seeds([len(group) for group in by_method(runs).values()])
        axes.set_title(f"{title} ({seeds + '; ' if seeds else ''}stars: published)")
        name_lines(axes)
        name_points(axes, works, np.column_stack([shares, errors]), color=_STARS)
    return figure


def _point(group: Sequence[Run]) -> tuple[float, float, float]:
    """The remaining weights and the test error of a method, with its spread, all in %."""
    errors = [100 * (1 - (run.test_accuracy or np.nan)) for run in group]
    share = 100 * np.mean([run.density for run in group])
    return float(share), float(np.mean(errors)), spread(errors)
