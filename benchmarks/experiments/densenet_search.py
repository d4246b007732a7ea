"""A dense block that chooses its own connections, on Fashion-MNIST."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
from flax import nnx

from benchmarks import methods
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.methods import SparseStart
from benchmarks.methods.regularization import Penalty, Regularization, Rising
from benchmarks.methods.schedules import Cosine, Plateau
from benchmarks.models import DenseNet
from benchmarks.report import figures, results
from bregjax import group_l2, per_kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseNetSearch(Experiment):
    """Which of the 21 connections of a dense block survive on Fashion-MNIST?

    Every layer may read all feature maps before it. AdaBreg is trained with single kernels as
    groups, as in Bungert et al., arXiv 2106.02479, and with whole connections as groups.
    """

    name: ClassVar[str] = "densenet_search"
    title: ClassVar[str] = "Fashion-MNIST, dense block"
    dataset: ClassVar[str] = "fashion_mnist"
    convolutional: ClassVar[bool] = True

    epochs: int = 10
    seeds: int = 1

    def methods(self) -> list[methods.Recipe]:
        """The published groups, and one group per connection; the linear layer is left dense."""
        start = SparseStart(0.03, gain=0.87, groups={"conv": per_kernel()})
        kernels = Regularization({"conv": Penalty(per_kernel(), 0.05)})

        def connections(final: float) -> methods.Recipe:
            strength = Rising(0.01, final)
            whole = Regularization({"conv": Penalty(group_l2((0, 1, 2, 3)), strength)})
            # Without the warm-up all connections may wake at once, and the network dies.
            method = methods.adabreg(Cosine(3e-3, warmup_epochs=1), whole, start=start)
            return dataclasses.replace(method, family="connections")

        return [
            dataclasses.replace(
                methods.adabreg(Plateau(1e-3), kernels, start=start), family="kernels"
            ),
            connections(0.1),
            connections(0.16),
            methods.adam(Cosine(1e-3, warmup_epochs=1)),  # at 3e-3 the network is dead in 30 steps
        ]

    def task(self, dataset: Dataset) -> Task:
        """The block with five layers of 12 channels."""
        return Task(dataset, lambda rngs: DenseNet(rngs=rngs), batch_size=128, steps_per_call=89)

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """The norm of every connection, and its share of live kernels."""
        del task
        assert isinstance(network, DenseNet)
        size = len(network.targets)
        live = np.zeros((size, size))
        for row, target in enumerate(network.targets):
            for column, kernel in enumerate(target.kernels):
                live[row, column] = np.any(np.asarray(kernel[...]) != 0, axis=(0, 1)).mean()
        return {"norms": np.asarray(network.connection_norms()), "live": live}

    def draw(self, out: Path) -> None:
        """The learning curves, and the connections that survive."""
        super().draw(out)
        figure = figures.surviving_connections(results.read_exhibits(out), self.title)
        figures.save(figure, out, "connections")
