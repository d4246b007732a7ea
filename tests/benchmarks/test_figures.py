import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from made_runs import made_run
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.cli.errors import BenchmarkError
from benchmarks.report import figures
from benchmarks.report.figures.style import name_lines


def test_a_figure_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    (tmp_path / "name.png").write_bytes(b"old")

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(BenchmarkError, match=r"name.png \(No space left on device\)"):
        figures.save(Figure(), tmp_path, "name")
    assert (tmp_path / "name.png").read_bytes() == b"old"


def test_each_epoch_and_each_method_has_its_name():
    masks = {epoch: np.eye(4, 6, dtype=bool) for epoch in range(9)}
    figure = figures.appearing_weights({"first": masks, "second": masks}, image_shape=(2, 2))
    panels = [axes for axes in figure.axes if axes.get_xlabel().endswith("live")]
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    assert titles == [f"epoch {epoch}" for epoch in (0, 1, 2, 4, 8)]
    assert [axes.get_ylabel() for axes in panels if axes.get_ylabel()] == ["first", "second"]
    assert all(axes.get_xlabel() == "16.7% live" for axes in panels)


def test_a_method_that_ended_early_is_not_drawn_at_later_epochs():
    growing = {epoch: np.arange(25).reshape(5, 5) < epoch for epoch in range(17)}
    for last, end in ((3, "12.0% live,\nended at 3"), (4, "16.0% live")):
        short = {epoch: growing[epoch] for epoch in range(last + 1)}
        figure = figures.appearing_weights({"short": short, "long": growing}, image_shape=(1, 5))
        panels = [axes.get_xlabel() if axes.axison else None for axes in figure.axes]
        assert panels[:6] == ["0.0% live", "4.0% live", "8.0% live", end, None, None]
        assert panels[6:12] == [f"{4 * epoch}.0% live" for epoch in (0, 1, 2, 4, 8, 16)]
        assert not figure.axes[5].get_images()
        assert [axes.get_title() for axes in figure.axes[4:6]] == ["epoch 8", "epoch 16"]


def test_curves_are_the_mean_over_the_seeds_in_percent():
    rows = [
        {"method": "m", "seed": seed, "epoch": epoch, "validation_accuracy": 0.5 + 0.1 * seed}
        | {"train_accuracy": None if epoch == 0 else 0.7, "l1_norm": 3.0, "nonzero": 10}
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    figure = figures.learning_curves(rows, "title")
    by_label = {axes.get_ylabel(): axes.get_lines()[0] for axes in figure.axes}
    validation = by_label["validation accuracy in %"]
    np.testing.assert_allclose(np.asarray(validation.get_ydata()), 55.0)
    np.testing.assert_array_equal(by_label["training accuracy in %"].get_xdata(), [1, 2])


def test_a_norm_that_explodes_or_is_not_finite_leaves_the_others_readable():
    rows = [
        {"method": method, "seed": seed, "epoch": epoch, "validation_accuracy": 0.5}
        | {"train_accuracy": None if epoch == 0 else 0.7, "l1_norm": norm, "nonzero": 10}
        for method, seed, norm in (
            ("m", 0, 3.0),
            ("m", 1, 4.0),
            ("large", 0, 1e4),
            ("nan", 0, None),
        )
        for epoch in (0, 1, 2)
    ]
    figure = figures.learning_curves(rows, "title")
    by_label = {axes.get_ylabel(): axes for axes in figure.axes}
    assert by_label["ℓ1 norm of the weights"].get_yscale() == "log"
    assert figure.get_suptitle() == "title (mean ± deviation over 1 to 2 seeds)"


def test_curves_without_classes_show_the_loss():
    rows = [
        {"method": "m", "seed": 0, "epoch": epoch, "validation_accuracy": None}
        | {"train_accuracy": None, "train_loss": None if epoch == 0 else 0.5}
        | {"validation_loss": 1 / (1 + epoch), "l1_norm": 3.0, "nonzero": 10}
        for epoch in (0, 1, 2)
    ]
    figure = figures.learning_curves(rows, "title")
    by_label = {axes.get_ylabel(): axes.get_lines()[0] for axes in figure.axes}
    np.testing.assert_allclose(
        np.asarray(by_label["validation error,\nmean square per pixel"].get_ydata()),
        [1, 1 / 2, 1 / 3],
    )
    np.testing.assert_array_equal(
        by_label["training error,\nmean square per pixel"].get_xdata(), [1, 2]
    )


def test_kernels_are_counted_and_dead_inputs_left_out():
    kernels = np.zeros((2, 2, 3, 4), np.float32)
    kernels[0, 1, 0, 2] = kernels[1, 1, 2, 0] = kernels[:, :, 2, 3] = -0.5
    figure = figures.learned_kernels({"layer": kernels}, "title")
    axes = figure.axes[0]
    assert axes.get_title() == "layer: 3 of 12 kernels are live (25.0%)"
    assert axes.get_ylabel() == "2 of 3 input channels"
    shown = np.ma.filled(np.ma.asarray(axes.get_images()[0].get_array()), np.nan)
    assert np.isfinite(shown).sum() == 3 * 4
    assert (shown == -1).sum() == 1 + 1 + 4


def test_a_layer_without_a_live_kernel_is_an_empty_panel():
    figure = figures.learned_kernels({"layer": np.zeros((3, 3, 2, 4))}, "title")
    assert figure.axes[0].get_title() == "layer: 0 of 8 kernels are live (0.0%)"


def test_architectures_show_live_neurons_and_the_skips_that_are_on():
    neurons = {"case": {0: np.array([[8, 8, 8]]), 5: np.array([[300, 20, 250]])}}
    skips = {"case": {5: np.array([[0, 0, 0.25, -0.5, 0, 0]])}}
    figure = figures.architectures(neurons, skips, "title")
    over_time, network = figure.axes
    np.testing.assert_array_equal(
        [line.get_ydata() for line in over_time.get_lines()], [[8, 300], [8, 20], [8, 250]]
    )
    words = [text.get_text() for text in network.texts]
    assert words == ["784", "300", "20", "250", "+0.250", "-0.500"]
    assert len(network.patches) == 4 + 2


def test_surviving_connections_are_drawn_and_counted():
    norms = np.zeros((3, 3))
    norms[0, 0] = norms[2, 0] = norms[2, 2] = 1.5
    exhibits = {"method": {"norms": norms, "live": np.where(norms > 0, 0.5, 0)}}
    figure = figures.surviving_connections(exhibits, "title")
    axes = figure.axes[0]
    assert axes.get_title() == "method: 3 of 6 connections survive"
    assert len(axes.patches) == 3


def test_restored_images_are_stacked_by_case():
    images = {name: np.zeros((5, 4, 4, 1)) for name in ("input", "output", "target")}
    figure = figures.restored_images({"first": images, "second": images})
    assert [axes.get_title() for axes in figure.axes] == ["first", "second"]
    assert np.asarray(figure.axes[0].get_images()[0].get_array()).shape == (3 * 4, 5 * 4)


def test_twelve_lines_have_their_names_beside_their_ends_in_order_and_apart():
    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    ends = np.array([1, 1, 1.01, 2, 5, 5, 6, 30, 31, 32, 100, 100.0])
    for index, end in enumerate(ends):
        axes.plot([0, 1, 2], [3, end, np.nan], label=f"line {index}", color=f"C{index}")
    name_lines(axes)
    figure.draw_without_rendering()
    texts: Any = axes.texts
    names = sorted(texts, key=lambda text: text.xyann[1])
    boxes = [Text.get_window_extent(text) for text in names]  # without the lines that lead to them
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    reached = [ends[int(text.get_text().removeprefix("line "))] for text in names]
    assert reached == sorted(ends)
    for text in texts:
        line = axes.get_lines()[int(text.get_text().removeprefix("line "))]
        assert text.get_color() == line.get_color()
        # Its end is the last point that is there.
        at = axes.transData.inverted().transform(axes.transAxes.transform(text.xy))
        np.testing.assert_allclose(at, [1, np.asarray(line.get_ydata())[1]], rtol=1e-6)


def test_densities_of_a_method_are_points_of_its_line():
    runs = [
        made_run("Adam", 0.9),
        made_run("AdaBreg 10.0%", 0.8, kind="AdaBreg", target=0.1),
        made_run("AdaBreg 1.0%", 0.5, kind="AdaBreg", seed=0, target=0.01),
        made_run("AdaBreg 1.0%", 0.7, kind="AdaBreg", seed=1, target=0.01),
    ]
    (axes,) = figures.accuracy_and_density(runs, "").axes
    drawn: Any = axes.containers
    lines = {
        bars.get_label(): np.transpose(np.asarray(bars[0].get_data(), float)) for bars in drawn
    }
    np.testing.assert_allclose(lines["Adam"], [(100, 90)])
    np.testing.assert_allclose(lines["AdaBreg"], [(1, 60), (10, 80)])


def test_error_is_drawn_over_the_weights_beside_dense_lines_and_stars_with_names_apart():
    runs = [
        made_run("Adam", 0.98),
        made_run("AdaBreg 10.0%", 0.98, kind="AdaBreg", target=0.1),
        made_run("AdaBreg 0.36%", 0.96, kind="AdaBreg", seed=0, target=0.0036),
        made_run("AdaBreg 0.36%", 0.94, kind="AdaBreg", seed=1, target=0.0036),
    ]
    stars = {"first 2015": [(8.3, 1.6)], "second 2017": [(8.3, 1.6), (1.0, 3.0)]}
    figure = figures.error_and_weights(runs, "title", stars)
    (axes,) = figure.axes
    drawn: Any = axes.containers
    ((bars),) = drawn
    points = np.transpose(np.asarray(bars[0].get_data(), float))
    np.testing.assert_allclose(points, [(0.36, 5), (10, 2)])
    (dense,) = (line for line in axes.lines if line.get_label() == "Adam, dense")
    np.testing.assert_allclose(np.asarray(dense.get_ydata()), 2)
    assert dense.get_linestyle() == "--"
    (published,) = (line for line in axes.lines if line.get_marker() == "*")
    drawn_stars = np.transpose(np.asarray(published.get_data(), float))
    np.testing.assert_allclose(drawn_stars, [(8.3, 1.6), (8.3, 1.6), (1.0, 3.0)])
    figure.draw_without_rendering()
    texts: Any = axes.texts
    names = {text: text.get_text() for text in texts}
    expected = ["AdaBreg", "Adam, dense", "first 2015", "second 2017", "second 2017"]
    assert sorted(names.values()) == expected
    boxes = {text: Text.get_window_extent(text) for text in names}
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    for star in axes.transData.transform(drawn_stars):
        assert not any(box.contains(*star) for box in boxes.values())


def test_of_an_ablation_each_row_is_a_method_and_each_family_has_a_line_at_its_first():
    runs = [
        made_run("AdaBreg, first 1.0%", 0.5, kind="AdaBreg, first"),
        made_run("AdaBreg, first 1.0%", 0.6, kind="AdaBreg, first", seed=1),
        made_run("AdaBreg, second 1.0%", 0.7, kind="AdaBreg, second"),
        made_run("LinBreg, first 1.0%", 0.4, kind="LinBreg, first"),
    ]
    (axes,) = figures.accuracy_by_method(runs, "").axes
    points = [np.transpose(np.asarray(line.get_data())).tolist() for line in axes.get_lines()]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "AdaBreg, first 1.0%",
        "AdaBreg, second 1.0%",
        "LinBreg, first 1.0%",
    ]
    np.testing.assert_allclose(points[0], [(55, -0.4), (55, 1.4)])
    np.testing.assert_allclose(points[1], [(50, 0), (60, 0)])
    np.testing.assert_allclose(points[2], [(70, 1)])
    np.testing.assert_allclose(points[3], [(40, 1.6), (40, 2.4)])


@pytest.mark.parametrize("classes", [True, False])
def test_at_each_density_methods_have_their_lines_beside_that_of_the_dense_network(classes):
    def run(kind: str, steps: int, quality: float, target: float | None = None, seed: int = 0):
        made = made_run(f"{kind} {target}, {steps} steps", kind=kind, target=target, seed=seed)
        settings = made.settings | {"steps": steps}
        measured = {"test_accuracy": quality if classes else None, "test_loss": 100 * quality}
        return dataclasses.replace(made, settings=settings, **measured)

    runs = [
        run("RigL", 10, 0.5, 0.01),
        run("Adam", 100, 0.99),
        run("Adam", 10, 0.9),
        run("AdaBreg", 10, 0.8, 0.1, seed=0),
        run("AdaBreg", 10, 0.9, 0.1, seed=1),
        run("AdaBreg", 10, 0.6, 0.01),
    ]
    figure = figures.quality_at_densities(runs, "title")
    assert figure.get_suptitle() == "title (mean ± deviation over 1 to 2 seeds)"
    expected = {
        "density 10 %": [("-", [85]), ("--", [90, 99])],
        "density 1 %": [("-", [60]), ("-", [50]), ("--", [90, 99])],
    }
    assert [axes.get_title() for axes in figure.axes] == list(expected)
    for axes in figure.axes:
        bars: Any = axes.containers
        for (line, *_), (style, values) in zip(bars, expected[axes.get_title()], strict=True):
            steps, qualities = np.asarray(line.get_data(), float)
            np.testing.assert_allclose(steps, [10, 100][: len(values)], rtol=0.05)
            np.testing.assert_allclose(qualities, values)
            assert line.get_linestyle() == style
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["AdaBreg", "RigL", "Adam, dense"]


def test_a_figure_of_dense_networks_alone_has_one_panel_even_if_one_makes_no_mistake():
    runs = [made_run(f"Adam, {steps} steps", 1.0, kind="Adam") for steps in (10, 100)]
    for run, steps in zip(runs, (10, 100), strict=True):
        run.settings["steps"] = steps
    (axes,) = figures.quality_at_densities(runs, "title").axes
    assert axes.get_title() == "density 100 %"
    assert axes.get_ylim()[1] > 99.9
