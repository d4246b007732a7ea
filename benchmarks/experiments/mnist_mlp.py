"""The multilayer perceptron of the paper on MNIST."""

import dataclasses
from functools import partial
from typing import ClassVar

from benchmarks import methods
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.mnist import PAPER, MnistExperiment
from benchmarks.methods import SparseStart
from benchmarks.methods.regularization import Rising, everywhere
from benchmarks.methods.schedules import Cosine
from benchmarks.models import MLP
from bregjax import l1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MnistMlp(MnistExperiment):
    """The paper's MLP on MNIST: 784-200-80-10, starting with 1 % of its weights.

    LinBreg with a small and a large strength, SGD and proximal SGD are those of the paper (Bungert
    et al., JMLR 2022), but with a learning rate that decays from 0.2 as a cosine. AdaBreg has the
    rising strength that we recommend.
    """

    name: ClassVar[str] = "mnist_mlp"

    published_relu: bool = False
    """Put a ReLU after the logits, as the published experiment does; random classes then die."""

    def methods(self) -> list[methods.Recipe]:
        """The paper's four, and ours."""
        start = SparseStart(0.01, gain=0.7)
        weights = partial(everywhere, l1())
        return [
            methods.linbreg(Cosine(0.2), weights(1e-3), start=start),
            methods.linbreg(Cosine(0.17), weights(1e-1), start=start),
            methods.sgd(Cosine(0.2), start=start),
            methods.prox_sgd(Cosine(0.2), weights(1e-4), start=start),
            methods.adabreg(Cosine(5e-3), weights(Rising(0.1, 1.2)), start=start),
            methods.adabreg(Cosine(5e-3), weights(Rising(0.3, 2.4)), start=start),
        ]

    def task(self, dataset: Dataset) -> Task:
        """The network, if wanted with the published ReLU."""
        return Task(
            dataset,
            lambda rngs: MLP(PAPER, final_relu=self.published_relu, rngs=rngs),
            batch_size=128,
            settings={"published_relu": self.published_relu},
        )
