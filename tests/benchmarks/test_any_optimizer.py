from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_runs import made_run

import bregjax
from benchmarks.__main__ import main
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.any_optimizer import CHOSEN, FRONTS, AnyOptimizer
from benchmarks.experiments.runner import planned
from benchmarks.report import figures


def test_each_optimizer_is_trained_dense_behind_to_density_and_pruned():
    experiment = AnyOptimizer(
        network="digits", optimizers=("lion", "sgd"), steps=(40,), densities=(0.1,)
    )
    assert [training.name for training in planned(experiment)] == [
        "Lion, 40 steps",
        "Lion, to_density 10.0%, 40 steps",
        "Lion, pruning 10.0%, 40 steps",
        "SGD+m, 40 steps",
        "SGD+m, to_density 10.0%, 40 steps",
        "SGD+m, pruning 10.0%, 40 steps",
    ]


@pytest.mark.parametrize("network", CHOSEN)
def test_all_have_their_chosen_rate_or_a_given_one(network):
    def rates(**options):
        recipes = AnyOptimizer(network=network, densities=(0.1,), **options).methods()
        return {recipe.name: recipe.record()["learning_rate"] for recipe in recipes}

    chosen = rates()
    assert len(chosen) == 3 * len(FRONTS)
    for name, front in FRONTS.items():
        ways = [rate for method, rate in chosen.items() if method.split(",")[0] == front.title]
        assert set(ways) & set(front.rates) == {CHOSEN[network][name]} == set(ways)
    assert set(rates(optimizers=("adam",), rates=(0.7,)).values()) == {0.7}


def test_the_tuning_tries_each_rate_on_the_dense_network_and_chooses_by_the_validation_loss():
    experiment = AnyOptimizer(network="digits", preset="tune", optimizers=("adam",))
    names = [recipe.name for recipe in experiment.methods()]
    assert names == [f"Adam, rate {rate:g}" for rate in FRONTS["adam"].rates]
    runs = [made_run(f"{name}, 1,000 steps") for name in names]
    for run, loss in zip(runs, (0.3, float("nan"), 0.2, 0.5, 0.6), strict=True):
        object.__setattr__(run, "validation_loss", loss)
    assert list(experiment.remarks(runs)) == [
        "Best on the validation data: Adam, rate 0.002, 1,000 steps, loss 0.2000."
    ]
    assert list(AnyOptimizer().remarks(runs)) == []


@pytest.mark.parametrize("name", FRONTS)
@jax.numpy_dtype_promotion("standard")
def test_each_ends_with_exactly_the_density_whichever_way(name):
    experiment = AnyOptimizer(
        network="digits", optimizers=(name,), rates=(0.01,), densities=(0.1,), epochs=2
    )
    start = {"kernel": jax.random.normal(jax.random.key(0), (12, 10)), "bias": jnp.zeros(10)}
    for recipe in experiment.methods():
        tx = recipe.optimizer(2, 10)
        params, state = start, tx.init(start)
        for step in range(20):
            gradient = jax.tree.map(lambda x, s=step: x - jnp.cos(s + 9.0 * x), params)
            updates, state = jax.jit(tx.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
        expected = 0.1 if "10.0%" in recipe.name else 1.0
        assert float(bregjax.density(params)) == pytest.approx(expected), recipe.name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rates": (0.1,)}, "--rates are for --preset compare, one for each of --optimizers, got"),
        ({"rates": (0.1,), "optimizers": ("adam",), "preset": "tune"}, "--rates are for --preset"),
        ({"rates": (-1.0,), "optimizers": ("adam",)}, "--rates must be a number above 0"),
        ({"densities": (2.0,)}, "--densities must be between 0 and 1"),
        ({"network": "batchnorm"}, "no rates have been chosen for --network batchnorm yet"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(BenchmarkError, match=words):
        AnyOptimizer(**options).methods()


def containers(axes: Any) -> Any:
    return axes.containers


def test_a_row_for_each_optimizer_and_a_panel_for_each_density():
    runs = [
        made_run("Adam", 0.9, kind="Adam"),
        made_run("a", 0.7, kind="Adam, to_density", target=0.1),
        made_run("a", 0.8, kind="Adam, to_density", target=0.1, seed=1),
        made_run("b", 0.6, kind="Adam, to_density", target=0.05),
        made_run("c", 0.5, kind="Lion, pruning", target=0.1),
    ]
    figure = figures.of_optimizers(runs, "title")
    assert [axes.get_title() for axes in figure.axes] == ["density 10 %", "density 5 %"]
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["Adam", "Lion"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "to_density", "pruning"]
    for axes, expected in ((left, [[90], [75], [50]]), (right, [[90], [60], []])):
        drawn = [np.asarray(bars[0].get_xdata(), float) for bars in containers(axes)]
        for values, one in zip(drawn, expected, strict=True):
            np.testing.assert_allclose(values, one)
    rows = [np.asarray(bars[0].get_ydata(), float) for bars in containers(left)]
    assert [np.round(row).tolist() for row in rows] == [[0], [0], [1]]


def test_as_a_user_starts_it(tmp_path):
    command = ["any_optimizer", "--network", "digits", "--optimizers", "adam", "--quick"]
    assert main([*command, "--densities", "0.1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "any_optimizer.png").read_bytes().startswith(b"\x89PNG")
