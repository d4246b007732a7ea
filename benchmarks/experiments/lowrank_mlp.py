"""The multilayer perceptron with layers of low rank."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import optax

import bregjax
from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset
from benchmarks.engine.task import Task
from benchmarks.experiments.lowrank import LowRank, called
from benchmarks.experiments.mnist import mlp_task, mlp_title
from benchmarks.methods import Length, LowRankStart, Method, Recipe, SparseStart
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Cosine
from bregjax import l1, nuclear, per_neuron


@dataclasses.dataclass(frozen=True)
class _GrowingRank:
    """A schedule whose settings tell it from others, which checkpoints need."""

    initial: int
    every: int
    """steps, after which the rank is larger by one"""

    def __call__(self, count: Any) -> Any:
        return self.initial + count // self.every


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowrankMlp(LowRank):
    """Singular values that appear one by one: an MLP, 784-200-80-10, with the nuclear norm.

    LinBreg without momentum, with heavy-ball and with Nesterov momentum, and AdaBreg; a full and a
    truncated prox; ranks that are scheduled, chosen by energy or raised on a plateau; a strength
    that is halved on a plateau. AdaBreg with ℓ1 and with groups of neurons, and dense training are
    trained beside them. Each network is then split into thin layers of rank --rank at most, which
    Adam fine-tunes.
    """

    name: ClassVar[str] = "lowrank_mlp"
    hidden: tuple[int, ...] = (200, 80)
    """Widths of the hidden layers."""
    epochs: int = 12
    tuning: int = 10
    """Epochs of Adam on the thin layers."""

    @property
    def network(self) -> str:
        """See `LowRank`."""
        return mlp_title(self._sizes)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (784, *self.hidden, 10)

    def check(self) -> None:
        """See `Experiment`."""
        super().check()
        if min(self.hidden, default=1) < 1:
            raise BenchmarkError(
                f"--hidden must be positive widths, got {' '.join(map(str, self.hidden))}."
            )

    def methods(self) -> list[Recipe]:
        """Every way to a low rank, and what they are compared with."""
        start = LowRankStart(0.02)
        rate = Cosine(1.0, warmup_epochs=1)

        def linbreg(momentum: float | None, *, nesterov: bool = False) -> Method:
            truncated = everywhere(nuclear(method="warm"), 1.0)
            method = methods.linbreg(
                rate, truncated, start=start, momentum=momentum, nesterov=nesterov
            )
            return called(method, "nuclear")

        def adabreg(what: str, regularizer: bregjax.Regularizer, strength: float = 2.5) -> Method:
            penalty = everywhere(regularizer, strength)
            return called(methods.adabreg(Cosine(5e-3), penalty, start=start), what)

        warm = partial(nuclear, method="warm")
        sparse = SparseStart(0.01, gain=0.7)
        return [
            adabreg("nuclear", warm()),
            adabreg("nuclear, full", nuclear()),
            linbreg(None),
            linbreg(0.9),
            linbreg(0.9, nesterov=True),
            adabreg("nuclear, rank scheduled", warm(rank=_GrowingRank(2, 100))),
            adabreg("nuclear, 99 % energy", warm(energy=0.99)),
            self._on_plateau(adabreg("nuclear, rank on plateau", warm()), grow=True),
            self._on_plateau(adabreg("nuclear, λ on plateau", warm(), 10.0), grow=False),
            called(methods.adabreg(Cosine(5e-3), everywhere(l1(), 0.5), start=sparse), "ℓ1"),
            called(
                methods.adabreg(Cosine(5e-3), everywhere(per_neuron(), 0.05), start=sparse),
                "neurons",
            ),
            methods.sgd(Cosine(0.05, warmup_epochs=1), momentum=0.9),
        ]

    def _on_plateau(self, method: Method, *, grow: bool) -> Method:
        """The method with a rank that doubles, or a strength that is halved, on a plateau."""

        def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
            plateau = optax.contrib.reduce_on_plateau(
                0.5, patience=1, rtol=0.02, accumulation_size=length.steps_per_epoch
            )
            inner = method.make(rate, length)
            if grow:
                return bregjax.grow_rank_on_plateau(inner, 3, plateau, watch="validation_loss")
            return bregjax.relax_on_plateau(inner, plateau, watch="validation_loss")

        return dataclasses.replace(method, make=make)

    def task(self, dataset: Dataset) -> Task:
        """See `mlp_task`."""
        return mlp_task(dataset, self._sizes)
