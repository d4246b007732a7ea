"""What the experiments with the paper's network on MNIST share."""

import dataclasses
from typing import ClassVar

from benchmarks.data import Dataset
from benchmarks.experiment import Experiment
from benchmarks.models import MLP
from benchmarks.training import Task


def mlp_task(dataset: Dataset) -> Task:
    """The paper's network and batch size."""
    return Task(dataset, lambda rngs: MLP((784, 200, 80, 10), rngs=rngs), batch_size=128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MnistExperiment(Experiment):
    """An experiment with the paper's multilayer perceptron on MNIST."""

    title: ClassVar[str] = "MNIST, MLP 784-200-80-10"
    dataset: ClassVar[str] = "mnist"

    def task(self, dataset: Dataset) -> Task:
        """See `mlp_task`."""
        return mlp_task(dataset)
