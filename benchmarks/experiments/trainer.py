"""Trains one case with checkpoints, and goes on with what was interrupted."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cli.interruption import Interrupted, Interruption
from benchmarks.cli.options import TrainingOptions
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result, train
from benchmarks.methods import Recipe
from benchmarks.report import results

QUICK_EPOCHS = 2
"""the most epochs of a training with --quick"""

Case = tuple[str, Task, Recipe]
"""A name, the network and its data, and the method."""


class Trainer:
    """Trains with checkpoints, continues interrupted trainings, and stops on Ctrl-C."""

    def __init__(self, experiment: str, folder: Path, seconds: float, stop: Interruption):
        self._experiment, self._folder = experiment, folder
        self._seconds, self._stop = seconds, stop
        self._begun: list[Path] = []

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
        folder = self._folder / results.file_name(name)
        about = {
            "experiment": self._experiment,
            "method": name,
            "epochs": epochs,
            "seeds": list(seeds),
            "steps_per_call": task.steps_per_call,
        }
        checkpoints = Checkpoints(folder, about | settings, seconds=self._seconds)
        self._begun.append(folder)
        try:
            result = train(
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
        return result

    def discard(self) -> None:
        """Delete the checkpoints of the trainings that are over; others' stay."""
        for folder in self._begun:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not empty, or was never made
            self._folder.rmdir()


def cut(task: Task, options: TrainingOptions) -> Task:
    """The task with the number of images and the batch size of the options."""
    if options.quick or options.images:
        most = options.images or len(task.dataset.train)
        limits = (min(most, 2000), 500) if options.quick else (most, None)
        task = dataclasses.replace(task, dataset=task.dataset.first(*limits))
    if options.batch_size:
        task = dataclasses.replace(task, batch_size=options.batch_size)
    return task
