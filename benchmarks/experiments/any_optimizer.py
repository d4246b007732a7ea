"""`to_density` behind many of Optax's optimizers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import optax
from optax import contrib

import bregjax
from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.lengths import ExperimentOnLengths
from benchmarks.experiments.networks import FIRST_NETWORKS, NETWORKS, Network
from benchmarks.methods import Method, Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results

Optimizer = Literal["adam", "adamw", "sgd", "nadam", "lion", "muon", "adafactor", "schedule_free"]


@dataclasses.dataclass(frozen=True)
class Front:
    """An optimizer that stands in front of `to_density`."""

    title: str
    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    rates: tuple[float, ...]
    """largest learning rates that are tried, rising"""

    def method(self, rate: float, warmup_epochs: float) -> Method:
        """The optimizer on the dense network."""
        schedule = Cosine(rate, warmup_epochs=warmup_epochs)
        return Method(self.title, schedule, lambda rate, _: self.make(rate))


_ADAPTIVE = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
FRONTS: Mapping[Optimizer, Front] = {
    "adam": Front("Adam", optax.adam, _ADAPTIVE),
    "adamw": Front(
        "AdamW",
        lambda rate: optax.adamw(rate, weight_decay=0.1, mask=bregjax.weight_mask),
        _ADAPTIVE,
    ),
    "sgd": Front("SGD+m", lambda rate: optax.sgd(rate, momentum=0.9), (0.01, 0.03, 0.1, 0.3)),
    "nadam": Front("Nadam", optax.nadam, _ADAPTIVE),
    "lion": Front("Lion", optax.lion, (3e-5, 1e-4, 3e-4, 1e-3)),
    "muon": Front("Muon", contrib.muon, (1e-3, 3e-3, 1e-2, 3e-2)),
    "adafactor": Front("Adafactor", optax.adafactor, (3e-3, 1e-2, 3e-2, 0.1)),
    "schedule_free": Front(
        "schedule-free AdamW",
        lambda rate: contrib.schedule_free(
            optax.adamw(rate, b1=0.0, mask=bregjax.weight_mask), rate, b1=0.9
        ),
        _ADAPTIVE,
    ),
}

CHOSEN: Mapping[str, Mapping[Optimizer, float]] = {
    "digits": {
        "adam": 1e-2,
        "adamw": 5e-3,
        "sgd": 0.1,
        "nadam": 2e-3,
        "lion": 3e-4,
        "muon": 3e-3,
        "adafactor": 1e-2,
        "schedule_free": 1e-2,
    },
}
"""the best rates of the dense networks after 1,000 steps, by the validation loss"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyOptimizer(ExperimentOnLengths):
    """`to_density` behind many optimizers, beside each on the dense network and pruning around it.

    --preset tune trains the dense network with every rate of a grid and names the best on the
    validation data; --preset compare trains the dense network, `to_density` and gradual magnitude
    pruning with this rate, --rates, in the order of --optimizers.
    """

    name: ClassVar[str] = "any_optimizer"
    networks: ClassVar[Mapping[str, Network]] = {
        "digits": FIRST_NETWORKS["mlp"],
        "batchnorm": FIRST_NETWORKS["batchnorm"],
        "transformer": FIRST_NETWORKS["transformer"],
        "resnet20": NETWORKS["resnet20"],
    }

    network: Literal["digits", "batchnorm", "transformer", "resnet20"] = "digits"
    """scikit-learn's digits, Fashion-MNIST, the texts of Python's help, or CIFAR-10."""
    preset: Literal["compare", "tune"] = "compare"
    """The comparison, or the search for the dense optimizers' rates."""
    optimizers: tuple[Optimizer, ...] = get_args(Optimizer)
    """Which optimizers stand in front."""
    rates: tuple[float, ...] | None = None
    """Largest learning rates of the --optimizers in their order; by default those that were
    chosen."""
    densities: tuple[float, ...] = (0.1, 0.05)
    """Shares of the weights that live in the end; of the transformer those of the kernels."""
    steps: tuple[int, ...] = (1000,)
    seeds: int = 3

    def methods(self) -> list[Recipe]:
        """What the preset compares."""
        methods.check_shares("--densities", self.densities)
        if self.rates is not None and (
            self.preset == "tune" or len(self.rates) != len(self.optimizers)
        ):
            raise BenchmarkError(
                "--rates are for --preset compare, one for each of --optimizers, got"
                f" {len(self.rates)} for {len(self.optimizers)} with --preset {self.preset}."
            )
        for rate in self.rates or ():
            methods.check_rate("--rates", rate)
        return list(self._grid() if self.preset == "tune" else self._compared())

    @property
    def may_diverge(self) -> bool:
        """In the tuning a learning rate may be too large."""
        return self.preset == "tune"

    @property
    def title(self) -> str:
        """The network, and whether it is tuned."""
        return f"{super().title}, tuning" if self.preset == "tune" else super().title

    @property
    def _warmup(self) -> float:
        return 0.1 * self.epochs

    def _grid(self) -> Iterator[Recipe]:
        for name in self.optimizers:
            for rate in FRONTS[name].rates:
                method = FRONTS[name].method(rate, self._warmup)
                yield dataclasses.replace(method, note=f"rate {rate:g}")

    def _compared(self) -> Iterator[Recipe]:
        mask = self.networks[self.network].mask
        for name, rate in zip(self.optimizers, self.rates or self._chosen(), strict=True):
            method = FRONTS[name].method(rate, self._warmup)
            yield method
            for density in self.densities:
                family = f"{method.family}, to_density"
                yield ToDensity(density, dataclasses.replace(method, family=family), mask=mask)
                family = f"{method.family}, pruning"
                pruned = methods.pruned(dataclasses.replace(method, family=family), density)
                yield methods.masked(pruned, method, mask)

    def _chosen(self) -> tuple[float, ...]:
        if self.network not in CHOSEN:
            raise BenchmarkError(
                f"no rates have been chosen for --network {self.network} yet: find them by --preset"
                " tune, and give them as --rates in the order of --optimizers."
            )
        return tuple(CHOSEN[self.network][name] for name in self.optimizers)

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """What the tuning chooses."""
        if self.preset == "tune":
            yield from results.best_of_families(runs, by_loss=True)

    def draw(self, out: Path) -> None:
        """The quality at each density, behind each optimizer; of the tuning nothing."""
        if self.preset == "compare":
            figure = figures.of_optimizers(results.read_runs(out), self.title)
            figures.save(figure, out, self.name)
