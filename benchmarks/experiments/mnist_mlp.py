"""The multilayer perceptron of the paper on MNIST."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from benchmarks import figures, methods, results
from benchmarks.data import Dataset
from benchmarks.experiment import Experiment
from benchmarks.models import MLP
from benchmarks.training import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class MnistMlp(Experiment):
    """The paper's MLP on MNIST: 784-200-80-10, starting with 1 % of its weights.

    LinBreg with a small and a large strength, SGD and proximal SGD, as in the paper (Bungert et
    al., JMLR 2022) but with a learning rate that decays from 0.2 as a cosine, and AdaBreg with the
    rising strength that we recommend.
    """

    name: ClassVar[str] = "mnist_mlp"
    title: ClassVar[str] = "MNIST, MLP 784-200-80-10"
    dataset: ClassVar[str] = "mnist"

    published_relu: bool = False
    """Put a ReLU after the logits, as the published experiment does; it kills classes at random."""

    def methods(self) -> list[methods.Method]:
        """The paper's four, and ours."""
        return [
            methods.linbreg(0.2, 1e-3, cosine=True),
            methods.linbreg(0.2, 1e-1, cosine=True),
            methods.sgd(0.2, cosine=True),
            methods.prox_sgd(0.2, 1e-4, cosine=True),
            methods.adabreg(5e-3, 1.2, initial_strength=0.1, cosine=True),
            methods.adabreg(5e-3, 2.4, initial_strength=0.3, cosine=True),
        ]

    def task(self, dataset: Dataset) -> Task:
        """The paper's network and batch size."""
        start = {"density": 0.01, "gain": 0.7, "final_relu": self.published_relu}
        return Task(
            dataset,
            lambda rngs: MLP((784, 200, 80, 10), **start, rngs=rngs),
            batch_size=128,
            settings={
                "initial_density": start["density"],
                "initial_gain": start["gain"],
                "published_relu": self.published_relu,
            },
        )

    def draw(self, out: Path) -> None:
        """The paper's four panels."""
        figure = figures.learning_curves(results.read_rows(out), self.title)
        figures.save(figure, out, "learning_curves")
