"""What all figures share: their looks, and the files they are saved to."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy.optimize import isotonic_regression

from benchmarks.report.results import write_file

# Okabe and Ito's palette keeps the lines apart for colour-blind readers and in grey. The first
# name with which that of a method begins decides.
_COLORS = {
    "LinBreg": "#0072B2",
    "AdaBreg": "#D55E00",
    "gradual pruning": "#009E73",
    "pruning": "#56B4E9",
    "one-shot pruning": "#56B4E9",
    "RigL": "#CC79A7",
    "SET": "#E69F00",
    "proximal SGD": "#7F3C8D",
    "lasso": "#7F3C8D",
    "SGD": "#000000",
    "Adam": "#777777",
    "BCSR": "#0072B2",
    "BCOO": "#56B4E9",
    "shrunk": "#D55E00",
}
_OTHER_COLOR = "#8C6D31"
_LINES = (
    "-",
    "--",
    ":",
    "-.",
    (0, (8, 2)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, (3, 5)),
    (0, (10, 2, 2, 2)),
    (0, (2, 1)),
    (0, (6, 2, 2, 2, 2, 2)),
    (0, (12, 4)),
)
_MARKERS = "osD^v*P<>hXp"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def new_figure(width: float, height: float, *, grid: bool = True) -> Iterator[Figure]:
    """A figure of this size in inches, to be drawn within the context, in the style of all."""
    style: dict[Any, Any] = {**_STYLE, "axes.grid": grid}
    with mpl.rc_context(style):
        yield Figure(figsize=(width, height))


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 if there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each method: the colour is that of its family in every figure.

    Methods of one family differ by line and marker; none is repeated up to 12 of them.
    """
    seen: Counter[str] = Counter()
    chosen = {}
    for method in dict.fromkeys(methods):
        families = (color for family, color in _COLORS.items() if method.startswith(family))
        color = next(families, _OTHER_COLOR)
        place = seen[color] % len(_LINES)
        seen[color] += 1
        chosen[method] = {"color": color, "linestyle": _LINES[place], "marker": _MARKERS[place]}
    return chosen


def name_lines(axes: Axes, names: Mapping[str, str] | None = None) -> None:
    """Write the label of each line at its right end, which needs no legend; call it last.

    Those that would overlap are moved apart, as little as possible in the sense of least squares.

    Args:
      axes: with lines, all of them drawn and the limits set.
      names: what to write for a label, if not the label itself.
    """
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # those that are automatic are settled
    handles: Any
    handles, labels = axes.get_legend_handles_labels()
    ends = []
    for handle, label in zip(handles, labels, strict=True):
        line = handle if isinstance(handle, Line2D) else handle[0]
        points = np.column_stack([np.asarray(xy, float) for xy in line.get_data()])
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            end = axes.transAxes.inverted().transform(line.get_transform().transform(points[-1]))
            ends.append((min(max(end[1], 0.0), 1.0), end[0], line.get_color(), label))
    ends.sort(key=lambda end: end[0])
    grid, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    assert grid is not None
    assert figure is not None
    height = 0.7 * figure.get_figheight() / grid.get_gridspec().nrows  # in inches, about
    apart = 0.15 / height * np.arange(len(ends))
    heights = apart + isotonic_regression([end[0] for end in ends] - apart).x
    for (y, x, color, label), place in zip(ends, heights, strict=True):
        axes.annotate(
            label if names is None else names[label],
            (x, y),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize="small",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 1,
                "relpos": (0.0, 0.5),
            },
        )


def name_points(axes: Axes, names: Sequence[str], points: np.ndarray, color: str) -> None:
    """Write its name beside each point, with a line to it if it is not close; call it last.

    It is written within the axes, where no other name and no point is, near the point and on as
    little as possible of the lines.

    Args:
      axes: all that is in it is drawn, and the limits are set.
      names: of the points.
      points: in the coordinates of the data, (n, 2).
      color: of the names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout is settled
    scale = 72 / figure.dpi  # from pixels to the points that fonts are measured in
    paths = [
        line.get_transform().transform(np.asarray(line.get_xydata()))
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    paths += [
        axes.transData.transform(np.asarray(segment))
        for bars in axes.collections
        if isinstance(bars, LineCollection)
        for segment in bars.get_segments()
    ]
    ink = np.concatenate([np.zeros((0, 2)), *(_along(scale * path) for path in paths)])
    first, last = scale * np.asarray(axes.bbox.get_points())
    places = scale * axes.transData.transform(points)
    taken = [(place - 4, place + 4) for place in places]
    distances, angles = map(np.ravel, np.meshgrid(np.arange(6, 96, 6), np.arange(16) * np.pi / 8))
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    for index, (name, point, place) in enumerate(zip(names, points, places, strict=True)):
        text = axes.annotate(
            name,
            (point[0], point[1]),
            (0, 0),
            textcoords="offset points",
            color=color,
            fontsize="small",
            horizontalalignment="center",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0},
        )
        box = Text.get_window_extent(text)  # without the line
        half = scale * np.array([box.width, box.height]) / 2 + (4, 0)
        offsets = directions * (distances[:, None] + half)
        low, high = (place + offsets + sign * half for sign in (-1, 1))
        outside = np.any((low < first) | (high > last), axis=1)
        boxes = np.asarray(taken)
        met = np.all((low[:, None] < boxes[:, 1]) & (boxes[:, 0] < high[:, None]), axis=2).sum(1)
        covered = _inside(ink, low, high).sum(1)
        others = np.delete(boxes, index, axis=0)
        ways = place + offsets[:, None] * np.linspace(0, 1, 20)[:, None]
        crossed = [_inside(way, others[:, 0], others[:, 1]).any(1).sum() for way in ways]
        best = np.argmin(1e4 * (outside + met) + 50 * np.array(crossed) + 3 * covered + distances)
        text.set_position((offsets[best, 0], offsets[best, 1]))
        assert text.arrow_patch is not None
        text.arrow_patch.set_visible(bool(distances[best] > distances[0]))
        taken.append((low[best], high[best]))


def _inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether each of several boxes contains each of the points, (boxes, points)."""
    return np.all((low[:, None] < points) & (points < high[:, None]), axis=2)


def _along(path: np.ndarray) -> np.ndarray:
    """Points on a path, two units apart."""
    lengths = np.append(0, np.cumsum(np.hypot(*np.diff(path, axis=0).T)))
    at = np.arange(0, lengths[-1], 2)
    return np.column_stack([np.interp(at, lengths, coordinate) for coordinate in path.T])


def save(figure: Figure, out: Path, name: str) -> None:
    """Write NAME.png and NAME.pdf."""
    for ending in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=ending, dpi=160)
        write_file(out / f"{name}.{ending}", content.getvalue())
