"""Networks that several experiments train, chosen by ``--network``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import bregjax
from benchmarks.data import Dataset
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.objectives import next_token
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.fashion_convnet import convnet_task
from benchmarks.experiments.mnist import mlp_task, mlp_title
from benchmarks.models import MLP, SmallConvNet, Transformer, resnet20


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and what it is trained on."""

    title: str
    """the heading of table and figures"""
    dataset: str
    task: Callable[[Dataset], Task]
    convolutional: bool = True
    mask: Callable[[Any], Any] | None = None
    """which weights become sparse; by default all"""
    adam_rate: float = 5e-3
    """the largest learning rate of Adam on the dense network"""
    sgd_rate: float | None = 0.05
    """the same for SGD with momentum 0.9; None where only Adam trains the network well"""


NETWORKS = {
    "mlp": Network(f"MNIST, {mlp_title()}", "mnist", mlp_task, convolutional=False),
    "convnet": Network("Fashion-MNIST, ConvNet", "fashion_mnist", convnet_task),
    "resnet20": Network(
        "CIFAR-10, ResNet-20",
        "cifar10",
        lambda dataset: Task(
            dataset, lambda rngs: resnet20(rngs=rngs), augment=crop_and_flip, steps_per_call=53
        ),
        sgd_rate=0.1,
    ),
    "transformer": Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        lambda dataset: Task(dataset, lambda rngs: Transformer(rngs=rngs), 16, next_token),
        convolutional=False,
        sgd_rate=None,
    ),
}
"""those that are trained for epochs"""

FIRST_NETWORKS = {
    "mlp": Network(
        "digits, MLP 64-128-64-10",
        "digits",
        lambda dataset: Task(dataset, lambda rngs: MLP((64, 128, 64, 10), rngs=rngs), 64),
        convolutional=False,
    ),
    "convnet": Network(
        "digits, two convolutions",
        "digits",
        lambda dataset: Task(dataset, lambda rngs: SmallConvNet(8, rngs=rngs), 64),
    ),
    "batchnorm": Network(
        "Fashion-MNIST, two convolutions with batch norm",
        "fashion_mnist",
        lambda dataset: Task(
            dataset, lambda rngs: SmallConvNet(28, normalized=True, rngs=rngs), 64
        ),
    ),
    "transformer": Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        lambda dataset: Task(
            dataset, lambda rngs: Transformer(width=128, rngs=rngs), 16, next_token
        ),
        convolutional=False,
        mask=bregjax.label_by_path({"*/kernel": True}, default=False),
        adam_rate=2e-3,
        sgd_rate=None,
    ),
}
"""small ones, as the first page of the documentation trains them"""


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
