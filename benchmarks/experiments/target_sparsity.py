"""Given sparsities on three networks, beside pruning and RigL."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from benchmarks import methods
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result
from benchmarks.experiments.networks import ExperimentOnNetworks
from benchmarks.experiments.trainer import Trainer
from benchmarks.methods import Recipe, Targeted, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSparsity(ExperimentOnNetworks):
    """Ask for a sparsity and get it: LinBreg and AdaBreg, from a dense and from a sparse start.

    One setting fits every target. From a dense start the number of live weights is exactly on a
    ramp at each step. From a sparse start the strength is steered near the target, a landing makes
    the number exact, and Adam fine-tunes those weights. Gradual magnitude pruning and RigL are
    trained beside them, with the same number of weights and epochs.
    """

    name: ClassVar[str] = "target_sparsity"

    network: Literal["mlp", "convnet", "resnet20"] = "mlp"
    """MNIST, Fashion-MNIST or CIFAR-10; without a GPU convolutions take long."""
    sparsities: tuple[float, ...] = (0.75, 0.9, 0.95, 0.98, 0.99)
    """The wanted shares of zeros among all weights."""
    epochs: int = 20
    seeds: int = 3

    def methods(self) -> list[Recipe]:
        """Ours and the baselines at every target."""
        methods.check_shares("--sparsities", self.sparsities)
        warmup = min(1.0, 0.1 * self.epochs)
        adabreg, linbreg = methods.steerable()
        rate = self.networks[self.network].sgd_rate
        assert rate is not None
        sgd = Cosine(rate, warmup_epochs=warmup)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        return [
            method
            for density in densities
            for method in (
                ToDensity(density),
                methods.linbreg_to_density(density, warmup),
                Targeted(adabreg, density),
                Targeted(linbreg, density),
                methods.gradual_pruning(sgd, density, momentum=0.9),
                methods.rigl(sgd, density, momentum=0.9),
            )
        ]

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The density to which steering led, before the landing made it exact."""
        if not isinstance(method, Targeted):
            return super().findings(task, method, result, trainer)
        densities = result.curve.density
        steered = densities[method.steered_epochs(len(densities) - 1)]
        return [{"steered_density": float(density)} for density in steered]

    def draw(self, out: Path) -> None:
        """Accuracy over sparsity, and how the steering went."""
        runs, rows = results.read_runs(out), results.read_rows(out)
        figures.save(figures.accuracy_at_targets(runs, self.title), out, "accuracy_at_targets")
        landed = {run.method for run in runs if "steered_density" in run.findings}
        rows = [row for row in rows if row["method"] in landed]
        if rows:
            figures.save(figures.steering(runs, rows, self.title), out, "steering")
