"""What all experiments share: their options, and the way from methods to results."""

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from flax import nnx

from benchmarks import data, devices, methods, results
from benchmarks.checkpoints import Checkpoints
from benchmarks.errors import BenchmarkError
from benchmarks.interruption import Interrupted, Interruption
from benchmarks.methods import Recipe
from benchmarks.options import check_counts, named_by
from benchmarks.progress import console
from benchmarks.training import Result, Task, network_of, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The options of every experiment; a subclass sets defaults and says what is trained."""

    name: ClassVar[str]
    title: ClassVar[str]
    dataset: ClassVar[str]
    convolutional: ClassVar[bool] = False
    """whether to make every core of a CPU a device, see `devices.one_per_core`"""

    epochs: int = 30
    """Passes over the training images."""
    seeds: int = 5
    """Number of runs of each method, each with its own initial weights and order of images."""
    seed: int = 0
    """The first seed; the runs take the seeds from here on."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for summary.json, metrics.jsonl and the figures; by default out/NAME, with --quick
    out/NAME-quick."""
    images: int | None = None
    """Train on the first so many images only, where time is short; by default on all."""
    batch_size: int | None = None
    """Images in a training batch; by default those of the paper, or of the experiment's page."""
    quick: bool = False
    """A trial: at most two epochs, one seed, 2,000 images to train on and 500 to test."""
    select: Literal["last", "best"] = "last"
    """Which network is tested: that of the last epoch, or the best on the validation images."""
    patience: int | None = None
    """Stop a method when no seed has improved on the validation images for so many epochs."""
    only: tuple[str, ...] = ()
    """Only the methods with one of these words in their names; results of others are kept."""
    restart: bool = False
    """Discard what an interrupted run has saved; by default the run goes on from there."""
    checkpoint_seconds: float = 30.0
    """At least so long between two checkpoints of a method."""
    minutes: float | None = None
    """Begin no method that would not end within so many minutes, judged by the last one."""
    redraw: bool = False
    """Only draw the figures again, from what an earlier run left in the folder."""

    def cases(self) -> Iterator[tuple[str, Task, Recipe]]:
        """Everything that is trained: a name, what is trained on what, and how."""
        task = self.task(data.load(self.dataset, self.data_dir))
        for method in self.methods():
            yield method.name, task, method

    def methods(self) -> list[Recipe]:
        """What is compared."""
        raise NotImplementedError

    def task(self, dataset: data.Dataset) -> Task:
        """The network and the batch size."""
        raise NotImplementedError

    def snapshot(self, params: Any) -> dict[str, np.ndarray]:
        """What ``snapshots.npz`` keeps of the parameters of all seeds after each epoch."""
        del params
        return {}

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """What ``exhibits.npz`` keeps of the first seed's final network."""
        del task, network
        return {}

    def findings(self, task: Task, method: Recipe, result: Result) -> list[dict[str, Any]]:
        """What a `results.Run` says besides, for each seed; keys are its optional fields."""
        del task, method
        return [{} for _ in result.test_loss]

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """Sentences below the table."""
        del runs
        yield from ()

    def draw(self, out: Path) -> None:
        """Draw the figures from the files in ``out``."""
        raise NotImplementedError

    def run(self) -> None:
        """Train every method, write the results after each, print the table, draw the figures."""
        check_counts(self, "epochs", "seeds", "patience", "images", "batch_size")
        if self.convolutional:
            devices.one_per_core()
        if self.select == "best" or self.patience is not None:
            for name, _, method in self._chosen():
                if isinstance(method, methods.Targeted):
                    raise BenchmarkError(
                        f"{name} lands near the end: it can be trained neither with --select best"
                        " nor with --patience."
                    )
        out = results.prepare_folder(self.out, self.name, quick=self.quick)
        if not self.redraw:
            self._train_all(out)
        self.draw(out)
        console.print(f"Results and figures are in {out}.", soft_wrap=True)

    def _train_all(self, out: Path) -> None:
        epochs = min(self.epochs, 2) if self.quick else self.epochs
        seeds = range(self.seed, self.seed + (1 if self.quick else self.seeds))
        archive = results.Archive(out, keep=bool(self.only))
        folder = out / "checkpoints"
        if self.restart:
            shutil.rmtree(folder, ignore_errors=True)
        budget = Budget(self.minutes)
        with Interruption() as stop:
            for name, task, method in self._chosen():
                if stop:
                    raise Interrupted(f"before {name}", stop.signal)
                if not budget.begin():
                    console.print(f"{name} was not begun: it would not end in time.")
                    continue
                if self.quick or self.images:
                    limits = (2000, 500) if self.quick else (self.images, None)
                    task = dataclasses.replace(task, dataset=task.dataset.first(*limits))
                if self.batch_size:
                    task = dataclasses.replace(task, batch_size=self.batch_size)
                about = {
                    "experiment": self.name,
                    "method": name,
                    "epochs": epochs,
                    "seeds": list(seeds),
                    "steps_per_call": task.steps_per_call,
                }
                checkpoints = Checkpoints(
                    folder / results.file_name(name),
                    about | _settings(task, method),
                    seconds=self.checkpoint_seconds,
                )
                try:
                    result = train(
                        task,
                        method.optimizer(epochs, task.batches.steps),
                        seeds=list(seeds) * len(method.members),
                        epochs=epochs,
                        hyperparameters=method.hyperparameters(len(seeds)),
                        start=method.start,
                        select=self.select,
                        patience=self.patience,
                        label=name,
                        snapshot=self.snapshot,
                        checkpoints=checkpoints,
                        stop=lambda: bool(stop),
                    )
                except Interrupted as error:
                    raise Interrupted(f"{name} {error}", stop.signal) from None
                for index, member in enumerate(method.members):
                    part = result.part(index, len(seeds))
                    member_name = name if member is method else member.name
                    runs = results.runs_of(
                        self.name,
                        member_name,
                        _settings(task, member),
                        seeds,
                        part,
                        self.findings(task, member, part),
                    )
                    archive.add(
                        member_name,
                        runs,
                        results.curve_rows(self.name, member_name, seeds, part),
                        part.snapshots,
                        self.exhibits(task, network_of(task, part)),
                    )
        shutil.rmtree(folder, ignore_errors=True)
        results.print_table(archive.runs, self.title)
        for remark in self.remarks(archive.runs):
            console.print(remark)

    def _chosen(self) -> list[tuple[str, Task, Recipe]]:
        everything = list(self.cases())
        chosen = named_by(self.only, (name for name, _, _ in everything))
        return [case for case in everything if case[0] in chosen]


class Budget:
    """The time for several trainings that take about as long as one another."""

    def __init__(self, minutes: float | None):
        self._until = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        self._began: float | None = None
        self._last = 0.0

    def begin(self) -> bool:
        """Whether there is time for one more; a training ends where the next one asks."""
        now = time.monotonic()
        if self._began is not None:
            self._last = now - self._began
        enough = now + self._last <= self._until
        self._began = now if enough else None
        return enough


def _settings(task: Task, method: Recipe) -> dict[str, Any]:
    """The settings of a run, for summary.json."""
    images = {"batch_size": task.batch_size, "images": len(task.dataset.train)}
    return method.record() | images | task.settings
