"""What the experiments with the paper's network on MNIST share."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.models import MLP

PAPER = (784, 200, 80, 10)
"""The widths of the paper's network."""


def mlp_task(dataset: Dataset, sizes: Sequence[int] = PAPER) -> Task:
    """The paper's network, or one of other widths, and the paper's batch size."""
    return Task(dataset, lambda rngs: MLP(sizes, rngs=rngs), batch_size=128)


def mlp_title(sizes: Sequence[int] = PAPER) -> str:
    """Such as ``MLP 784-200-80-10``."""
    return f"MLP {'-'.join(map(str, sizes))}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MnistExperiment(Experiment):
    """An experiment with the paper's multilayer perceptron on MNIST."""

    title: ClassVar[str] = f"MNIST, {mlp_title()}"
    dataset: ClassVar[str] = "mnist"

    def task(self, dataset: Dataset) -> Task:
        """See `mlp_task`."""
        return mlp_task(dataset)
