"""What all experiments share: their options, and the way from methods to results."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks import data, results
from benchmarks.errors import BenchmarkError
from benchmarks.methods import Method
from benchmarks.progress import console
from benchmarks.training import Task, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The options of every experiment; a subclass sets defaults and says what is trained."""

    name: ClassVar[str]
    title: ClassVar[str]
    dataset: ClassVar[str]

    epochs: int = 30
    """Passes over the training images."""
    seeds: int = 5
    """Number of runs of each method, each with its own initial weights and order of images."""
    seed: int = 0
    """The first seed; the runs take the seeds from here on."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for summary.json, metrics.jsonl and the figures; by default out/NAME."""
    quick: bool = False
    """A trial of seconds: at most two epochs and one seed."""
    redraw: bool = False
    """Only draw the figures again, from what an earlier run left in the folder."""

    def methods(self) -> list[Method]:
        """What is compared."""
        raise NotImplementedError

    def task(self, dataset: data.Dataset) -> Task:
        """The model and the batch size."""
        raise NotImplementedError

    def snapshot(self, params: Any) -> np.ndarray | None:
        """What ``snapshots.npz`` keeps of the parameters of all seeds after each epoch."""
        del params
        return None

    def draw(self, out: Path) -> None:
        """Draw the figures from the files in ``out``."""
        raise NotImplementedError

    def run(self) -> None:
        """Train every method, write the results after each, print the table, draw the figures."""
        for option in ("epochs", "seeds"):
            if getattr(self, option) < 1:
                raise BenchmarkError(f"--{option} must be at least 1, got {getattr(self, option)}.")
        out = results.prepare_folder(self.out or Path("out") / self.name)
        if not self.redraw:
            self._train_all(out)
        self.draw(out)
        console.print(f"Results and figures are in {out}.", soft_wrap=True)

    def _train_all(self, out: Path) -> None:
        task = self.task(data.load(self.dataset, self.data_dir))
        epochs = min(self.epochs, 2) if self.quick else self.epochs
        seeds = range(self.seed, self.seed + (1 if self.quick else self.seeds))
        runs: list[results.Run] = []
        rows: list[dict[str, Any]] = []
        snapshots: dict[str, np.ndarray] = {}
        for method in self.methods():

            def keep(epoch: int, params: Any, method: Method = method) -> None:
                snapshot = self.snapshot(params)
                if snapshot is not None:
                    snapshots[f"{method.name}/{epoch}"] = snapshot

            settings = method.record() | {"batch_size": task.batch_size} | task.settings
            result = train(
                task,
                method.optimizer(epochs * task.steps_per_epoch),
                seeds=seeds,
                epochs=epochs,
                label=method.name,
                on_epoch=keep,
            )
            runs += results.runs_of(self.name, method.name, settings, seeds, result)
            rows += results.curve_rows(self.name, method.name, seeds, result)
            results.write(out, runs, rows, snapshots)
        results.print_table(runs, self.title)
