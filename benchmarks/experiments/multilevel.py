"""Multilevel training: mostly on the support, with a fraction of the multiply-adds."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from benchmarks import methods
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result
from benchmarks.experiments.experiment import kernels_of
from benchmarks.experiments.mnist import MnistExperiment
from benchmarks.experiments.trainer import Trainer
from benchmarks.measure.multiply_adds import network_costs, training_share
from benchmarks.methods import Method, Recipe, SparseStart, Targeted
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results
from bregjax import l1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multilevel(MnistExperiment):
    """How many multiply-adds does a training need? MNIST, MLP 784-200-80-10.

    LinBreg and AdaBreg with up to 99 coarse steps after each full one (Lunk, Scott, Bungert,
    arXiv 2602.03535), at a given strength and steered to a given density, beside dense SGD,
    pruning, SET and RigL. The count covers the forward pass and both parts of the backward pass,
    layer by layer, for the weights that are live at the time.
    """

    name: ClassVar[str] = "multilevel"

    seeds: int = 3
    density: float = 0.05
    """Share of the weights that pruning, SET and RigL leave."""

    def methods(self) -> list[Recipe]:
        """Ours with ever fewer full steps, and the baselines."""
        methods.check_shares("--density", [self.density])
        start = SparseStart(0.01, gain=0.7)

        def linbreg(strength: float) -> Method:
            rate = Cosine(1.0, warmup_epochs=1)
            return methods.linbreg(rate, everywhere(l1(), strength), start=start, momentum=0.9)

        def adabreg(strength: float) -> Method:
            return methods.adabreg(Cosine(5e-3), everywhere(l1(), strength), start=start)

        def steered(m: int, density: float) -> Targeted:
            return Targeted(methods.multilevel(adabreg(0.01), m), density, 2 * density)

        sgd = Cosine(0.05, warmup_epochs=1)
        return [
            methods.sgd(sgd, momentum=0.9),
            linbreg(0.2),
            methods.multilevel(linbreg(0.02), 99),
            adabreg(1.2),
            methods.multilevel(adabreg(0.25), 19),
            steered(19, 0.05),
            steered(19, 0.02),
            steered(99, 0.05),
            *methods.sparse_baselines(sgd, self.density, momentum=0.9),
        ]

    def snapshot(self, params: Any) -> dict[str, np.ndarray]:
        """The density of each kernel, by seed."""
        return {
            name: np.asarray(jnp.mean(x != 0, axis=tuple(range(1, x.ndim))))
            for name, x in kernels_of(params).items()
        }

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The multiply-adds."""
        del trainer
        assert isinstance(method, (Method, Targeted))
        costs = network_costs(task.shapes(), task.dataset)
        epochs = range(len(result.curve.nonzero))
        return [
            {
                "multiply_adds": training_share(
                    costs,
                    {
                        name: [result.snapshots[name.replace("/", ".")][e][seed] for e in epochs]
                        for name in costs
                    },
                    method.full_gradients,
                )
            }
            for seed in range(len(result.test_loss))
        ]

    def draw(self, out: Path) -> None:
        """Accuracy over multiply-adds, and the learning curves."""
        runs = results.read_runs(out)
        figures.save(figures.accuracy_and_cost(runs, self.title), out, "accuracy_and_cost")
        super().draw(out)
