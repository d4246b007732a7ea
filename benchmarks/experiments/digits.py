"""A first look: sparse training on the small digits that come with scikit-learn."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks import methods
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.methods import SparseStart
from benchmarks.methods.regularization import Rising, everywhere
from benchmarks.methods.schedules import Constant, Cosine
from benchmarks.models import MLP
from benchmarks.report import figures, results
from bregjax import l1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Experiment):
    """Four optimizers on 1,797 real handwritten digits; needs no download, under a minute.

    An MLP 64-128-64-10 starts with 5 % of its weights. The figure shows which of them appear.
    """

    name: ClassVar[str] = "digits"
    title: ClassVar[str] = "digits, MLP 64-128-64-10"
    dataset: ClassVar[str] = "digits"

    epochs: int = 40
    seeds: int = 3

    def methods(self) -> list[methods.Recipe]:
        """Both Bregman optimizers beside their dense and shrinking counterparts."""
        start = SparseStart(0.05)
        return [
            methods.linbreg(Constant(0.1), everywhere(l1(), 0.1), start=start),
            methods.adabreg(Cosine(1e-2), everywhere(l1(), Rising(0.1, 1.2)), start=start),
            methods.sgd(Constant(0.1), start=start),
            methods.prox_sgd(Constant(0.1), everywhere(l1(), 1e-3), start=start),
        ]

    def task(self, dataset: Dataset) -> Task:
        """A network and a batch size for small images."""
        return Task(dataset, lambda rngs: MLP((64, 128, 64, 10), rngs=rngs), batch_size=32)

    def snapshot(self, params: Any) -> dict[str, np.ndarray]:
        """Which weights of the first layer are live, for the first seed."""
        return {"live": np.asarray(jax.tree.leaves(params["layers"][0]["kernel"])[0][0]) != 0}

    def draw(self, out: Path) -> None:
        """The learning curves, and the weights that appear."""
        super().draw(out)
        figure = figures.appearing_weights(results.read_snapshots(out)["live"], image_shape=(8, 8))
        figures.save(figure, out, "appearing_weights")
