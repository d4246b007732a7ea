"""What the two experiments about low rank share."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bregjax
from benchmarks.cli.options import check_counts
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result, network_of
from benchmarks.experiments.experiment import Experiment, kernels_of
from benchmarks.experiments.trainer import Trainer
from benchmarks.measure.multiply_adds import network_costs
from benchmarks.measure.timing import forward_pass, speedup, time_in_turn
from benchmarks.methods import Method, Recipe
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results
from bregjax._regularizers._matrices import fold

_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_TIMED = 500  # images in a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Experiment):
    """Train, split each layer into two thin ones, fine-tune those, and measure the gain."""

    network: ClassVar[str]
    """the name of the network in titles"""

    images_of: Literal["mnist", "fashion_mnist"] = "fashion_mnist"
    """The images."""
    seeds: int = 1
    rank: int = 12
    """The largest rank of a layer after it has been split."""
    tuning: int = 3
    """Epochs of Adam on the thin layers."""

    @property
    def title(self) -> str:
        """The heading of table and figures."""
        return f"{_TITLES[self.images_of]}, {self.network}"

    @property
    def dataset(self) -> str:
        """The images."""
        return self.images_of

    def check(self) -> None:
        """See `Experiment`."""
        super().check()
        check_counts(self, "rank", "tuning")

    def cases(self) -> Iterator[tuple[str, Task, Recipe]]:
        """See `Experiment`; the settings also say what is done after the training."""
        told = {"network": self.network, "rank": self.rank, "tuning_epochs": self.tuning}
        for name, task, method in super().cases():
            yield name, dataclasses.replace(task, settings=task.settings | told), method

    def snapshot(self, params: Any) -> dict[str, np.ndarray]:
        """The singular values of each kernel, of the first seed."""
        return {
            name: np.asarray(jnp.linalg.svd(fold(x[0])[0], compute_uv=False))
            for name, x in kernels_of(params).items()
        }

    def findings(
        self, task: Task, method: Recipe, result: Result, trainer: Trainer
    ) -> list[dict[str, Any]]:
        """The ranks of each network, and its accuracy, size and speed in thin layers."""
        found = []
        for index in range(len(result.test_loss)):
            kernels = kernels_of(result.params)
            ranks = {name: int(bregjax.effective_rank(x[index])) for name, x in kernels.items()}
            name = f"{method.name}, thin layers of network {index}"
            network = network_of(task, result, index)
            found.append({"ranks": ranks} | self._shrunk(task, network, name, trainer))
        return found

    def _shrunk(
        self, task: Task, network: nnx.Module, name: str, trainer: Trainer
    ) -> dict[str, Any]:
        smaller = bregjax.factorize(network, rank=self.rank)
        epochs = 1 if self.quick else self.tuning
        tuned = trainer.train(
            name,
            dataclasses.replace(task, build=lambda rngs: nnx.clone(smaller)),
            Cosine(1e-3).build(optax.adam, epochs, task.steps),
            {"tuning_epochs": epochs},
            seeds=[self.seed],
            epochs=epochs,
        )
        before, after = (
            sum(cost.multiply_adds for cost in network_costs(net, task.dataset).values())
            for net in (network, smaller)
        )
        inputs = task.dataset.normalize(jnp.asarray(task.dataset.test.inputs[:_TIMED]))
        calls = {"before": forward_pass(network, inputs), "after": forward_pass(smaller, inputs)}
        seconds = time_in_turn(calls, 3 if self.quick else 30, np.random.default_rng(0))
        return {
            "factorized_accuracy": float(tuned.test_accuracy[0]),
            "factorized_multiply_adds": after / before,
            "factorized_speedup": speedup(seconds, "after", "before")["speedup"],
        }

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """The ranks, and the accuracy, size and speed of the thin layers."""
        for method, group in results.by_method(runs).items():
            found = group[0].findings
            network = method if len(group) == 1 else f"{method}, seed {group[0].seed}"
            yield (
                f"{network}: ranks {', '.join(map(str, found['ranks'].values()))}; in thin layers"
                f" {100 * found['factorized_accuracy']:.2f} % with"
                f" {100 * found['factorized_multiply_adds']:.1f} % of the multiply-adds,"
                f" {found['factorized_speedup']:.2f} times as fast."
            )

    def draw(self, out: Path) -> None:
        """The learning curves, and how the singular values of the first nuclear run appeared."""
        super().draw(out)
        runs = results.read_runs(out)
        # The nuclear norm alone starts from a low rank.
        nuclear = [run.method for run in runs if "initial_rank" in run.settings]
        if nuclear:
            snapshots = results.read_snapshots(out)
            spectra = {layer: methods[nuclear[0]] for layer, methods in snapshots.items()}
            figure = figures.singular_values(spectra, f"{self.title}, {nuclear[0]}")
            figures.save(figure, out, "singular_values")


def called(method: Method, what: str) -> Method:
    """The method with its regularizer in the name: ``AdaBreg nuclear λ=1``."""
    return dataclasses.replace(method, family=f"{method.family} {what}")
