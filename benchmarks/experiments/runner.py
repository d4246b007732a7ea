"""Trains all cases of an experiment, one after the other, and archives the results."""

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.interruption import Interrupted, Interruption
from benchmarks.cli.options import TrainingOptions, named_by
from benchmarks.cli.progress import console
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.training import Result, Task, network_of, train
from benchmarks.methods import Recipe, Targeted
from benchmarks.report import results

if TYPE_CHECKING:
    from benchmarks.experiments.experiment import Experiment

Case = tuple[str, Task, Recipe]
"""A name, the network and its data, and the method."""


def train_all(experiment: "Experiment", cases: Sequence[Case], out: Path) -> list[results.Run]:
    """Train these cases; returns all runs that are in ``out`` afterwards."""
    archive = results.Archive(out, keep=bool(experiment.only))
    folder = out / "checkpoints"
    if experiment.restart:
        shutil.rmtree(folder, ignore_errors=True)
    budget = Budget(experiment.minutes)
    with Interruption() as stop:
        trainer = Trainer(experiment.name, folder, experiment.checkpoint_seconds, stop)
        for name, task, recipe in cases:
            trainer.check(f"before {name}")
            if not budget.begin():
                console.print(f"{name} was not begun: it would not end in time.")
                continue
            _train_case(experiment, name, task, recipe, trainer, archive)
    shutil.rmtree(folder, ignore_errors=True)
    return archive.runs


class Trainer:
    """Trains with checkpoints, continues interrupted trainings, and stops on Ctrl-C."""

    def __init__(self, experiment: str, folder: Path, seconds: float, stop: Interruption):
        self._experiment, self._folder = experiment, folder
        self._seconds, self._stop = seconds, stop

    def check(self, where: str) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._stop:
            raise Interrupted(where, self._stop.signal)

    def train(
        self,
        name: str,
        task: Task,
        optimizer: Any,
        settings: dict[str, Any],
        *,
        seeds: Sequence[int],
        epochs: int,
        **options: Any,
    ) -> Result:
        """`engine.training.train`; name and settings tell the checkpoints from those of others."""
        about = {
            "experiment": self._experiment,
            "method": name,
            "epochs": epochs,
            "seeds": list(seeds),
            "steps_per_call": task.steps_per_call,
        }
        checkpoints = Checkpoints(
            self._folder / results.file_name(name), about | settings, seconds=self._seconds
        )
        try:
            return train(
                task,
                optimizer,
                seeds=seeds,
                epochs=epochs,
                label=name,
                checkpoints=checkpoints,
                stop=lambda: bool(self._stop),
                **options,
            )
        except Interrupted as error:
            raise Interrupted(f"{name} {error}", self._stop.signal) from None


class Budget:
    """The time for several trainings that take about the same time."""

    def __init__(self, minutes: float | None):
        self._until = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        self._began: float | None = None
        self._last = 0.0

    def begin(self) -> bool:
        """Whether there is time for one more training; the previous one ends with this call."""
        now = time.monotonic()
        if self._began is not None:
            self._last = now - self._began
        enough = now + self._last <= self._until
        self._began = now if enough else None
        return enough


def chosen_cases(experiment: "Experiment") -> list[Case]:
    """The cases that --only selects; without this option, all cases."""
    cases = list(experiment.cases())
    names = named_by(experiment.only, (name for name, _, _ in cases))
    cases = [case for case in cases if case[0] in names]
    if experiment.select == "best" or experiment.patience is not None:
        for name, _, recipe in cases:
            if isinstance(recipe, Targeted):
                raise BenchmarkError(
                    f"{name} lands near the end: it can be trained neither with --select best"
                    " nor with --patience."
                )
    return cases


def _cut(task: Task, options: TrainingOptions) -> Task:
    """The task with the number of images and the batch size of the options."""
    if options.quick or options.images:
        limits = (2000, 500) if options.quick else (options.images, None)
        task = dataclasses.replace(task, dataset=task.dataset.first(*limits))
    if options.batch_size:
        task = dataclasses.replace(task, batch_size=options.batch_size)
    return task


def _train_case(
    experiment: "Experiment",
    name: str,
    whole: Task,
    recipe: Recipe,
    trainer: Trainer,
    archive: results.Archive,
) -> None:
    task = _cut(whole, experiment)
    meant = whole.epochs or experiment.epochs
    epochs = min(meant, 2) if experiment.quick else meant
    # The strengths are meant for the whole training, in which weights collect more evidence.
    share = min(1.0, epochs * _steps(task) / (meant * _steps(whole))) if experiment.quick else 1.0
    count = 1 if experiment.quick else experiment.seeds
    seeds = range(experiment.seed, experiment.seed + count)
    groups = [[seed] for seed in seeds] if experiment.seed_by_seed else [list(seeds)]
    trained = [
        trainer.train(
            name if len(groups) == 1 else f"{name}, seed {group[0]}",
            task,
            recipe.optimizer(epochs, task.batches.steps, share),
            _settings(task, recipe, share),
            seeds=group * len(recipe.members),
            epochs=epochs,
            hyperparameters=recipe.hyperparameters(len(group)),
            start=recipe.start,
            select=experiment.select,
            patience=experiment.patience,
            snapshot=experiment.snapshot,
            compaction=experiment.compaction(recipe),
        )
        for group in groups
    ]
    for index, member in enumerate(recipe.members):
        member_name = name if member is recipe else member.name
        settings = _settings(task, member, share)
        parts = [
            result.part(index, len(group)) for group, result in zip(groups, trained, strict=True)
        ]
        runs, rows = [], []
        for group, part in zip(groups, parts, strict=True):
            findings = experiment.findings(task, member, part, trainer)
            runs += results.runs_of(
                experiment.name, member_name, member.kind, settings, group, part, findings
            )
            rows += results.curve_rows(experiment.name, member_name, group, part)
        archive.add(
            member_name,
            runs,
            rows,
            parts[0].snapshots,
            experiment.exhibits(task, network_of(task, parts[0])),
        )


def _steps(task: Task) -> float:
    """The steps of an epoch, not rounded."""
    return len(task.dataset.train) / task.batch_size


def _settings(task: Task, recipe: Recipe, strength_share: float) -> dict[str, Any]:
    """The settings of a run, for summary.json."""
    images = {"batch_size": task.batch_size, "images": len(task.dataset.train)}
    scaled = {} if strength_share == 1 else {"strength_share": strength_share}
    return recipe.record() | images | task.settings | scaled
