import dataclasses
import json
import os
import re
import signal
from typing import ClassVar

import pytest

from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.interruption import Interrupted
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.engine.training import train
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.lowrank import LowRank
from benchmarks.experiments.runner import planned, run
from benchmarks.methods.schedules import Constant
from benchmarks.models import MLP
from benchmarks.report.results import Run, differences


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThinDigits(LowRank):
    """A small one that trains thin layers after the network itself."""

    name: ClassVar[str] = "thin_digits"
    network: ClassVar[str] = "MLP"  # pyright: ignore[reportIncompatibleMethodOverride]
    dataset: ClassVar[str] = "digits"  # pyright: ignore[reportIncompatibleMethodOverride]

    def methods(self) -> list[methods.Recipe]:
        return [methods.sgd(Constant(0.1))]

    def task(self, dataset: Dataset) -> Task:
        return Task(dataset, lambda rngs: MLP((64, 48, 10), rngs=rngs), batch_size=32)


@pytest.mark.slow
def test_what_is_trained_besides_hears_a_signal_and_goes_on(tmp_path, monkeypatch):
    def experiment(name: str) -> ThinDigits:
        return ThinDigits(epochs=1, tuning=3, rank=4, out=tmp_path / name)

    def accuracies(name: str) -> tuple[float, float]:
        (run,) = json.loads((tmp_path / name / "summary.json").read_text())
        return run["test_accuracy"], run["findings"]["factorized_accuracy"]

    def interrupt(*arguments, label, stop, **options):
        def stop_in_thin_layers() -> bool:
            if "thin layers" in label and options["checkpoints"].positions():
                os.kill(os.getpid(), signal.SIGINT)
            return stop()

        return train(*arguments, label=label, stop=stop_in_thin_layers, **options)

    run(experiment("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.experiments.trainer.train", interrupt)
        with pytest.raises(Interrupted, match="SGD, thin layers of network 0 after epoch 2 of 3"):
            run(
                ThinDigits(
                    epochs=1, tuning=3, rank=4, out=tmp_path / "pieces", checkpoint_seconds=0
                )
            )
    assert not (tmp_path / "pieces" / "summary.json").exists()
    run(experiment("pieces"))
    assert accuracies("pieces") == accuracies("whole")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Experiment):
    """Methods that have their density early and late."""

    name: ClassVar[str] = "options"
    title: ClassVar[str] = "Options"
    dataset: ClassVar[str] = "digits"

    late: bool = True

    def methods(self) -> list[methods.Recipe]:
        if not self.late:
            return [methods.rigl(Constant(0.1), 0.1), methods.sgd(Constant(0.1))]
        return [
            methods.ToDensity(0.1),
            methods.gradual_pruning(Constant(0.1), 0.1),
            methods.one_shot_pruning(Constant(0.1), 0.1),
            methods.linbreg_to_density(0.1, 0.1),
            methods.Targeted(methods.steerable()[1], 0.2),
        ]

    def task(self, dataset: Dataset) -> Task:
        return Task(dataset, lambda rngs: MLP((64, 48, 10), rngs=rngs), batch_size=32)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("options", [{"select": "best"}, {"patience": 3}])
def test_nothing_is_chosen_before_the_density_is_reached(options, index):
    name = Options().methods()[index].name
    with pytest.raises(BenchmarkError, match=f"{re.escape(name)} is as sparse as it should be"):
        planned(Options(only=(name,), **options))
    assert len(planned(Options(late=False, **options))) == 2


def test_what_cannot_be_built_is_an_error_before_anything_is_trained():
    with pytest.raises(BenchmarkError, match="needs an epoch before its landing"):
        planned(Options(epochs=1))
    with pytest.raises(BenchmarkError, match=r"--batch-size 5000 exceeds the \d+ training images"):
        planned(Options(batch_size=5000))


@pytest.mark.parametrize(("images", "left"), [(100, 100), (None, 1437)])
def test_a_trial_takes_no_more_images_than_were_asked_for(images, left):
    (first, *_) = planned(Options(late=False, quick=True, images=images))
    assert len(first.task.dataset.train) <= left
    assert (images is None) or len(first.task.dataset.train) == images


@pytest.mark.slow
def test_only_the_checkpoints_of_what_was_trained_are_deleted(tmp_path):
    other = tmp_path / "checkpoints" / "another"
    other.mkdir(parents=True)
    run(Options(late=False, epochs=1, seeds=1, out=tmp_path, only=("SGD",)))
    assert [folder.name for folder in other.parent.iterdir()] == ["another"]


def test_results_of_another_network_are_not_mixed(tmp_path):
    def quick(**options) -> None:
        run(Options(late=False, quick=True, out=tmp_path, **options))

    quick(only=("SGD",))
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert [run["title"] for run in runs] == ["Options"]
    (tmp_path / "summary.json").write_text(json.dumps([run | {"title": "Others"} for run in runs]))
    for options in ({"only": ("SGD",)}, {"redraw": True}):
        with pytest.raises(BenchmarkError, match="are of 'Others', not of 'Options'"):
            quick(**options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates(Options):
    """The last learning rate is far too large."""

    may_diverge: ClassVar[bool] = True

    def methods(self) -> list[methods.Recipe]:
        return [methods.sgd(Constant(0.1)), methods.lasso(Constant(1e30), 0.1)]


def test_what_may_diverge_is_left_out(tmp_path, capsys):
    run(Rates(epochs=1, images=400, seeds=1, out=tmp_path, checkpoint_seconds=0))
    assert [run["method"] for run in json.loads((tmp_path / "summary.json").read_text())] == ["SGD"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out: lasso λ=0.1 diverged in epoch 1: the loss is not finite" in said
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(BenchmarkError, match=r"lasso λ=0\.1 diverged"):
        run(Rates(epochs=1, images=400, seeds=1, out=tmp_path, only=("lasso",)))


def test_what_only_keeps_of_another_extent_is_told(tmp_path, capsys):
    def said(*only: str, **options) -> str:
        run(Options(late=False, out=tmp_path, only=only, images=80, **options))
        return " ".join(capsys.readouterr().out.split())

    assert "Kept from before" not in said("SGD", epochs=2, seeds=2)
    assert "Kept from before" not in said("RigL", epochs=2, seeds=2, seed=5)
    again = said("RigL", epochs=3, seeds=1, batch_size=16)
    assert "over 1 to 2 seeds" in again
    assert (
        "Kept from before, and trained otherwise (epochs: 2, now 3; batch_size: 32, now 16; seeds:"
        " 2, now 1): SGD."
    ) in again
    stopped = said("RigL", epochs=3, seeds=2, patience=1)
    assert "Kept from before" not in stopped
    assert "Options, a trial, mean ± deviation over 2 seeds" in stopped


def test_different_numbers_of_steps_are_no_difference():
    def run(method: str, steps: int, epochs: int, images: int, batch_size: int = 10) -> Run:
        settings = {"steps": steps, "images": images, "batch_size": batch_size}
        values = dict.fromkeys((field.name for field in dataclasses.fields(Run)), None)
        return Run(**values | {"method": method, "settings": settings, "epochs": epochs})  # pyright: ignore[reportArgumentType]

    new = [run("Adam, 3 steps", 3, 1, 30), run("Adam, 8 steps", 8, 2, 40)]
    ordinary = [
        run("ours, 3 steps", 3, 1, 30),
        run("ours, 8 steps", 8, 2, 40),
        run("ours, 20 steps", 20, 5, 40),
    ]
    assert list(differences(ordinary, new)) == []
    unlike = [run("fewer images", 8, 4, 20), run("smaller batches", 20, 10, 20, batch_size=5)]
    assert list(differences(ordinary + unlike, new)) == [
        "Kept from before, and trained otherwise (epochs: 4, now 2; images: 20, now 40): fewer"
        " images.",
        "Kept from before, and trained otherwise (batch_size: 5, now 10): smaller batches.",
    ]
