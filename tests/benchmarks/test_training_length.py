import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from benchmarks.__main__ import main
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.runner import planned
from benchmarks.experiments.training_length import TrainingLength
from benchmarks.models import Transformer


def test_every_method_is_trained_for_every_number_of_steps():
    trainings = planned(TrainingLength(network="digits", steps=(13, 45), densities=(0.1, 0.01)))
    assert [training.name for training in trainings] == [
        f"{method}, {steps} steps"
        for steps in (13, 45)
        for method in (
            "Adam",
            "AdaBreg 10.0%",
            "gradual pruning, Adam 10.0%",
            "AdaBreg 1.0%",
            "gradual pruning, Adam 1.0%",
            "SGD+m",
            "LinBreg+m 10.0%",
            "gradual pruning 10.0%",
            "RigL 10.0%",
            "LinBreg+m 1.0%",
            "gradual pruning 1.0%",
            "RigL 1.0%",
        )
    ]
    for training in trainings:
        steps = int(training.name.split()[-2])
        assert training.epochs * training.task.steps == training.task.settings["steps"] == steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class InParts(TrainingLength):
    def task(self, dataset: Dataset) -> Task:
        return dataclasses.replace(super().task(dataset), steps_per_call=7)


def test_the_parts_of_an_epoch_are_equal_if_there_are_enough_images():
    trainings = planned(InParts(network="digits", steps=(13, 45, 400), only=("RigL 1.0%",)))
    tasks = [training.task for training in trainings]
    assert [(task.epochs, task.steps, task.steps_per_call) for task in tasks] == [
        (1, 14, 7),
        (3, 15, 5),
        (20, 20, 7),
    ]


def test_the_warm_up_is_a_tenth_of_a_short_training_and_an_epoch_of_a_long_one():
    trainings = planned(TrainingLength(network="digits", steps=(20, 400)))
    warmups = {
        training.epochs: training.recipe.record()["warmup_epochs"]
        for training in trainings
        if training.recipe.kind != "AdaBreg"
    }
    assert warmups == {1: 0.1, 20: 1.0}


def test_rates_are_those_of_the_network_unless_others_are_given():
    def rates(**options) -> dict[str, float | None]:
        experiment = TrainingLength(densities=(0.1,), **options)
        records = {method.kind: method.record() for method in experiment.methods()}
        return {kind: record.get("learning_rate") for kind, record in records.items()}

    own, adam, sgd = rates(network="resnet20"), rates(adam_rate=1e-3), rates(sgd_rate=0.2)
    around_adam = {"Adam", "gradual pruning, Adam"}
    around_sgd = {"SGD+m", "gradual pruning", "RigL"}
    assert [own[kind] for kind in around_adam] == [5e-3] * 2
    assert [own[kind] for kind in around_sgd] == [0.1] * 3
    assert {kind for kind in own if adam[kind] == 1e-3} == around_adam
    assert {kind for kind in own if sgd[kind] == 0.2} == around_sgd
    assert own["AdaBreg"] is None


def test_of_the_transformer_adam_trains_all_and_only_kernels_become_sparse():
    experiment = TrainingLength(network="transformer", steps=(20,), densities=(0.1,))
    network = Transformer(vocabulary=20, length=5, width=16, layers=1, rngs=nnx.Rngs(0))

    def trained(optimizer) -> dict[str, np.ndarray]:
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(params, state, params)  # of the loss |θ|²/2
            return optax.apply_updates(params, updates), state

        params = nnx.state(network, nnx.Param)
        state = optimizer.init(params)
        for _ in range(20):
            params, state = step(params, state)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {bregjax.leaf_name(path): np.asarray(x) for path, x in leaves}

    ends = {training.name: trained(training.optimizer) for training in planned(experiment)}
    names = ["Adam", "AdaBreg 10.0%", "gradual pruning, Adam 10.0%"]
    assert list(ends) == [f"{name}, 20 steps" for name in names]
    dense, *sparse = ends.values()
    for end in sparse:
        kernels = [x for name, x in end.items() if name.endswith("/kernel")]
        live = sum(np.count_nonzero(x) for x in kernels)
        assert live == round(0.1 * sum(x.size for x in kernels))
    pruned = sparse[1]
    for name, x in dense.items():
        if not name.endswith("/kernel"):
            np.testing.assert_array_equal(pruned[name], x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "transformer", "sgd_rate": 0.1}, "--sgd-rate is not for --network transf"),
        ({"adam_rate": 0.0}, "--adam-rate must be a number above 0, got 0.0"),
        ({"sgd_rate": -1.0}, "--sgd-rate must be a number above 0, got -1.0"),
        ({"densities": (0.1, 1.0)}, "--densities must be between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_errors(options, message):
    with pytest.raises(BenchmarkError, match=message):
        TrainingLength(**options).methods()


def test_one_method_is_trained_after_the_others_and_all_are_drawn(tmp_path):
    options = ["--network", "digits", "--steps", "15", "30", "--seeds", "2", "--densities", "0.1"]
    command = ["training_length", *options, "--out", str(tmp_path), "--only"]
    assert main([*command, "Adam, ", "AdaBreg"]) == 0
    (tmp_path / "training_length.png").unlink()
    assert main([*command, "gradual pruning 10.0%, 30 steps"]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert [run["method"] for run in runs[::2]] == [
        "Adam, 15 steps",
        "AdaBreg 10.0%, 15 steps",
        "Adam, 30 steps",
        "AdaBreg 10.0%, 30 steps",
        "gradual pruning 10.0%, 30 steps",
    ]
    for run in runs:
        target = run["settings"].get("target_density", 1.0)
        assert run["density"] == pytest.approx(target, abs=1e-3)
    assert (tmp_path / "training_length.png").read_bytes().startswith(b"\x89PNG")
