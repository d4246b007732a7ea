"""What the experiments with units that die share: networks, and what is a unit in them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import bregjax
from benchmarks.data import Dataset
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.objectives import next_token
from benchmarks.engine.training import Task
from benchmarks.experiments.experiment import ExperimentOnNetworks
from benchmarks.experiments.fashion_convnet import convnet_task
from benchmarks.experiments.mnist import mlp_task, mlp_title
from benchmarks.models import Transformer, resnet20


class _Network(NamedTuple):
    title: str
    dataset: str
    convolutional: bool
    task: Callable[[Dataset], Task]
    groups: Mapping[str, bregjax.Regularizer]
    """by patterns of the weights' names what lives or dies as a whole"""
    timed: int
    """examples in a batch"""


NETWORKS = {
    "mlp": _Network(
        f"MNIST, {mlp_title()}",
        "mnist",
        False,
        mlp_task,
        {"layers/[01]/kernel": bregjax.per_neuron()},
        500,
    ),
    "convnet": _Network(
        "Fashion-MNIST, ConvNet",
        "fashion_mnist",
        True,
        convnet_task,
        {"conv?/kernel": bregjax.per_filter(), "linear1/kernel": bregjax.per_neuron()},
        100,
    ),
    "resnet20": _Network(
        "CIFAR-10, ResNet-20",
        "cifar10",
        True,
        lambda dataset: Task(dataset, lambda rngs: resnet20(rngs=rngs), 128, augment=crop_and_flip),
        # By those that listen to them: a filter that is dead puts out what its norm adds.
        {"*/second/conv/kernel": bregjax.per_input_channel()},
        100,
    ),
    "transformer": _Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        False,
        lambda dataset: Task(dataset, lambda rngs: Transformer(rngs=rngs), 16, next_token),
        {
            "*/attention/out/kernel": bregjax.per_head(head_axis=-3),
            "*/up/kernel": bregjax.per_neuron(),
        },
        16,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsExperiment(ExperimentOnNetworks):
    """An experiment with a network whose neurons, filters or heads die as a whole."""

    networks: ClassVar[Mapping[str, _Network]] = NETWORKS

    def task(self, dataset: Dataset) -> Task:
        """The network on its examples."""
        task = self.networks[self.network].task(dataset)
        return dataclasses.replace(task, settings={"network": self.network})
