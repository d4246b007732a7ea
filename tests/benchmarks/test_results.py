"""What is written of runs, read back and tabulated."""

import jax.numpy as jnp
import numpy as np
from made_runs import made_run

from benchmarks.engine.programs import EpochMetrics
from benchmarks.engine.training import Result
from benchmarks.report.results import (
    Archive,
    print_table,
    read_exhibits,
    read_runs,
    read_snapshots,
    runs_of,
)


def test_a_method_that_is_run_anew_replaces_its_own_results_alone(tmp_path):
    archive = Archive(tmp_path)
    for method, value in (("SGD", 1.0), ("SGD+m", 2.0), ("SGD", 3.0)):
        x = np.full(2, value)
        archive.add(
            method, [made_run(method)], [{"method": method}], {"kernel": {1: x}}, {"shape": x}
        )
    assert [each.method for each in read_runs(tmp_path)] == ["SGD+m", "SGD"]
    snapshots = read_snapshots(tmp_path)["kernel"]
    assert {method: kept[1][0] for method, kept in snapshots.items()} == {"SGD+m": 2, "SGD": 3}
    exhibits = read_exhibits(tmp_path)
    assert {method: kept["shape"][0] for method, kept in exhibits.items()} == {"SGD+m": 2, "SGD": 3}


def test_the_deviation_in_the_table_is_that_of_a_sample(capsys):
    print_table([made_run("SGD", 0.5, seed=0), made_run("SGD", 0.6, seed=1)], "a table")
    assert "55.00 ± 7.07" in capsys.readouterr().out


def test_a_run_has_its_share_of_the_time_and_the_scores_of_its_epoch():
    scores = np.array([[0.1, 0.1], [0.5, 0.7], [0.6, 0.4]])
    result = Result(
        curve=EpochMetrics(*[scores] * len(EpochMetrics._fields)),
        test_loss=np.array([1.0, 2.0]),
        test_accuracy=np.array([0.8, 0.9]),
        selected_epoch=np.array([2, 1]),
        params={"kernel": jnp.stack([jnp.eye(2), jnp.ones((2, 2))])},
        other={},
        snapshots={},
        seconds_per_epoch=3.0,
        seconds=9.0,
        compactions=0,
    )
    runs = runs_of("digits", "Digits", "SGD", "SGD", {}, [5, 6], result, [{}, {}])
    assert [run.seed for run in runs] == [5, 6]
    assert [run.epochs for run in runs] == [2, 2]
    assert [run.seconds_per_epoch for run in runs] == [1.5, 1.5]
    assert [run.validation_accuracy for run in runs] == [0.6, 0.7]
    assert [run.test_accuracy for run in runs] == [0.8, 0.9]
    assert [run.nonzero for run in runs] == [2, 4]
