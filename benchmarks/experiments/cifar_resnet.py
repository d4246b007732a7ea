"""Residual networks on CIFAR-10, by every optimizer and baseline."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax.numpy as jnp

from benchmarks import figures, methods, results
from benchmarks.augmentation import crop_and_flip
from benchmarks.data import Dataset
from benchmarks.experiment import Experiment
from benchmarks.methods import SparseStart
from benchmarks.models import resnet18, resnet20
from benchmarks.regularization import Penalty, Regularization, Rising, everywhere
from benchmarks.schedules import Cosine
from benchmarks.training import Task
from bregjax import l1, per_kernel

_NETWORKS = {"resnet18": resnet18, "resnet20": resnet20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarResNet(Experiment):
    """ResNet-20 or ResNet-18 on CIFAR-10, by every optimizer and baseline.

    Random crops and flips, batches of 128, one cosine for all. The baselines that are told a
    density get --density.
    """

    name: ClassVar[str] = "cifar_resnet"
    title: ClassVar[str] = "CIFAR-10, residual network"
    dataset: ClassVar[str] = "cifar10"

    network: Literal["resnet20", "resnet18"] = "resnet20"
    """ResNet-20 is narrow (0.27 million weights); ResNet-18 (11 million) wants a GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, duals and statistics are float32."""
    epochs: int = 30
    """Passes over the training images."""
    seeds: int = 1
    """Number of runs of each method, each with its own initial weights and order of images."""
    density: float = 0.1
    """Share of the weights that pruning, SET and RigL leave."""

    def methods(self) -> list[methods.Recipe]:
        """Ours with ℓ1 and with groups of kernels, and what a reviewer would ask about."""
        start = SparseStart(0.01)
        sparse = SparseStart(0.05)
        kernels = Regularization(
            {"conv": Penalty(per_kernel(), Rising(0.02, 0.2)), "dense": Penalty(l1(), 0.02)}
        )
        sgd = Cosine(0.1, warmup_epochs=1)
        return [
            methods.linbreg(sgd, everywhere(l1(), 0.01), start=start),
            methods.linbreg(sgd, everywhere(l1(), 0.01), start=start, momentum=0.9),
            methods.adabreg(Cosine(5e-3), everywhere(l1(), Rising(0.02, 0.2)), start=start),
            methods.adabreg(Cosine(5e-3), kernels, start=sparse),
            methods.sgd(sgd, momentum=0.9),
            methods.adam(Cosine(1e-3)),
            methods.prox_sgd(sgd, everywhere(l1(), 1e-4), momentum=0.9),
            methods.lasso(sgd, 1e-4, momentum=0.9),
            methods.one_shot_pruning(sgd, self.density, momentum=0.9),
            methods.gradual_pruning(sgd, self.density, momentum=0.9),
            methods.set_training(sgd, self.density, momentum=0.9),
            methods.rigl(sgd, self.density, momentum=0.9),
        ]

    def task(self, dataset: Dataset) -> Task:
        """The network, with random crops and flips."""
        build = _NETWORKS[self.network]
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
        return Task(
            dataset,
            lambda rngs: build(dtype=dtype, rngs=rngs),
            batch_size=128,
            augment=crop_and_flip,
            steps_per_call=53,
            settings={"network": self.network, "precision": self.precision},
        )

    def draw(self, out: Path) -> None:
        """The learning curves, and the density of every layer."""
        figures.save(
            figures.learning_curves(results.read_rows(out), self.title), out, "learning_curves"
        )
        figure = figures.accuracy_and_density(results.read_runs(out), self.title)
        figures.save(figure, out, "accuracy_and_density")
