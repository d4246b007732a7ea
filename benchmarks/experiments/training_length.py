"""Whether a lead holds when the training gets longer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.lengths import ExperimentOnLengths
from benchmarks.experiments.networks import FIRST_NETWORKS, NETWORKS, Network
from benchmarks.methods import Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLength(ExperimentOnLengths):
    """Ours and the baselines in short and long trainings, at equal density.

    AdaBreg has the defaults of the library. LinBreg, gradual pruning around SGD with momentum and
    around Adam, RigL, and both of these optimizers on the dense network are trained beside it, for
    the transformer only what is around Adam. Tune the rates on the validation images: each run in
    summary.json has its `validation_accuracy`.
    """

    name: ClassVar[str] = "training_length"
    networks: ClassVar[Mapping[str, Network]] = {
        **NETWORKS,
        "batchnorm": FIRST_NETWORKS["batchnorm"],
        "transformer": FIRST_NETWORKS["transformer"],
        "digits": FIRST_NETWORKS["mlp"],
    }

    network: Literal["mlp", "convnet", "batchnorm", "resnet20", "transformer", "digits"] = "mlp"
    """MNIST, Fashion-MNIST (two of them), CIFAR-10, the texts of Python's help, or scikit-learn's
    digits; only the last two need no dataset."""
    steps: tuple[int, ...] = (300, 1000, 3000, 10_000)
    densities: tuple[float, ...] = (0.1, 0.05, 0.01)
    """Shares of the weights that live in the end; of the transformer those of the kernels."""
    sgd_rate: float | None = None
    """Largest learning rate of SGD, and of pruning and RigL around it; by default 0.05, of resnet20
    0.1."""
    adam_rate: float | None = None
    """Largest learning rate of Adam, and of pruning around it; by default 0.005, of the transformer
    0.002."""
    seeds: int = 3

    def methods(self) -> list[Recipe]:
        """Both dense optimizers, and ours and the baselines at every density."""
        methods.check_shares("--densities", self.densities)
        for option, rate in {"--sgd-rate": self.sgd_rate, "--adam-rate": self.adam_rate}.items():
            if rate is not None:
                methods.check_rate(option, rate)
        return [*self._around_adam(), *self._around_sgd()]

    def _around_adam(self) -> list[Recipe]:
        network = self.networks[self.network]
        rate = Cosine(self.adam_rate or network.adam_rate, warmup_epochs=self._warmup_epochs)
        dense = methods.adam(rate)
        return [
            dense,
            *(
                method
                for density in self.densities
                for method in (
                    ToDensity(density, mask=network.mask),
                    methods.masked(
                        methods.gradual_pruning(rate, density, adaptive=True), dense, network.mask
                    ),
                )
            ),
        ]

    def _around_sgd(self) -> list[Recipe]:
        largest = self.networks[self.network].sgd_rate
        if largest is None:
            if self.sgd_rate is not None:
                raise BenchmarkError(
                    f"--sgd-rate is not for --network {self.network}, which only Adam trains, got"
                    f" --sgd-rate {self.sgd_rate}."
                )
            return []
        rate = Cosine(self.sgd_rate or largest, warmup_epochs=self._warmup_epochs)
        return [
            methods.sgd(rate, momentum=0.9),
            *(
                method
                for density in self.densities
                for method in (
                    methods.linbreg_to_density(density, self._warmup_epochs),
                    methods.gradual_pruning(rate, density, momentum=0.9),
                    methods.rigl(rate, density, momentum=0.9),
                )
            ),
        ]

    @property
    def _warmup_epochs(self) -> float:
        """The epochs over which the learning rates rise; that of AdaBreg is the optimizer's own."""
        return min(1.0, 0.1 * self.epochs)

    def draw(self, out: Path) -> None:
        """The quality of the networks over the number of steps, at each density."""
        runs = results.read_runs(out)
        figures.save(figures.quality_at_densities(runs, self.title), out, self.name)
