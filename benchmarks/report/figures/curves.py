"""Learning curves, and where they end."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from benchmarks.report.figures.style import looks, name_lines, new_figure, spread
from benchmarks.report.results import Run, by_method, means, over_seeds
from bregjax import sparsest_within


def plot_curves(
    axes: Axes, rows: Sequence[dict[str, Any]], field: str, label: str, scale: float = 1.0
) -> None:
    """Plot ``field`` over the epochs, a line per method: mean over seeds and ± one deviation."""
    for method, look in looks(row["method"] for row in rows).items():
        mine = [row for row in rows if row["method"] == method and row[field] is not None]
        epochs = sorted({row["epoch"] for row in mine})
        values = [[scale * row[field] for row in mine if row["epoch"] == e] for e in epochs]
        mean = np.array([np.mean(v) for v in values])
        deviation = np.array([spread(v) for v in values])
        axes.plot(epochs, mean, label=method, color=look["color"], linestyle=look["linestyle"])
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=look["color"], alpha=0.2, lw=0
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)


def learning_curves(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """The paper's four panels: accuracy in training and validation, ℓ1 norm, non-zero weights.

    Where there are no classes the first two show the loss, a mean squared error per pixel.
    """
    classes = any(row["validation_accuracy"] is not None for row in rows)
    with new_figure(9.0, 5.2) as figure:
        panels = figure.subplots(2, 2)
        for axes, images in zip(panels[0], ("train", "validation"), strict=True):
            words = "training" if images == "train" else images
            if classes:
                plot_curves(axes, rows, f"{images}_accuracy", f"{words} accuracy in %", 100)
                # The first epochs would flatten what the reader looks for.
                settled = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata())[2:]]
                if settled:
                    axes.set_ylim(min(settled) - 1, min(max(settled) + 1, 100.3))
            else:
                plot_curves(axes, rows, f"{images}_loss", f"{words} error,\nmean square per pixel")
                axes.set_yscale("log")
        plot_curves(panels[1, 0], rows, "l1_norm", "ℓ1 norm of the weights")
        plot_curves(panels[1, 1], rows, "nonzero", "non-zero weights")
        norms = [row["l1_norm"] for row in rows if row["l1_norm"]]  # None where it is not finite
        if norms and max(norms) > 100 * np.median(norms):  # one that explodes would hide the others
            panels[1, 0].set_yscale("log")
        else:
            panels[1, 0].set_ylim(bottom=0)
        panels[1, 1].set_yscale("log")
        for axes in panels[:, 1]:
            name_lines(axes)
        counts = Counter(method for method, _ in {(row["method"], row["seed"]) for row in rows})
        seeds = over_seeds(counts.values())
        figure.suptitle(f"{title} ({seeds})" if seeds else title)
    return figure


def accuracy_and_density(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy over the share of live weights, the mean of each method over its seeds.

    Methods that differ in the density they were told are points of one line.
    """
    return _accuracy_over(runs, lambda run: run.density, "live weights, share of all in %", title)


def accuracy_and_cost(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy over the multiply-adds of the training, likewise."""
    label = "multiply-adds of the training, share of dense training's in %"
    return _accuracy_over(runs, lambda run: run.findings["multiply_adds"], label, title)


def accuracy_and_time(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy over the time of the whole training, beside that of dense Adam."""
    dense = np.mean([run.findings["seconds"] for run in runs if run.method == "Adam"])
    label = "time of the training, share of dense training's in %"
    return _accuracy_over(
        runs, lambda run: run.findings["seconds"] / dense, label, title, logarithmic=False
    )


def _accuracy_over(
    runs: Sequence[Run],
    share: Callable[[Run], float],
    label: str,
    title: str,
    *,
    logarithmic: bool = True,
) -> Figure:
    with new_figure(7.0, 4.2) as figure:
        axes = figure.subplots()
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for method, group in by_method(runs).items():
            accuracies = [100 * (run.test_accuracy or np.nan) for run in group]
            place = float(np.mean([100 * share(run) for run in group]))
            line = method if group[0].target_density is None else group[0].kind
            lines.setdefault(line, []).append(
                (place, float(np.mean(accuracies)), spread(accuracies))
            )
        for line, look in looks(lines).items():
            places, means, spreads = zip(*sorted(lines[line]), strict=True)
            axes.errorbar(places, means, yerr=spreads, capsize=2, label=line, **look)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
        axes.xaxis.set_major_formatter(_percent())
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy in %")
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(title)
    return figure


def accuracy_by_method(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy with a row per method: each seed, and a line at a family's first row."""
    groups = by_method(runs)
    with new_figure(7.0, 0.6 + 0.22 * len(groups)) as figure:
        axes = figure.subplots()
        firsts: dict[str, float] = {}
        for row, (method, group) in enumerate(groups.items()):
            accuracies = [100 * (run.test_accuracy or np.nan) for run in group]
            color = looks([method])[method]["color"]
            family = method.split(",")[0]
            if family not in firsts:
                firsts[family] = float(np.mean(accuracies))
                others = [other.split(",")[0] == family for other in groups]
                span = (row - 0.4, row + sum(others) - 0.6)
                axes.plot([firsts[family]] * 2, span, color=color, linewidth=0.8)
            axes.plot(accuracies, [row] * len(group), "o", color=color)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy in %")
        axes.set_title(title)
    return figure


def layer_densities(layers: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Draw the share of live weights in each layer, a line per method.

    Args:
      layers: for each method the density by the name of the layer; they are drawn in this order.
      title: of the figure.
    """
    names = list(next(iter(layers.values())))
    with new_figure(9.0, 5.0) as figure:
        axes = figure.subplots()
        for method, look in looks(layers).items():
            shares = [100 * float(layers[method][name]) or np.nan for name in names]
            axes.plot(shares, markersize=3, label=method, **look)
        labels = [name.removesuffix(".kernel") for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize="small")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_percent())
        axes.set_ylabel("live weights, share of the layer's in %")
        name_lines(axes)
        axes.set_title(title)
    return figure


def accuracy_at_targets(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy over the sparsity asked for, a line per kind of method."""
    with new_figure(6.6, 3.8) as figure:
        axes = figure.subplots()
        targets = sorted({_target(run) for run in runs}, reverse=True)
        place = {target: index for index, target in enumerate(targets)}
        for kind, look in looks(run.kind for run in runs).items():
            groups = {
                target: [r for r in runs if r.kind == kind and _target(r) == target]
                for target in targets
            }
            groups = {target: group for target, group in groups.items() if group}
            accuracies = [[100 * (r.test_accuracy or np.nan) for r in g] for g in groups.values()]
            axes.errorbar(
                [place[target] for target in groups],
                [np.mean(a) for a in accuracies],
                yerr=[spread(a) for a in accuracies],
                capsize=2,
                label=kind,
                **look,
            )
        axes.set_xticks(list(place.values()), [f"{100 * (1 - target):g}" for target in targets])
        axes.set_xlabel("sparsity asked for, share of zero weights in %")
        axes.set_ylabel("test accuracy in %")
        name_lines(axes)
        axes.set_title(title)
    return figure


def quality_over_steps(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy, or the loss, over the number of steps: each seed, and the mean."""
    quality, label = quality_of(runs)
    with new_figure(6.6, 3.8) as figure:
        axes = figure.subplots()
        lines: dict[str, list[Run]] = {}
        for run in runs:
            share = f"{100 * (run.target_density or 1):g} % of the weights"
            name = f"{run.kind}, {'dense' if run.target_density is None else share}"
            lines.setdefault(name, []).append(run)
        for name, look in looks(lines).items():
            values = _at_steps(lines[name], quality)
            axes.plot(list(values), [np.mean(v) for v in values.values()], label=name, **look)
            for count, seeds in values.items():
                axes.scatter(
                    [count] * len(seeds), seeds, s=6, color=look["color"], alpha=0.4, zorder=1
                )
        _steps_below(axes, runs)
        axes.set_ylabel(label)
        name_lines(axes)
        axes.set_title(title)
    return figure


def quality_at_densities(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy, or the loss, over the number of steps, a panel for each density.

    Each kind of method has a line, the mean and the deviation over the seeds. Those of dense
    networks are dashed, and in all panels.
    """
    quality, label = quality_of(runs)
    targets = {run.target_density for run in runs if run.target_density is not None}
    densities = sorted(targets, reverse=True) or [1.0]
    dense = {run.kind for run in runs if run.target_density is None}
    lines = looks(sorted({run.kind for run in runs}, key=lambda kind: (kind in dense, kind)))
    with new_figure(max(7.0, 2.0 + 2.9 * len(densities)), 3.6) as figure:
        panels = figure.subplots(1, len(densities), squeeze=False)[0]
        drawn: dict[str, Any] = {}
        for axes, density in zip(panels, densities, strict=True):
            mine = [run for run in runs if run.target_density in (None, density)]
            for place, (kind, look) in enumerate(lines.items()):
                values = _at_steps([run for run in mine if run.kind == kind], quality)
                if not values:
                    continue
                face = "white" if look["linestyle"] != "-" else look["color"]
                style = {"linestyle": "--", "marker": ""} if kind in dense else {"linestyle": "-"}
                drawn[kind] = axes.errorbar(
                    # Side by side, or the bars would hide each other.
                    [1.02 ** (place - len(lines) / 2) * steps for steps in values],
                    [np.mean(v) for v in values.values()],
                    yerr=[spread(v) for v in values.values()],
                    capsize=2,
                    linewidth=1.2,
                    markersize=4,
                    markerfacecolor=face,
                    **look | style,
                )
            _steps_below(axes, mine)
            if mine[0].test_accuracy is not None:
                _logarithmic_in_error(axes)
            axes.set_title(f"density {100 * density:g} %")
        panels[0].set_ylabel(label)
        names = [f"{kind}, dense" if kind in dense else kind for kind in lines]
        figure.legend([drawn[kind] for kind in lines], names, loc="outside right center")
        seeds = over_seeds([len(group) for group in by_method(runs).values()])
        figure.suptitle(f"{title} ({seeds})" if seeds else title)
    return figure


def _logarithmic_in_error(axes: Axes) -> None:
    """Make an axis of accuracies in % logarithmic in 100 − accuracy.

    So small differences between long trainings are seen beside large ones between short ones.
    """
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log(np.maximum(100 - y, 0.1)), lambda z: 100 - np.exp(-z)),
    )
    axes.autoscale_view(scalex=False)
    largest, smallest = 100 - np.array(axes.get_ylim())
    if largest > 8 * smallest:
        errors = (50, 30, 20, 10, 5, 3, 2, 1, 0.5, 0.2)
        ticks = [100 - error for error in errors if smallest <= error <= largest]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _at_steps(runs: Sequence[Run], quality: Callable[[Run], float]) -> dict[int, list[float]]:
    """The qualities of the seeds at each number of steps."""
    return {
        steps: [quality(run) for run in runs if run.settings["steps"] == steps]
        for steps in sorted({run.settings["steps"] for run in runs})
    }


def _steps_below(axes: Axes, runs: Sequence[Run]) -> None:
    """Make the axis below one of steps, with a tick at each number of them."""
    axes.set_xscale("log")
    counts = sorted({run.settings["steps"] for run in runs})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("steps of training")


def quality_and_speed(runs: Sequence[Run], title: str) -> Figure:
    """Draw test accuracy, or the loss, over the size and over the speed of shrunk networks.

    A point for each run; of the speed the quartiles, too.
    """
    quality, label = quality_of(runs)
    with new_figure(8.0, 3.4) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        groups = by_method(runs)
        for method, look in looks(groups).items():
            look = look | {"linestyle": "none", "label": method}
            found = [run.findings for run in groups[method]]
            qualities = [quality(run) for run in groups[method]]
            left.plot([100 * f["multiply_adds"] for f in found], qualities, **look)
            medians = np.array([f["speedup"] for f in found])
            low, high = np.transpose([f["speedup_quartiles"] for f in found])
            spread = (medians - low, high - medians)
            right.errorbar(medians, qualities, xerr=spread, capsize=2, **look)
        left.set_xlim(left=0)
        left.xaxis.set_major_formatter(_percent())
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} ×"))
        left.set_xlabel("multiply-adds left")
        right.set_xlabel("as fast as the dense network")
        left.set_ylabel(label)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.suptitle(title)
    return figure


def quality_of(runs: Sequence[Run]) -> tuple[Callable[[Run], float], str]:
    """What says how good a run is, and its label: accuracy, or the loss where there is none."""
    if all(run.test_accuracy is not None for run in runs):
        return lambda run: 100 * (run.test_accuracy or 0), "test accuracy in %"
    return lambda run: run.test_loss, "test loss in nats per character"


def _target(run: Run) -> float:
    assert run.target_density is not None
    return run.target_density


def steering(runs: Sequence[Run], rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw how the density follows its target over the epochs, and the factor on the strength."""
    kinds = {run.method: run.kind for run in runs}
    targets = {run.method: run.target_density for run in runs}
    steered = [row for row in rows if row["target"] is not None]
    optimizers = dict.fromkeys(kinds[row["method"]] for row in steered)
    with new_figure(8.0, 2.9 * len(optimizers)) as figure:
        panels = figure.subplots(len(optimizers), 2, squeeze=False)
        for (left, right), optimizer in zip(panels, optimizers, strict=True):
            mine = [row for row in steered if kinds[row["method"]] == optimizer]
            plot_curves(left, mine, "density", f"{optimizer}: live weights in %", 100)
            for method in dict.fromkeys(row["method"] for row in mine):
                line = [row for row in mine if row["method"] == method]
                line = [row for row in line if row["seed"] == line[0]["seed"] and row["epoch"]]
                left.plot(
                    [row["epoch"] for row in line],
                    [100 * row["target"] for row in line],
                    color="black",
                    linestyle=":",
                    linewidth=0.8,
                )
            plot_curves(right, mine, "strength_scale", f"{optimizer}: factor on λ")
            left.set_yscale("log")
            right.set_yscale("log")
            name_lines(
                right,
                {
                    label: f"target {target:.1%}"
                    for label, target in targets.items()
                    if target is not None
                },
            )
        figure.suptitle(f"{title}: density and its target (dotted), and the strength")
    return figure


def accuracy_along_path(runs: Sequence[Run], title: str, tolerance: float) -> Figure:
    """Draw validation and test accuracy over the share of live weights, and mark the choice."""
    with new_figure(6.0, 4.0) as figure:
        axes = figure.subplots()
        points = sorted(means(runs), key=lambda mean: mean.density)
        shares = [100 * point.density for point in points]
        validation = [point.validation_accuracy for point in points]
        axes.plot(shares, [100 * a for a in validation], marker="o", label="validation")
        axes.plot(shares, [100 * p.test_accuracy for p in points], marker="s", label="test")
        chosen = sparsest_within(validation, shares, tolerance)
        axes.axhline(
            100 * (np.nanmax(validation) - tolerance),
            color="grey",
            linewidth=0.8,
            linestyle=":",
            label=f"best validation − {100 * tolerance:g} points",
        )
        axes.annotate(
            f"sparsest near the best:\n{points[chosen].method}",
            (shares[chosen], 100 * validation[chosen]),
            textcoords="offset points",
            xytext=(30, -60),
            arrowprops={"arrowstyle": "->"},
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_percent())
        axes.set_xlabel("live weights, share of all in %")
        axes.set_ylabel("accuracy in %")
        name_lines(axes)
        axes.set_title(f"{title}: a path of strengths")
    return figure


def _percent() -> FuncFormatter:
    """Ticks with as many digits as they need: on a logarithmic axis 0.1% is not 0%."""
    return FuncFormatter(lambda x, _: f"{x:g}%")
