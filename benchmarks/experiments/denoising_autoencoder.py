"""Autoencoders that find their own bottleneck while they learn to denoise and to deblur."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import data, methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.progress import console
from benchmarks.engine.objectives import reconstruction
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.methods import Method, SparseStart
from benchmarks.methods.regularization import Penalty, Regularization, Rising
from benchmarks.methods.schedules import Cosine, Plateau
from benchmarks.models import Autoencoder
from benchmarks.report import figures, results
from bregjax import l1, label_by_path, per_neuron

_CORRUPTIONS = {"denoise": "mnist_noisy", "deblur": "mnist_blurred"}
_SHOWN = 8  # test images in the figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoder(Experiment):
    """Six layers of 784 neurons on corrupted MNIST: which neurons and skips are worth having?

    Every layer may use all 784 neurons and starts with eight. AdaBreg with whole neurons as groups
    adds those that the task needs, while λ rises over the first 60 % of the training. There are
    four cases: noisy and blurred images, without and with trainable skip connections, as in Bungert
    et al., arXiv 2106.02479.
    """

    name: ClassVar[str] = "denoising_autoencoder"
    title: ClassVar[str] = "Corrupted MNIST, autoencoder of six 784-wide layers"

    epochs: int = 10
    seeds: int = 1
    strength: float = 0.07
    """λ of the neurons in the end; the λ of a skip connection is √784 times as large."""
    published: bool = False
    """The published schedule: learning rate 1e-3, halved on a plateau, and a constant strength."""

    def cases(self) -> Iterator[tuple[str, Task, Method]]:
        """Noisy and blurred images, without and with skip connections."""
        if not 0 <= self.strength < math.inf:
            raise BenchmarkError(f"--strength must be a number of at least 0, got {self.strength}.")
        for verb, name in _CORRUPTIONS.items():
            dataset = data.load(name, self.data_dir)
            for skips in (False, True):
                case = f"{verb}, {'skips' if skips else 'no skips'}"
                yield case, _task(dataset, skips), self._method(skips)

    def _method(self, skips: bool) -> Method:
        rate = Plateau(1e-3) if self.published else Cosine(3e-3)
        strength = self.strength if self.published else Rising(self.strength / 7, self.strength)
        penalties = {"neurons": Penalty(per_neuron(), strength)}
        rules = {"*linear/kernel": "neurons"}
        if skips:
            penalties["skips"] = Penalty(l1(), 28 * self.strength)
            rules["*skips"] = "skips"
        regularization = Regularization(penalties, label_by_path(rules, default="plain"))
        start = SparseStart(0.01, gain=0.5, groups={"dense": per_neuron()})
        return methods.adabreg(rate, regularization, start=start)

    def snapshot(self, params: Any) -> dict[str, np.ndarray]:
        """Live neurons (seeds, layers), and the skips (seeds, ·), first layer first."""
        blocks = [params["blocks"][k] for k in range(len(params["blocks"]))]
        kernels = [jnp.asarray(block["linear"]["kernel"][...]) for block in blocks]
        live = [jnp.any(kernel != 0, axis=1).sum(axis=1) for kernel in kernels]
        kept = {"neurons": np.stack(live, axis=1)}
        if "skips" in blocks[0]:
            skips = [np.asarray(block["skips"][...]) for block in blocks]
            kept["skips"] = np.concatenate(skips, axis=1)
        return kept

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """Some corrupted test images, what the network makes of them, and the clean ones."""
        test = task.dataset.test
        inputs = jnp.asarray(test.inputs[:_SHOWN])
        restored = network(task.dataset.normalize(inputs))  # pyright: ignore[reportCallIssue]
        return {
            "input": np.asarray(inputs, np.float16),
            "output": np.asarray(restored, np.float16),
            "target": np.asarray(test.targets[:_SHOWN], np.float16),
        }

    def draw(self, out: Path) -> None:
        """The losses, the architectures that emerged, and restored images."""
        super().draw(out)
        snapshots = results.read_snapshots(out)
        neurons, skips = snapshots["neurons"], snapshots.get("skips", {})
        figures.save(figures.architectures(neurons, skips, self.title), out, "architectures")
        figures.save(figures.restored_images(results.read_exhibits(out)), out, "restored_images")
        for run in results.read_runs(out):
            own = run.settings["input_loss"]
            console.print(
                f"{run.method}, seed {run.seed}: error {run.test_loss:.5f}, the input's own"
                f" {own:.5f} ({run.test_loss / own:.2f} ×)",
                soft_wrap=True,
            )


def _task(dataset: data.Dataset, skips: bool) -> Task:
    own, _ = jax.device_get(reconstruction(*map(jnp.asarray, vars(dataset.test).values())))
    return Task(
        dataset,
        lambda rngs: Autoencoder(skips=skips, rngs=rngs),
        objective=reconstruction,
        settings={"skips": skips, "input_loss": float(np.mean(own))},
    )
