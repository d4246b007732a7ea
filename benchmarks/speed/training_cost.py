"""The time of a whole training step, by optimizer, and the share of the peak that it reaches."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import data, methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.options import check_counts
from benchmarks.data.batches import epoch_orders
from benchmarks.engine import devices
from benchmarks.engine.programs import Programs
from benchmarks.engine.task import Task
from benchmarks.experiments.cifar_resnet import CifarResNet
from benchmarks.experiments.fashion_convnet import convnet_task
from benchmarks.experiments.mnist import mlp_task
from benchmarks.measure.multiply_adds import network_costs
from benchmarks.measure.timing import time_in_turn
from benchmarks.methods import LowRankStart, Method, SparseStart
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Constant
from benchmarks.report import results
from benchmarks.speed.command import Comparison, SpeedCommand, table
from bregjax import l1, nuclear, per_filter

_PEAK = "peak"
Named = tuple[str, Method]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCost(SpeedCommand):
    """The time of a training step, from the images to the new weights, by optimizer.

    It is the step of the experiments: real images, augmentation, gradient, optimizer, many steps in
    one program. LinBreg is compared with SGD with momentum, AdaBreg with Adam, and groups and the
    nuclear norm with ℓ1. All are timed in turn, in random order, many times; the table reports
    medians. The peak is the speed of a large product of matrices in the same run. The share of the
    peak counts the network's multiply-adds, forward and backward; zeros count too, because they are
    not skipped.
    """

    name: ClassVar[str] = "training_cost"

    network: Literal["mlp", "convnet", "resnet20", "resnet18"] = "mlp"
    """MNIST, Fashion-MNIST or CIFAR-10."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the residual networks' computation; parameters and duals are float32."""
    batch_size: int = 128
    """Images in a batch."""
    steps: int = 20
    """Training steps that are timed together."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    quick: bool = False
    """A trial: two steps, three repeats."""

    def run(self) -> None:
        """Time everything, print the table, write summary.json."""
        check_counts(self, "batch_size", "steps", "repeats")
        if self.precision != "float32" and not self.network.startswith("resnet"):
            raise BenchmarkError(
                f"--precision {self.precision} is for the residual networks, not {self.network}."
            )
        out = self.folder()
        task = self._task()
        steps = 2 if self.quick else self.steps
        if task.steps < steps:
            raise BenchmarkError(
                f"--steps {steps} of --batch-size {self.batch_size} are more than an epoch, which"
                f" has {task.steps}."
            )
        rng = np.random.default_rng(self.seed)
        pairs = self.chosen(_comparisons())
        trained = dict(entry for step, baseline in pairs for entry in (baseline, step))
        calls = {
            name: _training(task, method, steps, self.seed) for name, method in trained.items()
        }
        seconds = time_in_turn(calls | {_PEAK: self._product()}, self.rounds, rng)
        flops = _flops(task)
        peak = 2 * self._size**3 / float(np.median(seconds.pop(_PEAK)))
        peak *= devices.mesh(1, self.batch_size).size  # the product runs on one device
        rows = []
        against = {name: baseline for (name, _), (baseline, _) in pairs}
        for name, times in seconds.items():
            step = float(np.median(times)) / steps
            baseline = against.get(name)
            ratio = None if baseline is None else float(np.median(times / seconds[baseline]))
            rows.append(
                {
                    "network": self.network,
                    "precision": self.precision,
                    "batch_size": self.batch_size,
                    "method": name,
                    "baseline": baseline,
                    "ratio": ratio,
                    "milliseconds": 1e3 * step,
                    "seconds_per_epoch": step * task.steps,
                    "peak_share": flops / step / peak,
                    "peak_tflops": peak / 1e12,
                    "steps": steps,
                    "repeats": self.rounds,
                }
            )
        shown = table(
            rows,
            ("step", "{method}"),
            ("against", "{baseline}"),
            ("ratio", "{ratio:.3f}"),
            ("ms", "{milliseconds:.3g}"),
            ("s/epoch", "{seconds_per_epoch:.3g}"),
            ("of the peak", "{peak_share:.1%}"),
            title=f"one training step, {self.network}, batch {self.batch_size}, {self.precision}",
            caption=f"{results.device()}; peak: {peak / 1e12:.3g} Tflop/s, a product of"
            f" {self._size}² matrices",
        )
        self.report(out, rows, shown)

    def _task(self) -> Task:
        if self.network == "mlp":
            task = mlp_task(data.load("mnist", self.data_dir))
        elif self.network == "convnet":
            task = convnet_task(data.load("fashion_mnist", self.data_dir))
        else:
            experiment = CifarResNet(network=self.network, precision=self.precision)
            task = experiment.task(data.load(experiment.dataset, self.data_dir))
        return dataclasses.replace(task, batch_size=self.batch_size)

    @property
    def _size(self) -> int:
        """Rows and columns of the matrices whose product gives the peak."""
        return 2048 if jax.default_backend() == "cpu" else 8192

    def _product(self) -> Callable[[], jax.Array]:
        key = jax.random.key(self.seed)
        x = jax.random.normal(key, (self._size, self._size), self.precision)
        product = jax.jit(jnp.matmul)
        return lambda: product(x, x)


def _comparisons() -> list[Comparison]:
    sparse, low = SparseStart(0.01), LowRankStart(0.05)
    sgd = "SGD+m", methods.sgd(Constant(0.05), momentum=0.9)
    adam = "Adam", methods.adam(Constant(1e-3))

    def linbreg(name: str, penalty: Any, start: Any) -> Named:
        method = methods.linbreg(Constant(0.1), everywhere(*penalty), start=start, momentum=0.9)
        return f"LinBreg+m, {name}", method

    def adabreg(name: str, penalty: Any, start: Any) -> Named:
        return f"AdaBreg, {name}", methods.adabreg(
            Constant(1e-3), everywhere(*penalty), start=start
        )

    pairs = []
    for make, dense, strengths in (
        (linbreg, sgd, (0.1, 0.02, 0.5)),
        (adabreg, adam, (0.3, 0.1, 3.0)),
    ):
        entries, filters, spectrum = strengths
        plain = make("ℓ1", (l1(), entries), sparse)
        pairs += [
            (plain, dense),
            (make("filters", (per_filter(), filters), sparse), plain),
            (make("nuclear", (nuclear(method="warm"), spectrum), low), plain),
        ]
    return pairs


def _training(task: Task, method: Method, steps: int, seed: int) -> Callable[[], jax.Array]:
    """A function that trains on the first ``steps`` batches of an epoch each time it is called."""
    programs = Programs(task, lambda _: method.optimizer(1, task.steps), method.start, 1)
    keys = jax.random.key(seed)[None]
    state = programs.initialize(keys, ())
    train = task.dataset.train
    piece = epoch_orders(keys, len(train), task.batch_size)[:, :steps]
    data = devices.place((train.inputs, train.targets), programs.mesh)

    def advance() -> jax.Array:
        nonlocal state
        state, finished = programs.advance(state, piece, keys, 0, data)
        return finished

    return advance


def _flops(task: Task) -> int:
    """Floating-point operations of a dense training step: two for each multiply-add."""
    costs = network_costs(task.shapes(), task.dataset).values()
    return 2 * task.batch_size * sum(c.multiply_adds * (2 if c.first else 3) for c in costs)
