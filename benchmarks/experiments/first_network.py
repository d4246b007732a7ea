"""What a newcomer gets who does what the first page says."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from benchmarks import methods
from benchmarks.experiments.lengths import ExperimentOnLengths
from benchmarks.experiments.networks import FIRST_NETWORKS, Network
from benchmarks.methods import Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstNetwork(ExperimentOnLengths):
    """Four small networks in short and long trainings, as the first page explains it.

    `adabreg_to_density` is told only the density and the number of steps. Adam on the dense network
    is trained beside it.
    """

    name: ClassVar[str] = "first_network"
    networks: ClassVar[Mapping[str, Network]] = FIRST_NETWORKS

    network: Literal["mlp", "convnet", "batchnorm", "transformer"] = "mlp"
    """What is trained; only batchnorm needs a dataset."""
    steps: tuple[int, ...] = (300, 1000, 3000)
    sparsities: tuple[float, ...] = (0.9, 0.95)
    """The wanted shares of zeros among all weights."""
    seeds: int = 10

    def methods(self) -> list[Recipe]:
        """Dense Adam, and ours at every density."""
        methods.check_shares("--sparsities", self.sparsities)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        network = self.networks[self.network]
        return [
            methods.adam(Cosine(network.adam_rate)),
            *(ToDensity(density, mask=network.mask) for density in densities),
        ]

    def draw(self, out: Path) -> None:
        """The quality of the networks over the number of steps."""
        runs = results.read_runs(out)
        figures.save(figures.quality_over_steps(runs, self.title), out, "quality_over_steps")
