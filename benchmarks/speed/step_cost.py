"""The time of an optimizer's step, compared with that of its dense counterpart."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bregjax
from benchmarks.cli.options import check_counts
from benchmarks.measure.timing import time_in_turn
from benchmarks.report import results
from benchmarks.speed.command import Comparison, SpeedCommand, table

# The kernels of ResNet-18 for 32×32 images, and its final layer: 11.2 million weights.
_STAGES = ((64, 64), (64, 128), (128, 256), (256, 512))
_SHAPES = {
    "stem": (3, 3, 3, 64),
    **{
        f"stage{i}/conv{j}": (3, 3, before if j == 0 else after, after)
        for i, (before, after) in enumerate(_STAGES)
        for j in range(4)
    },
    **{f"stage{i}/shortcut": (1, 1, *pair) for i, pair in enumerate(_STAGES) if i},
    "head": (512, 10),
}


_ROUNDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost(SpeedCommand):
    """The time of one optimizer step on the 11.2 million weights of ResNet-18.

    Compares LinBreg with SGD with momentum, AdaBreg with Adam, every group regularizer with ℓ1, and
    exact steering, as `adabreg_to_density` does it, with a fixed strength; and whole trainings to a
    density with Adam. All are timed in turn, in random order, many times; the table reports medians
    and ratios, and the bytes for each weight that the state takes, and the compiled step at its
    peak, with weights and gradients.
    """

    name: ClassVar[str] = "step_cost"

    repeats: int = 100
    """How often each step is timed."""

    def run(self) -> None:
        """Time everything, print the table, write summary.json."""
        check_counts(self, "repeats")
        out = self.folder()
        pairs = self.chosen(_comparisons())
        optimizers = dict(pair for group in pairs for pair in group)
        seconds = _time_all(optimizers, self.seed, self.rounds)
        bytes_of = {name: _bytes_for_each_weight(tx) for name, tx in optimizers.items()}
        rows = [
            {
                "method": name,
                "baseline": baseline,
                "milliseconds": float(1e3 * np.median(seconds[name])),
                # Pair by pair: if the machine is slow for a while, it is slow for both.
                "ratio": float(np.median(seconds[name] / seconds[baseline])),
                "weights": _count(),
                "repeats": len(seconds[name]),
                "state_bytes": bytes_of[name][0],
                "peak_bytes": bytes_of[name][1],
            }
            for (name, _), (baseline, _) in pairs
        ]
        shown = table(
            rows,
            ("step", "{method}"),
            ("against", "{baseline}"),
            ("ms", "{milliseconds:.1f}"),
            ("ratio", "{ratio:.3f}"),
            ("state/B", "{state_bytes:.1f}"),
            ("peak/B", "{peak_bytes:.1f}"),
            title=f"one optimizer step, {_count():,} weights, {results.device()}",
        )
        self.report(out, rows, shown)


def _count() -> int:
    return sum(int(np.prod(shape)) for shape in _SHAPES.values())


Named = tuple[str, optax.GradientTransformation]


def _comparisons() -> list[Comparison]:
    def linbreg(name: str, regularizer: bregjax.Regularizer) -> Named:
        return f"LinBreg {name}", bregjax.linbreg(0.1, regularizer, 0.01)

    def adabreg(name: str, regularizer: bregjax.Regularizer) -> Named:
        return f"AdaBreg {name}", bregjax.adabreg(1e-3, regularizer, 0.01)

    groups = {
        "per_neuron": bregjax.per_neuron(),
        "per_kernel": bregjax.per_kernel(),
        "per_input_channel": bregjax.per_input_channel(),
        "sparse_group(per_kernel)": bregjax.sparse_group(bregjax.per_kernel()),
        "sparse_group(per_neuron)": bregjax.sparse_group(bregjax.per_neuron()),
    }

    def steered(name: str, regularizer: bregjax.Regularizer) -> Comparison:
        inner = bregjax.adabreg(1e-3, regularizer, 0.01, keep_weights=True)
        step = f"AdaBreg {name}, steered exactly", bregjax.steer(inner, 0.05, exact=True)
        return step, adabreg(name, regularizer)

    adam = "Adam", optax.adam(1e-3)
    pruning = bregjax.baselines.cubic_density_schedule(0.05, 100, 700, every=12)
    to_density = {
        "Adam, to_density": optax.chain(adam[1], bregjax.to_density(0.05, 1000)),
        "Adam, magnitude_pruning": bregjax.baselines.magnitude_pruning(adam[1], pruning),
        "AdaBreg, landing": bregjax.landing(
            bregjax.adabreg(1e-3, bregjax.l1(), 0.01), adam[1], 800, density=0.05
        ),
    }
    l1 = {make: make("ℓ1", bregjax.l1()) for make in (linbreg, adabreg)}
    return [
        (l1[linbreg], ("SGD, momentum", optax.sgd(0.1, momentum=0.9))),
        (l1[adabreg], adam),
        *((make(name, groups[name]), l1[make]) for make in l1 for name in groups),
        steered("ℓ1", bregjax.l1()),
        steered("per_neuron", groups["per_neuron"]),
        *((pair, adam) for pair in to_density.items()),
    ]


def _step_of(optimizer: optax.GradientTransformation) -> Any:
    """A jitted step, with donated buffers, as in training."""

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(gradient: Any, params: Any, state: Any) -> tuple:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def _bytes_for_each_weight(optimizer: optax.GradientTransformation) -> tuple[float, float]:
    """Those of the state, and those of a compiled step at its peak."""
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in _SHAPES.items()}
    state = jax.eval_shape(optimizer.init, params)
    of_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    memory = _step_of(optimizer).lower(params, params, state).compile().memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return of_state / _count(), peak / _count()


def _time_all(
    optimizers: dict[str, optax.GradientTransformation], seed: int, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of each repeat of each step.

    There are several rounds, each with new buffers, because the place of buffers in memory makes a
    step faster or slower.
    """
    rng = np.random.default_rng(seed)

    def draw() -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(0.05 * rng.standard_normal(shape, dtype=np.float32))
            for name, shape in _SHAPES.items()
        }

    steps = {name: _step_of(optimizer) for name, optimizer in optimizers.items()}
    gradient = draw()
    states: dict[str, Any] = {}

    def advance(name: str) -> Any:
        states[name] = steps[name](gradient, *states[name])
        return states[name]

    calls = {name: functools.partial(advance, name) for name in optimizers}
    rounds = []
    for part in np.array_split(np.arange(repeats), min(_ROUNDS, repeats)):
        for name, optimizer in optimizers.items():
            params = draw()
            states[name] = params, jax.jit(optimizer.init)(params)
        rounds.append(time_in_turn(calls, len(part), rng))
    return {name: np.concatenate([seconds[name] for seconds in rounds]) for name in optimizers}
