import dataclasses
import json
import os
import signal
from typing import ClassVar

import pytest

from benchmarks import methods
from benchmarks.cli.interruption import Interrupted
from benchmarks.data import Dataset
from benchmarks.engine.training import Task, train
from benchmarks.experiments.lowrank import LowRank
from benchmarks.experiments.runner import Budget
from benchmarks.methods.schedules import Constant
from benchmarks.models import MLP


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

    experiment("whole").run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.experiments.runner.train", interrupt)
        with pytest.raises(Interrupted, match="SGD, thin layers of network 0 after epoch 1 of 3"):
            ThinDigits(
                epochs=1, tuning=3, rank=4, out=tmp_path / "pieces", checkpoint_seconds=0
            ).run()
    assert not (tmp_path / "pieces" / "summary.json").exists()
    experiment("pieces").run()
    assert accuracies("pieces") == accuracies("whole")


def test_a_budget_begins_what_ends_in_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("benchmarks.experiments.runner.time.monotonic", lambda: now[0])
    budget = Budget(minutes=2)
    begun = []
    for seconds in (50, 40, 35, 1):
        begun.append(budget.begin())
        now[0] += seconds if begun[-1] else 0
    # After 90 s one like the last, of 40 s, would not end in time.
    assert begun == [True, True, False, False]
    assert all(Budget(None).begin() for _ in range(3))
