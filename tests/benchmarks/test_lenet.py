import numpy as np
import pytest
from made_runs import made_run

from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset, Split
from benchmarks.experiments.lenet import LeNet

NETWORKS = ("lenet300", "lenet5")
TOLD = ("AdaBreg", "LinBreg+m", "gradual pruning", "gradual pruning, Adam", "RigL", "SET")


@pytest.mark.parametrize("network", NETWORKS)
def test_two_dense_trainings_and_six_methods_at_each_density(network):
    recipes = LeNet(network=network).methods()
    shares = ("10.0%", "5.0%", "2.0%", "1.67%", "1.0%", "0.5%", "0.36%", "0.2%")
    told = [f"{method} {share}" for share in shares for method in TOLD]
    assert [recipe.name for recipe in recipes] == ["SGD+m", "Adam", *told]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_grid_has_what_was_chosen_and_no_name_twice(network):
    def settings(preset):
        recipes = LeNet(network=network, preset=preset, densities=(0.0167,)).methods()
        return {recipe.name: recipe.record() for recipe in recipes}

    grid, compared = settings("tune"), settings("compare")
    assert len(grid) == len(LeNet(preset="tune", densities=(0.0167,)).methods())
    for name, record in compared.items():
        if "Breg" not in name:
            assert record in grid.values()
    tried = [record for name, record in grid.items() if name.startswith("gradual pruning, rate")]
    assert {record["learning_rate"] for record in tried} == {0.01, 0.03, 0.1, 0.2}
    assert {record.get("weight_decay") for record in tried} == {None, 1e-4, 5e-4}
    assert {record.get("l1_penalty") for record in tried} == {None, 3e-5, 1e-4, 3e-4}
    assert "RigL, rate 0.1, decay 0.0005 1.67%" in grid


def test_the_tuning_chooses_by_validation_images():
    runs = [
        made_run("RigL, rate 0.1 2.0%", 0.9, validation=0.8),
        made_run("SET, rate 0.1 2.0%", 0.8, validation=0.7),
        made_run("RigL, rate 0.03, decay 0.0005 2.0%", 0.7, validation=0.9),
    ]
    assert list(LeNet(preset="tune").remarks(runs)) == [
        "Best on the validation data: RigL, rate 0.03, decay 0.0005 2.0%, 90.00 %.",
        "Best on the validation data: SET, rate 0.1 2.0%, 70.00 %.",
    ]
    assert list(LeNet().remarks(runs)) == []


def test_the_tuning_holds_out_images_and_the_comparison_trains_on_all():
    def split(size):
        return Split(np.zeros((size, 28, 28, 1), np.uint8), np.zeros(size, np.int32))

    dataset = Dataset("mnist", split(57_000), split(3000), split(10_000), mean=0.0, std=1.0)
    for experiment, sizes in (
        (LeNet(preset="tune"), (55_000, 5000)),
        (LeNet(preset="compare"), (60_000, 3000)),
    ):
        found = experiment.task(dataset).dataset
        assert (len(found.train), len(found.validation)) == sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "tune"}, "--preset tune is at one of --densities, got 0.1 0.05 0.02"),
        ({"preset": "tune", "densities": ()}, "--preset tune is at one of --densities, got none"),
        ({"select": "best"}, "neither --select best nor --patience"),
        ({"patience": 2}, "neither --select best nor --patience"),
        ({"densities": (0.1, 2.0)}, "--densities must be between 0 and 1"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    with pytest.raises(BenchmarkError, match=message):
        LeNet(**options).methods()
