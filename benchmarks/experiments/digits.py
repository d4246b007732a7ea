"""A first look: sparse training on the small digits that come with scikit-learn."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks import figures, methods, results
from benchmarks.data import Dataset
from benchmarks.experiment import Experiment
from benchmarks.models import MLP
from benchmarks.training import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Experiment):
    """Four optimizers on 1,797 real handwritten digits; needs no download, under a minute.

    An MLP 64-128-64-10 starts with 5 % of its weights. The figure shows which of them appear.
    """

    name: ClassVar[str] = "digits"
    title: ClassVar[str] = "digits, MLP 64-128-64-10"
    dataset: ClassVar[str] = "digits"

    epochs: int = 40
    """Passes over the training images."""
    seeds: int = 3
    """Number of runs of each method, each with its own initial weights and order of images."""

    def methods(self) -> list[methods.Method]:
        """Both Bregman optimizers beside their dense and shrinking counterparts."""
        return [
            methods.linbreg(0.1, 0.1),
            methods.adabreg(1e-2, 1.2, initial_strength=0.1, cosine=True),
            methods.sgd(0.1),
            methods.prox_sgd(0.1, 1e-3),
        ]

    def task(self, dataset: Dataset) -> Task:
        """A network and a batch that fit the small images."""
        return Task(
            dataset,
            lambda rngs: MLP((64, 128, 64, 10), density=0.05, rngs=rngs),
            batch_size=32,
            settings={"initial_density": 0.05},
        )

    def snapshot(self, params: Any) -> np.ndarray:
        """Which weights of the first layer are live, for the first seed."""
        return np.asarray(jax.tree.leaves(params["layers"][0]["kernel"])[0][0]) != 0

    def draw(self, out: Path) -> None:
        """The four panels, and the weights that appear."""
        figures.save(
            figures.learning_curves(results.read_rows(out), self.title), out, "learning_curves"
        )
        figure = figures.appearing_weights(results.read_snapshots(out), image_shape=(8, 8))
        figures.save(figure, out, "appearing_weights")
