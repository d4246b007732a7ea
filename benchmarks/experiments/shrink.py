"""Train until whole units die, remove them, and measure what is left."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

import bregjax
from benchmarks import methods
from benchmarks.cli.options import check_counts
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result, evaluate, network_of
from benchmarks.experiments.networks import ExperimentOnNetworks
from benchmarks.experiments.trainer import Trainer
from benchmarks.experiments.units import GROUPS, NORMALIZED
from benchmarks.measure.timing import forward_pass, speedup, time_in_turn
from benchmarks.methods import Recipe, ToDensity
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results

_TIMED = {"mlp": 500, "convnet": 100, "resnet20": 100, "transformer": 16}
"""examples in a batch that is timed"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrink(ExperimentOnNetworks):
    """Networks whose neurons, filters or heads die in training, before and after they are shrunk.

    `adabreg_to_density` is told which share of the weights of these units lives in the end.
    `bregjax.shrink` removes the dead units, the smaller network is tested again, and both networks
    are timed in turn. Adam on the dense network is trained beside them.
    """

    name: ClassVar[str] = "shrink"

    network: Literal["mlp", "convnet", "resnet20", "transformer"] = "mlp"
    """Neurons on MNIST, filters and neurons on Fashion-MNIST, channels within the blocks on
    CIFAR-10, heads and neurons on the texts of Python's help."""
    densities: tuple[float, ...] = (0.5, 0.25, 0.1)
    """The wanted shares of live weights, among those of such units, at the end."""
    epochs: int = 5
    seeds: int = 1
    repeats: int = 30
    """How often each network is timed."""

    def methods(self) -> list[Recipe]:
        """Dense Adam, and ours at every density."""
        methods.check_shares("--densities", self.densities)
        check_counts(self, "repeats")
        ours = functools.partial(
            ToDensity,
            groups=GROUPS[self.network],
            keep_weights=True if self.network in NORMALIZED else None,
        )
        return [methods.adam(Cosine(2e-3)), *map(ours, self.densities)]

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """What is left of each network, and how good and how fast that is."""
        del method, trainer
        return [
            self._shrunk(task, network_of(task, result, index))
            for index in range(len(result.test_loss))
        ]

    def _shrunk(self, task: Task, network: nnx.Module) -> dict[str, Any]:
        examples = task.dataset.test.inputs[: _TIMED[self.network]]
        inputs = task.dataset.normalize(jnp.asarray(examples))
        smaller, report, _ = bregjax.shrink(network, inputs[:2])
        loss, accuracy = evaluate(task, smaller)
        calls = {"dense": forward_pass(network, inputs), "shrunk": forward_pass(smaller, inputs)}
        seconds = time_in_turn(calls, 3 if self.quick else self.repeats, np.random.default_rng(0))
        return {
            "shrunk_loss": loss,
            "shrunk_accuracy": None if math.isnan(accuracy) else accuracy,
            "parameters": report.parameters[1] / report.parameters[0],
            "multiply_adds": report.multiply_adds[1] / report.multiply_adds[0],
            "bytes": report.bytes[1] / report.bytes[0],
        } | speedup(seconds, "shrunk", "dense")

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """The loss, the size and the speed of the smaller networks."""
        for method, group in results.by_method(runs).items():
            found = group[0].findings
            before, after = group[0].test_loss, found["shrunk_loss"]
            low, high = found["speedup_quartiles"]
            network = method if len(group) == 1 else f"{method}, seed {group[0].seed}"
            yield (
                f"{network}: test loss {before:.6f}, shrunk {after:.6f}, with"
                f" {found['parameters']:.1%} of the parameters, {found['multiply_adds']:.1%} of the"
                f" multiply-adds and {found['bytes']:.1%} of the bytes, {found['speedup']:.2f}"
                f" ({low:.2f} … {high:.2f}) times as fast."
            )

    def draw(self, out: Path) -> None:
        """The quality of the networks over their size and their speed."""
        figure = figures.quality_and_speed(results.read_runs(out), self.title)
        figures.save(figure, out, "quality_and_speed")
