"""Trains all cases of an experiment, one after the other, and archives the results."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cli.errors import BenchmarkError, DivergenceError
from benchmarks.cli.interruption import Interruption
from benchmarks.cli.options import named_by
from benchmarks.cli.progress import console
from benchmarks.engine import devices
from benchmarks.engine.task import Task
from benchmarks.engine.training import network_of
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.trainer import QUICK_EPOCHS, Trainer, cut
from benchmarks.methods import Recipe
from benchmarks.report import results

_QUICK = (
    "This was a trial: it shows that everything runs, and its numbers say nothing about the"
    " methods."
)
_SHORT = (
    "This was a trial, shorter than the default (--epochs, --images): its numbers compare the"
    " methods at this length alone, and say nothing after less than some hundred steps."
)


def run(experiment: Experiment) -> None:
    """Train every method, write the results after each, print the table, draw the figures."""
    experiment.check()
    if experiment.convolutional:
        devices.one_per_core()
    trainings = [] if experiment.redraw else planned(experiment)
    out = results.prepare_folder(experiment.out, experiment.name, quick=experiment.quick)
    if experiment.redraw or experiment.only:
        results.check_title(out, experiment.title)
    if trainings:
        done = train_all(experiment, trainings, out)
        title = f"{experiment.title}, a trial" if experiment.is_trial else experiment.title
        results.print_table(done.runs, title)
        unlike = results.differences(done.kept, done.new, epochs=experiment.patience is None)
        for remark in (*experiment.remarks(done.runs), *unlike):
            console.print(remark, markup=False)
        if experiment.is_trial:
            console.print(_QUICK if experiment.quick else _SHORT)
        if any(training.strength_share < 1 for training in trainings):
            console.print("The strengths were smaller in proportion to the steps.")
    experiment.draw(out)
    console.print(f"Results and figures are in {out}.", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Training:
    """A case with the length and the data that the options give it."""

    name: str
    task: Task
    recipe: Recipe
    epochs: int
    strength_share: float
    """see `benchmarks.methods.Length`"""
    optimizer: Any
    """what `engine.training.train` takes"""

    def settings(self, member: Recipe) -> dict[str, Any]:
        """The settings of a member of the recipe, for summary.json."""
        share = self.strength_share
        images = {"batch_size": self.task.batch_size, "images": len(self.task.dataset.train)}
        scaled = {} if share == 1 else {"strength_share": share}
        defaults = member.defaults(self.epochs * self.task.steps)
        return member.record() | defaults | images | self.task.settings | scaled


def train_all(experiment: Experiment, trainings: Sequence[Training], out: Path) -> results.Archive:
    """Do these trainings; returns what is in ``out`` afterwards."""
    archive = results.Archive(out, keep=bool(experiment.only))
    folder = out / "checkpoints"
    if experiment.restart:
        shutil.rmtree(folder, ignore_errors=True)
    with Interruption() as stop:
        trainer = Trainer(experiment.name, folder, experiment.checkpoint_seconds, stop)
        for training in trainings:
            trainer.check(f"before {training.name}, and saved")
            try:
                _train(experiment, training, trainer, archive)
            except DivergenceError as error:
                if not experiment.may_diverge or (training is trainings[-1] and not archive.new):
                    raise
                console.print(f"Left out: {error}", markup=False)
    trainer.discard()
    return archive


def planned(experiment: Experiment) -> list[Training]:
    """The trainings that --only selects; without this option, all of them.

    Raises:
        BenchmarkError: if one of them is not possible with the options, before any has begun.
    """
    cases = list(experiment.cases())
    names = named_by(experiment.only, (name for name, _, _ in cases))
    if len(set(names)) < len(names):
        (twice, *_) = [name for name in names if names.count(name) > 1]
        raise BenchmarkError(f"there are two methods called {twice}: ask for more different ones.")
    return [_planned(experiment, *case) for case in cases if case[0] in names]


def _planned(experiment: Experiment, name: str, whole: Task, recipe: Recipe) -> Training:
    chooses = experiment.select == "best" or experiment.patience is not None
    if chooses and (recipe.late or experiment.compaction(recipe)):
        raise BenchmarkError(
            f"{name} is as sparse as it should be only near the end: it can be trained neither with"
            " --select best nor with --patience."
        )
    task = cut(whole, experiment)
    meant = whole.epochs or experiment.epochs
    epochs = min(meant, QUICK_EPOCHS) if experiment.quick else meant
    # The strengths are meant for the whole training, in which weights collect more evidence.
    share = min(1.0, epochs * _steps(task) / (meant * _steps(whole))) if experiment.quick else 1.0
    try:
        optimizer = recipe.optimizer(epochs, task.steps, share)
    except ValueError as error:
        raise BenchmarkError(f"{name}: {error}") from error
    return Training(name, task, recipe, epochs, share, optimizer)


def _train(
    experiment: Experiment, training: Training, trainer: Trainer, archive: results.Archive
) -> None:
    name, task, recipe = training.name, training.task, training.recipe
    count = 1 if experiment.quick else experiment.seeds
    seeds = range(experiment.seed, experiment.seed + count)
    groups = [[seed] for seed in seeds] if experiment.seed_by_seed else [list(seeds)]
    trained = [
        trainer.train(
            name if len(groups) == 1 else f"{name}, seed {group[0]}",
            task,
            training.optimizer,
            training.settings(recipe),
            seeds=group * len(recipe.members),
            epochs=training.epochs,
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
        parts = [
            result.part(index, len(group)) for group, result in zip(groups, trained, strict=True)
        ]
        runs, rows = [], []
        for group, part in zip(groups, parts, strict=True):
            findings = experiment.findings(task, member, part, trainer)
            runs += results.runs_of(
                experiment.name,
                experiment.title,
                member_name,
                member.kind,
                training.settings(member),
                group,
                part,
                findings,
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
