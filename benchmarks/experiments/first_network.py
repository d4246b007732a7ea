"""What a stranger gets who follows the first page, and nothing else."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from flax import nnx

import bregjax
from benchmarks import data, methods
from benchmarks.engine.objectives import Objective, classification, next_token
from benchmarks.engine.training import Task
from benchmarks.experiments.experiment import ExperimentOnNetworks
from benchmarks.experiments.runner import Case
from benchmarks.methods import FirstStart, Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.models import MLP, SmallConvNet, Transformer
from benchmarks.report import figures, results


class _Network(NamedTuple):
    title: str
    dataset: str
    convolutional: bool
    batch_size: int
    build: Callable[[nnx.Rngs], nnx.Module]
    objective: Objective = classification
    mask: Callable[[Any], Any] | None = None
    """which weights become sparse; by default all"""
    rate: float = 5e-3
    """the largest learning rate of Adam on the dense network"""
    sparse_rate: float | None = None
    """that of AdaBreg, where the page names another than the default"""


_NETWORKS = {
    "mlp": _Network(
        "digits, MLP 64-128-64-10",
        "digits",
        False,
        64,
        lambda rngs: MLP((64, 128, 64, 10), rngs=rngs),
    ),
    "convnet": _Network(
        "digits, two convolutions", "digits", True, 64, lambda rngs: SmallConvNet(8, rngs=rngs)
    ),
    "batchnorm": _Network(
        "Fashion-MNIST, two convolutions with batch norm",
        "fashion_mnist",
        True,
        64,
        lambda rngs: SmallConvNet(28, normalized=True, rngs=rngs),
    ),
    "transformer": _Network(
        "characters of Python's help, transformer of four layers",
        "python_help",
        False,
        16,
        lambda rngs: Transformer(width=128, rngs=rngs),
        next_token,
        bregjax.label_by_path({"*/kernel": True}, default=False),
        2e-3,
        1e-2,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstNetwork(ExperimentOnNetworks):
    """Four small networks, short and long trainings, as the first page tells it.

    The network starts by `sparse_start` and is trained by `adabreg_to_density`, which are told the
    density and the number of steps and nothing else. Beside them Adam on the dense network.
    """

    name: ClassVar[str] = "first_network"
    networks: ClassVar[Mapping[str, _Network]] = _NETWORKS

    network: Literal["mlp", "convnet", "batchnorm", "transformer"] = "mlp"
    """What is trained; all but batchnorm need no dataset."""
    steps: tuple[int, ...] = (300, 1000, 3000)
    """The lengths of the trainings, at least, in steps; --epochs is not used."""
    sparsities: tuple[float, ...] = (0.9, 0.95)
    """What is asked for: the shares of all weights that are to be zero."""
    seeds: int = 10
    """Number of runs of each method, each with its own initial weights and order of batches."""

    def cases(self) -> Iterator[Case]:
        """Each method for each number of steps."""
        network = self.networks[self.network]
        dataset = data.load(network.dataset, self.data_dir)
        for steps in self.steps:
            epochs = math.ceil(steps / (len(dataset.train) // network.batch_size))
            task = Task(
                dataset.first(math.ceil(steps / epochs) * network.batch_size, None),
                network.build,
                network.batch_size,
                network.objective,
                epochs=epochs,
                settings={"network": self.network, "steps": steps},
            )
            for method in self.methods():
                yield f"{method.name}, {steps:,} steps", task, method

    def methods(self) -> list[Recipe]:
        """Dense Adam, and ours at every density."""
        methods.check_shares("--sparsities", self.sparsities)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        network = self.networks[self.network]
        mask = network.mask
        return [
            methods.adam(Cosine(network.rate)),
            *(
                ToDensity(density, FirstStart(mask=mask), mask, rate=network.sparse_rate)
                for density in densities
            ),
        ]

    def draw(self, out: Path) -> None:
        """How good they are over the number of steps."""
        runs = results.read_runs(out)
        figures.save(figures.quality_over_steps(runs, self.title), out, "quality_over_steps")
