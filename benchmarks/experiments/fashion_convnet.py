"""A convolutional network with few kernels on Fashion-MNIST."""

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
from benchmarks.methods.regularization import Penalty, Regularization, Rising, Strength
from benchmarks.methods.schedules import Cosine, Plateau
from benchmarks.models import ConvNet
from benchmarks.report import figures, results
from bregjax import l1, per_kernel


def kernels_and_weights(kernels: Strength, weights: Strength) -> Regularization:
    """Group sparsity of the convolution kernels, and ℓ1 on the dense layers."""
    return Regularization({"conv": Penalty(per_kernel(), kernels), "dense": Penalty(l1(), weights)})


def convnet_task(dataset: Dataset) -> Task:
    """The paper's network and batch size."""
    return Task(dataset, lambda rngs: ConvNet(rngs=rngs), batch_size=128, steps_per_call=89)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionConvNet(Experiment):
    """The ConvNet on Fashion-MNIST: whole 5×5 kernels and single dense weights appear one by one.

    LinBreg and AdaBreg with group sparsity on the kernels and ℓ1 on the dense layers, as in Bungert
    et al. (JMLR 2022), beside dense training, proximal and penalized SGD, pruning, SET and RigL.
    """

    name: ClassVar[str] = "fashion_convnet"
    title: ClassVar[str] = "Fashion-MNIST, ConvNet"
    dataset: ClassVar[str] = "fashion_mnist"
    convolutional: ClassVar[bool] = True

    epochs: int = 14
    seeds: int = 1
    density: float = 0.035
    """Share of the weights that pruning, SET and RigL leave."""

    def methods(self) -> list[methods.Recipe]:
        """Ours with a rising strength and with a density, LinBreg as published, every baseline."""
        methods.check_shares("--density", [self.density])
        rising = kernels_and_weights(Rising(0.02, 0.71), Rising(0.02, 0.685))
        steered = kernels_and_weights(0.011, 0.01)
        published = kernels_and_weights(0.5, 0.5)
        sgd = Cosine(0.05, warmup_epochs=1)
        return [
            methods.adabreg(Cosine(5e-3), rising, start=SparseStart(0.05)),
            methods.Targeted(
                methods.adabreg(Cosine(5e-3), steered, start=SparseStart(0.05)), 0.032
            ),
            methods.linbreg(Plateau(0.07), published, start=SparseStart(0.01, bias=10)),
            methods.sgd(sgd, momentum=0.9),
            methods.adam(Cosine(1e-3)),
            # Our momentum is a mean, SGD's is a sum: ten times the rate gives the same steps.
            methods.prox_sgd(
                Cosine(0.5, warmup_epochs=1, final=0.05),
                kernels_and_weights(1e-3, 1e-3),
                momentum=0.9,
            ),
            methods.lasso(sgd, 1e-3, momentum=0.9),
            *methods.sparse_baselines(sgd, self.density, momentum=0.9),
        ]

    def task(self, dataset: Dataset) -> Task:
        """See `convnet_task`."""
        return convnet_task(dataset)

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """The kernels of both convolutions."""
        del task
        assert isinstance(network, ConvNet)
        return {
            "first": np.asarray(network.conv1.kernel[...], np.float16),
            "second": np.asarray(network.conv2.kernel[...], np.float16),
        }

    def draw(self, out: Path) -> None:
        """The learning curves, and the kernels of the sparsest AdaBreg network."""
        super().draw(out)
        runs = {r.method: r for r in results.read_runs(out) if r.kind == "AdaBreg"}
        if runs:
            method = min(runs, key=lambda method: runs[method].density)
            kernels = results.read_exhibits(out)[method]
            layers = {
                "First convolution": kernels["first"].astype(np.float32),
                "Second convolution": kernels["second"].astype(np.float32),
            }
            figure = figures.learned_kernels(layers, f"{self.title}, {method}")
            figures.save(figure, out, "learned_kernels")
