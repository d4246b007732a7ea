"""LeNet-300-100 and LeNet-5 on MNIST: test error over the remaining weights."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.mnist import mlp_task
from benchmarks.experiments.networks import ExperimentOnNetworks, Network
from benchmarks.methods import Method, Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.models import LeNet5
from benchmarks.report import figures, results

_NETWORKS = {
    "lenet300": Network(
        "MNIST, LeNet-300-100",
        "mnist",
        lambda dataset: mlp_task(dataset, (784, 300, 100, 10)),
        convolutional=False,
    ),
    "lenet5": Network(
        "MNIST, LeNet-5-Caffe",
        "mnist",
        # 39 steps divide the epochs of both presets.
        lambda dataset: Task(dataset, lambda rngs: LeNet5(rngs=rngs), steps_per_call=39),
    ),
}


class Setting(NamedTuple):
    """What is tuned of a baseline."""

    rate: float
    """the largest learning rate"""
    decay: float = 0.0
    """of the weights; decoupled with Adam"""
    penalty: float = 0.0
    """λ of the ℓ1 penalty until the pruning stops"""

    def __str__(self) -> str:
        """Such as ``rate 0.1, decay 0.0005``: without what is zero."""
        named = {"rate": self.rate, "decay": self.decay, "ℓ1": self.penalty}
        return ", ".join(f"{name} {value:g}" for name, value in named.items() if value)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A method of others, and the grid of its settings."""

    make: Callable[[Cosine, float, Setting], Method]
    """from the learning rate, the density, which dense training ignores, and the rest"""
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    penalties: tuple[float, ...] = (0.0,)
    dense: bool = False

    def method(self, setting: Setting, density: float, warmup: float) -> Method:
        """The method with this setting, after a warm-up of so many epochs."""
        return self.make(Cosine(setting.rate, warmup_epochs=warmup), density, setting)

    def grid(self) -> Iterator[Setting]:
        """All settings that are tried."""
        yield from itertools.starmap(
            Setting, itertools.product(self.rates, self.decays, self.penalties)
        )


def _sgd(rate: Cosine, density: float, setting: Setting) -> Method:
    del density
    return methods.decayed(methods.sgd(rate, momentum=0.9), setting.decay)


def _adam(rate: Cosine, density: float, setting: Setting) -> Method:
    del density
    return methods.adam(rate, weight_decay=setting.decay)


def _pruning(rate: Cosine, density: float, setting: Setting, **around: Any) -> Method:
    _, decay, penalty = setting
    return methods.gradual_pruning(rate, density, weight_decay=decay, l1_penalty=penalty, **around)


def _rigl(rate: Cosine, density: float, setting: Setting) -> Method:
    return methods.decayed(methods.rigl(rate, density, momentum=0.9), setting.decay)


def _set(rate: Cosine, density: float, setting: Setting) -> Method:
    return methods.decayed(methods.set_training(rate, density, momentum=0.9), setting.decay)


_SGD_RATES, _SGD_DECAYS = (0.01, 0.03, 0.1, 0.2), (0.0, 1e-4, 5e-4)
_ADAM_RATES, _ADAM_DECAYS = (1e-3, 2e-3, 5e-3), (0.0, 1e-2, 1e-1)
_PENALTIES = (0.0, 3e-5, 1e-4, 3e-4)
_ADABREG_RATES = (1e-3, 2e-3, 5e-3, 1e-2)
_LINBREG_RATES = (0.03, 0.1, 0.2)

_BASELINES = {
    "SGD": Baseline(_sgd, _SGD_RATES, _SGD_DECAYS, dense=True),
    "Adam": Baseline(_adam, _ADAM_RATES, _ADAM_DECAYS, dense=True),
    "gradual pruning": Baseline(
        functools.partial(_pruning, momentum=0.9), _SGD_RATES, _SGD_DECAYS, _PENALTIES
    ),
    "gradual pruning, Adam": Baseline(
        functools.partial(_pruning, adaptive=True), _ADAM_RATES, _ADAM_DECAYS, _PENALTIES
    ),
    "RigL": Baseline(_rigl, _SGD_RATES, _SGD_DECAYS),
    "SET": Baseline(_set, _SGD_RATES, _SGD_DECAYS),
}

_CHOSEN = {
    "lenet300": {
        "SGD": Setting(0.1, 1e-4),
        "Adam": Setting(2e-3, 0.1),
        "gradual pruning": Setting(0.1, 5e-4, 3e-4),
        "gradual pruning, Adam": Setting(5e-3, 0.0, 1e-4),
        "RigL": Setting(0.2, 5e-4),
        "SET": Setting(0.2, 5e-4),
    },
    "lenet5": {
        "SGD": Setting(0.03),
        "Adam": Setting(2e-3),
        "gradual pruning": Setting(0.03),
        "gradual pruning, Adam": Setting(2e-3),
        "RigL": Setting(0.03),
        "SET": Setting(0.03),
    },
}
"""the settings of the baselines in the comparison: of lenet300 the best of --preset tune at 1 %,
with two seeds"""

_PUBLISHED: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = {
    "lenet300": {
        "Han et al. 2015": [(8.3, 1.6)],
        "DNS 2016": [(1.8, 2.0)],
        "SWS 2017": [(4.4, 1.9)],
        "Sparse VD 2017": [(1.47, 1.92)],
        "L-OBS 2017": [(1.5, 2.0)],
        "LC 2018": [(1.0, 3.2)],
        "SNIP 2019": [(5.0, 1.6), (2.0, 2.4)],
        "DST 2020": [(2.48, 2.31)],
    },
    "lenet5": {
        "Han et al. 2015": [(8.3, 0.8)],
        "DNS 2016": [(0.9, 0.9)],
        "SWS 2017": [(0.5, 1.0)],
        "Sparse VD 2017": [(0.36, 0.75)],
        "L-OBS 2017": [(1.0, 2.1)],
        "LC 2018": [(1.0, 1.1)],
        "SNIP 2019": [(2.0, 0.8), (1.0, 1.1)],
        "DST 2020": [(1.64, 0.89)],
    },
}
"""Remaining weights and test error, both in %. Sparse variational dropout is as in its own paper
(arXiv 1701.05369), dynamic sparse training as in its own (2005.06870, means of five), all others as
in table 1 of SNIP (1810.02340)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeNet(ExperimentOnNetworks):
    """LeNet-300-100 or LeNet-5 (Caffe's) on MNIST, as many papers on sparse networks train them.

    A density is a share of the weights of all layers: 266,200, or 430,500 of LeNet-5. Biases are
    not counted and never pruned. --preset compare trains on all 60,000 images AdaBreg and LinBreg
    as the library has them, and the baselines with settings that were chosen by --preset tune. This
    trains on 55,000 images, at one of the --densities, every setting in a grid, and names those
    that are best on the other 5,000.
    """

    name: ClassVar[str] = "lenet"
    networks: ClassVar[Mapping[str, Network]] = _NETWORKS

    network: Literal["lenet300", "lenet5"] = "lenet300"
    """The multilayer perceptron 784-300-100-10, or two convolutions and two dense layers."""
    preset: Literal["compare", "tune"] = "compare"
    """The comparison, or the search for the baselines' settings."""
    densities: tuple[float, ...] = (0.1, 0.05, 0.02, 0.0167, 0.01, 0.005, 0.0036, 0.002)
    """Shares of all weights that remain."""
    epochs: int = 20
    seeds: int = 5

    @property
    def title(self) -> str:
        """The network, and whether it is tuned."""
        return f"{super().title}, tuning" if self.preset == "tune" else super().title

    @property
    def may_diverge(self) -> bool:
        """In the tuning a learning rate may be too large."""
        return self.preset == "tune"

    def methods(self) -> list[Recipe]:
        """What the preset compares."""
        methods.check_shares("--densities", self.densities)
        if self.preset == "tune":
            if len(self.densities) != 1:
                raise BenchmarkError(
                    "--preset tune is at one of --densities, got"
                    f" {' '.join(map(str, self.densities)) or 'none'}."
                )
            return list(self._grid(self.densities[0]))
        if self.select == "best" or self.patience is not None:
            raise BenchmarkError(
                "--preset compare trains on all images: neither --select best nor --patience can"
                " choose by validation images."
            )
        return list(self._compared())

    @property
    def _warmup(self) -> float:
        """The epochs over which the learning rate rises, except AdaBreg's."""
        return min(1.0, 0.1 * self.epochs)

    def _compared(self) -> Iterator[Recipe]:
        chosen = _CHOSEN[self.network]
        for name, baseline in _BASELINES.items():
            if baseline.dense:
                yield baseline.method(chosen[name], 1.0, self._warmup)
        for density in self.densities:
            yield ToDensity(density)
            yield methods.linbreg_to_density(density, self._warmup)
            for name, baseline in _BASELINES.items():
                if not baseline.dense:
                    yield baseline.method(chosen[name], density, self._warmup)

    def _grid(self, density: float) -> Iterator[Recipe]:
        for baseline in _BASELINES.values():
            for setting in baseline.grid():
                method = baseline.method(setting, density, self._warmup)
                yield dataclasses.replace(method, note=str(setting))
        for rate in _ADABREG_RATES:
            # The warm-up is that of `adabreg_to_density`.
            schedule = Cosine(rate, warmup_epochs=0.3 * self.epochs)
            yield ToDensity(density, learning_rate=schedule, note=str(Setting(rate)))
        for rate in _LINBREG_RATES:
            method = methods.linbreg_to_density(density, self._warmup, rate=rate)
            yield dataclasses.replace(method, note=str(Setting(rate)))

    def task(self, dataset: Dataset) -> Task:
        """All images for training, or 5,000 of them for validation."""
        tuning = self.preset == "tune"
        held_out = 5000 - len(dataset.validation)
        return super().task(dataset.hold_out(held_out) if tuning else dataset.all_for_training())

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """What the tuning chooses."""
        if self.preset == "tune":
            yield from results.best_of_families(runs)

    def draw(self, out: Path) -> None:
        """Test error over the remaining weights; of the tuning, which is no result, nothing."""
        if self.preset == "compare":
            figure = figures.error_and_weights(
                results.read_runs(out), self.title, _PUBLISHED[self.network]
            )
            figures.save(figure, out, "error_and_weights")
