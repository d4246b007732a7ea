"""Sparsities that are asked for, on three networks, beside pruning and RigL."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from benchmarks import methods
from benchmarks.data import Dataset
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.training import Result, Task
from benchmarks.experiments.experiment import ExperimentOnNetworks
from benchmarks.experiments.mnist import PAPER, mlp_title
from benchmarks.experiments.runner import Trainer
from benchmarks.methods import Recipe, Targeted
from benchmarks.methods.schedules import Cosine
from benchmarks.models import MLP, ConvNet, resnet20
from benchmarks.report import figures, results


class _Network(NamedTuple):
    title: str
    dataset: str
    convolutional: bool
    task: dict[str, Any]
    sgd: float
    """learning rate of the baselines, with momentum 0.9"""


_NETWORKS = {
    "mlp": _Network(
        f"MNIST, {mlp_title()}",
        "mnist",
        False,
        {"build": lambda rngs: MLP(PAPER, rngs=rngs)},
        0.05,
    ),
    "convnet": _Network(
        "Fashion-MNIST, ConvNet",
        "fashion_mnist",
        True,
        {"build": lambda rngs: ConvNet(rngs=rngs), "steps_per_call": 89},
        0.05,
    ),
    "resnet20": _Network(
        "CIFAR-10, ResNet-20",
        "cifar10",
        True,
        {
            "build": lambda rngs: resnet20(rngs=rngs),
            "steps_per_call": 53,
            "augment": crop_and_flip,
        },
        0.1,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSparsity(ExperimentOnNetworks):
    """Ask for a sparsity and get it: LinBreg and AdaBreg, steered and landed.

    One setting for every target: the strength follows from the sparsity asked for, the landing
    makes the number of weights exact, and Adam tunes those. Beside them gradual magnitude pruning
    and RigL with as many weights and epochs.
    """

    name: ClassVar[str] = "target_sparsity"
    networks: ClassVar[Mapping[str, _Network]] = _NETWORKS

    network: Literal["mlp", "convnet", "resnet20"] = "mlp"
    """MNIST, Fashion-MNIST or CIFAR-10; the convolutions take their time without a GPU."""
    sparsities: tuple[float, ...] = (0.75, 0.9, 0.95, 0.98, 0.99)
    """What is asked for: the shares of all weights that are to be zero."""
    epochs: int = 20
    """Passes over the training images."""
    seeds: int = 3
    """Number of runs of each method, each with its own initial weights and order of images."""

    def methods(self) -> list[Recipe]:
        """Ours and the baselines at every target."""
        methods.check_shares("--sparsities", self.sparsities)
        adabreg, linbreg = methods.steerable()
        sgd = Cosine(self.networks[self.network].sgd, warmup_epochs=1)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        return [
            method
            for density in densities
            for method in (
                Targeted(adabreg, density),
                Targeted(linbreg, density),
                methods.gradual_pruning(sgd, density, momentum=0.9),
                methods.rigl(sgd, density, momentum=0.9),
            )
        ]

    def task(self, dataset: Dataset) -> Task:
        """The network on its images."""
        return Task(
            dataset,
            batch_size=128,
            settings={"network": self.network},
            **self.networks[self.network].task,
        )

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The density that was steered to."""
        del task, trainer
        return methods.steered_densities(method, result.curve.density)

    def draw(self, out: Path) -> None:
        """Accuracy over sparsity, and how the steering went."""
        runs, rows = results.read_runs(out), results.read_rows(out)
        figures.save(figures.accuracy_at_targets(runs, self.title), out, "accuracy_at_targets")
        if any(row["target"] is not None for row in rows):
            figures.save(figures.steering(runs, rows, self.title), out, "steering")
