import numpy as np

from benchmarks import figures


def test_each_epoch_and_each_method_has_its_name():
    masks = {epoch: np.eye(4, 6, dtype=bool) for epoch in range(9)}
    figure = figures.appearing_weights({"first": masks, "second": masks}, image_shape=(2, 2))
    panels = [axes for axes in figure.axes if axes.get_xlabel().endswith("live")]
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    assert titles == [f"epoch {epoch}" for epoch in (0, 1, 2, 4, 8)]
    assert [axes.get_ylabel() for axes in panels if axes.get_ylabel()] == ["first", "second"]
    assert all(axes.get_xlabel() == "16.7% live" for axes in panels)


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
