"""Training that becomes cheaper as units die: the network shrinks between epochs."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from benchmarks import methods
from benchmarks.engine.compaction import Compaction
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result
from benchmarks.experiments.networks import ExperimentOnNetworks
from benchmarks.experiments.trainer import Trainer
from benchmarks.experiments.units import GROUPS
from benchmarks.methods import Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results

_COMPACT = "compact"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compacted(ExperimentOnNetworks):
    """Whole neurons and filters die; between epochs the network goes on without them.

    AdaBreg with a group for each unit, with compaction and without, beside Adam on the dense
    network. All train for the same number of epochs, one seed after the other. What is compared is
    the time of the whole training, which includes compilation and the test.
    """

    name: ClassVar[str] = "compaction"
    seed_by_seed: ClassVar[bool] = True

    network: Literal["mlp", "convnet"] = "mlp"
    """The MLP on MNIST, or the ConvNet on Fashion-MNIST."""
    densities: tuple[float, ...] = (0.25, 0.1)
    """The wanted shares of live weights in the hidden layers at the end."""
    epochs: int = 30
    seeds: int = 3

    def methods(self) -> list[Recipe]:
        """Dense Adam, and ours at each density without and with compaction."""
        methods.check_shares("--densities", self.densities)
        return [
            methods.adam(Cosine(2e-3)),
            *(
                ToDensity(density, groups=GROUPS[self.network], note=note, initial_target=0.5)
                for density in self.densities
                for note in ("", _COMPACT)
            ),
        ]

    def compaction(self, method: Recipe) -> Compaction | None:
        """See `Experiment`."""
        return Compaction() if isinstance(method, ToDensity) and method.note == _COMPACT else None

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The time of the whole training, and how often its network shrank."""
        del task, method, trainer
        return [{"seconds": result.seconds, "compactions": result.compactions}]

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """The time, compared with that of dense training if that was done."""
        seconds = {
            name: np.mean([run.findings["seconds"] for run in group])
            for name, group in results.by_method(runs).items()
        }
        for name, mine in seconds.items():
            share = f", {mine / seconds['Adam']:.0%} of dense training" if "Adam" in seconds else ""
            yield f"{name}: {mine:.1f} s{share}."

    def draw(self, out: Path) -> None:
        """Accuracy over the time that the training took."""
        runs = results.read_runs(out)
        if any(run.method == "Adam" for run in runs):
            figures.save(figures.accuracy_and_time(runs, self.title), out, self.name)
