"""Networks that several experiments train, chosen by ``--network``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

from benchmarks.data import Dataset
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.objectives import next_token
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.fashion_convnet import convnet_task
from benchmarks.experiments.mnist import mlp_task, mlp_title
from benchmarks.models import Transformer, resnet20


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and what it is trained on."""

    title: str
    """the heading of table and figures"""
    dataset: str
    task: Callable[[Dataset], Task]
    convolutional: bool = True


NETWORKS = {
    "mlp": Network(f"MNIST, {mlp_title()}", "mnist", mlp_task, convolutional=False),
    "convnet": Network("Fashion-MNIST, ConvNet", "fashion_mnist", convnet_task),
    "resnet20": Network(
        "CIFAR-10, ResNet-20",
        "cifar10",
        lambda dataset: Task(
            dataset, lambda rngs: resnet20(rngs=rngs), augment=crop_and_flip, steps_per_call=53
        ),
    ),
    "transformer": Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        lambda dataset: Task(dataset, lambda rngs: Transformer(rngs=rngs), 16, next_token),
        convolutional=False,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentOnNetworks(Experiment):
    """An experiment on one of several networks, which ``--network`` chooses."""

    networks: ClassVar[Mapping[str, Network]] = NETWORKS
    """by the values of ``--network``"""

    network: str

    @property
    def title(self) -> str:
        """See `Network`."""
        return self.networks[self.network].title

    @property
    def dataset(self) -> str:
        """See `Network`."""
        return self.networks[self.network].dataset

    @property
    def convolutional(self) -> bool:
        """See `Network`."""
        return self.networks[self.network].convolutional

    def task(self, dataset: Dataset) -> Task:
        """See `Network`."""
        task = self.networks[self.network].task(dataset)
        return dataclasses.replace(task, settings={"network": self.network})
