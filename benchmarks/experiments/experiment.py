"""The base class of experiments: cases, what is kept and measured of each, figures."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from benchmarks import data
from benchmarks.cli.options import TrainingOptions, check_counts
from benchmarks.engine.compaction import Compaction
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result
from benchmarks.experiments.trainer import Case, Trainer
from benchmarks.methods import Recipe
from benchmarks.report import figures, results
from bregjax._leaves import leaf_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(TrainingOptions):
    """A comparison of trainings; a subclass says what is trained, and may set other defaults."""

    name: ClassVar[str]
    title: ClassVar[str]
    dataset: ClassVar[str]
    convolutional: ClassVar[bool] = False
    """whether to make every core of the CPU a device, see `devices.one_per_core`"""
    seed_by_seed: ClassVar[bool] = False
    """whether seeds are trained one after the other instead of side by side"""
    may_diverge: ClassVar[bool] = False
    """whether a training that diverges is left out instead of ending the experiment"""

    def check(self) -> None:
        """Raises `BenchmarkError` if an option is out of range."""
        check_counts(self, "epochs", "seeds", "patience", "images", "batch_size")

    def cases(self) -> Iterator[Case]:
        """Everything that is trained: for each case its name, network and data, and method."""
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
        """What to keep of the parameters of all seeds after each epoch, in ``snapshots.npz``."""
        del params
        return {}

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """What to keep of the first seed's final network, in ``exhibits.npz``."""
        del task, network
        return {}

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The findings of a `results.Run`, for each seed; it may train further networks."""
        del task, method, trainer
        return [{} for _ in result.test_loss]

    def compaction(self, method: Recipe) -> Compaction | None:
        """How the network loses its dead units while the method trains it; None if it does not."""
        del method
        return None

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """Sentences below the table."""
        del runs
        yield from ()

    def draw(self, out: Path) -> None:
        """Draw figures from the files in ``out``; a subclass may add to the learning curves."""
        figures.save(
            figures.learning_curves(results.read_rows(out), self.title), out, "learning_curves"
        )

    @property
    def is_trial(self) -> bool:
        """Whether the training is too short to say anything."""
        return self.quick or self.images is not None or self.epochs < type(self).epochs


def kernels_of(params: Any) -> dict[str, jax.Array]:
    """The kernels of all seeds by name; names have dots, as slashes separate keys of npz files."""
    return {
        leaf_name(path).replace("/", "."): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if x.ndim > 2  # the first axis counts the seeds
    }
