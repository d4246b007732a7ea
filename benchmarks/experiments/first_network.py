"""What a newcomer gets who does what the first page says."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import bregjax
from benchmarks import data, methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.engine.objectives import next_token
from benchmarks.engine.task import Task
from benchmarks.experiments.networks import ExperimentOnNetworks, Network
from benchmarks.experiments.runner import QUICK_EPOCHS, Case, cut
from benchmarks.methods import Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.models import MLP, SmallConvNet, Transformer
from benchmarks.report import figures, results


@dataclasses.dataclass(frozen=True)
class _Network(Network):
    mask: Callable[[Any], Any] | None = None
    """which weights become sparse; by default all"""
    rate: float = 5e-3
    """the largest learning rate of Adam on the dense network"""


_NETWORKS = {
    "mlp": _Network(
        "digits, MLP 64-128-64-10",
        "digits",
        lambda dataset: Task(dataset, lambda rngs: MLP((64, 128, 64, 10), rngs=rngs), 64),
        convolutional=False,
    ),
    "convnet": _Network(
        "digits, two convolutions",
        "digits",
        lambda dataset: Task(dataset, lambda rngs: SmallConvNet(8, rngs=rngs), 64),
    ),
    "batchnorm": _Network(
        "Fashion-MNIST, two convolutions with batch norm",
        "fashion_mnist",
        lambda dataset: Task(
            dataset, lambda rngs: SmallConvNet(28, normalized=True, rngs=rngs), 64
        ),
    ),
    "transformer": _Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        lambda dataset: Task(
            dataset, lambda rngs: Transformer(width=128, rngs=rngs), 16, next_token
        ),
        convolutional=False,
        mask=bregjax.label_by_path({"*/kernel": True}, default=False),
        rate=2e-3,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstNetwork(ExperimentOnNetworks):
    """Four small networks in short and long trainings, as the first page explains it.

    `adabreg_to_density` is told only the density and the number of steps. Adam on the dense network
    is trained beside it.
    """

    name: ClassVar[str] = "first_network"
    networks: ClassVar[Mapping[str, _Network]] = _NETWORKS

    network: Literal["mlp", "convnet", "batchnorm", "transformer"] = "mlp"
    """What is trained; only batchnorm needs a dataset."""
    steps: tuple[int, ...] = (300, 1000, 3000)
    """The lengths of the trainings in steps, at least, with --quick at most two epochs; --epochs is
    not used."""
    sparsities: tuple[float, ...] = (0.9, 0.95)
    """The wanted shares of zeros among all weights."""
    seeds: int = 10

    def cases(self) -> Iterator[Case]:
        """Each method for each number of steps."""
        if self.epochs != type(self).epochs:
            raise BenchmarkError(f"give --steps instead of --epochs, got --epochs {self.epochs}.")
        if min(self.steps, default=0) < 1:
            raise BenchmarkError(
                f"--steps must be at least 1, got {' '.join(map(str, self.steps)) or 'none'}."
            )
        whole = cut(self.task(data.load(self.dataset, self.data_dir)), self)
        longest = QUICK_EPOCHS * whole.steps if self.quick else max(self.steps)
        for steps in dict.fromkeys(min(steps, longest) for steps in self.steps):
            epochs = math.ceil(steps / whole.steps)
            images = math.ceil(steps / epochs) * whole.batch_size
            task = dataclasses.replace(
                whole,
                dataset=whole.dataset.first(images, None),
                epochs=epochs,
                settings=whole.settings | {"steps": steps},
            )
            for method in self.methods():
                yield f"{method.name}, {steps:,} steps", task, method

    def methods(self) -> list[Recipe]:
        """Dense Adam, and ours at every density."""
        methods.check_shares("--sparsities", self.sparsities)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        network = self.networks[self.network]
        return [
            methods.adam(Cosine(network.rate)),
            *(ToDensity(density, mask=network.mask) for density in densities),
        ]

    def draw(self, out: Path) -> None:
        """The quality of the networks over the number of steps."""
        runs = results.read_runs(out)
        figures.save(figures.quality_over_steps(runs, self.title), out, "quality_over_steps")
