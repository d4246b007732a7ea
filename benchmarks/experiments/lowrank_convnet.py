"""The convolutional network with layers of low rank."""

import dataclasses
from typing import ClassVar

from benchmarks import methods
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.fashion_convnet import convnet_task
from benchmarks.experiments.lowrank import LowRank, called
from benchmarks.methods import LowRankStart, Recipe, SparseStart
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Cosine
from bregjax import l1, nuclear, per_filter


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowrankConvnet(LowRank):
    """The Fashion-MNIST ConvNet with the nuclear norm of its kernels.

    A kernel (kh, kw, in, out) is the matrix (kh·kw·in, out). AdaBreg and LinBreg with momentum use
    the nuclear norm; AdaBreg with ℓ1 and with groups of filters, and dense training are trained
    beside them. Each network is then split into thin layers of rank --rank at most, which Adam
    fine-tunes.
    """

    name: ClassVar[str] = "lowrank_convnet"
    network: ClassVar[str] = "ConvNet"
    convolutional: ClassVar[bool] = True

    epochs: int = 6
    rank: int = 4
    """The largest rank of a layer after it has been split."""

    def methods(self) -> list[Recipe]:
        """Nuclear norm, entries, filters, dense."""
        low, sparse = LowRankStart(0.05), SparseStart(0.05)
        warm = everywhere(nuclear(method="warm"), 3.0)
        rate = Cosine(5e-3)
        return [
            called(methods.adabreg(rate, warm, start=low), "nuclear"),
            called(
                methods.linbreg(
                    Cosine(1.0, warmup_epochs=1),
                    everywhere(nuclear(method="warm"), 2.0),
                    start=low,
                    momentum=0.9,
                ),
                "nuclear",
            ),
            called(methods.adabreg(rate, everywhere(l1(), 0.5), start=sparse), "ℓ1"),
            called(methods.adabreg(rate, everywhere(per_filter(), 0.05), start=sparse), "filters"),
            methods.sgd(Cosine(0.05, warmup_epochs=1), momentum=0.9),
        ]

    def task(self, dataset: Dataset) -> Task:
        """See `convnet_task`."""
        return convnet_task(dataset)
