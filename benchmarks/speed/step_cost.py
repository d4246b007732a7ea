"""The time of an optimizer's step, compared with that of its dense counterpart."""

import dataclasses
import functools
from collections.abc import Callable
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
    exact steering, as `adabreg_to_density` does it, with a fixed strength. All are timed in turn,
    in random order, many times; the table reports medians and ratios.
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
        rows = [
            {
                "method": name,
                "baseline": baseline,
                "milliseconds": float(1e3 * np.median(seconds[name])),
                # Pair by pair: if the machine is slow for a while, it is slow for both.
                "ratio": float(np.median(seconds[name] / seconds[baseline])),
                "weights": _count(),
                "repeats": len(seconds[name]),
            }
            for (name, _), (baseline, _) in pairs
        ]
        shown = table(
            rows,
            ("step", "{method}"),
            ("against", "{baseline}"),
            ("ms", "{milliseconds:.1f}"),
            ("ratio", "{ratio:.3f}"),
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

    l1 = {make: make("ℓ1", bregjax.l1()) for make in (linbreg, adabreg)}
    return [
        (l1[linbreg], ("SGD, momentum", optax.sgd(0.1, momentum=0.9))),
        (l1[adabreg], ("Adam", optax.adam(1e-3))),
        *((make(name, groups[name]), l1[make]) for make in l1 for name in groups),
        steered("ℓ1", bregjax.l1()),
        steered("per_neuron", groups["per_neuron"]),
    ]


def _time_all(
    optimizers: dict[str, optax.GradientTransformation], seed: int, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of each repeat of each step; buffers are donated, as in training.

    There are several rounds, each with new buffers, because the place of buffers in memory makes a
    step faster or slower.
    """
    rng = np.random.default_rng(seed)

    def draw() -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(0.05 * rng.standard_normal(shape, dtype=np.float32))
            for name, shape in _SHAPES.items()
        }

    def step_of(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        @functools.partial(jax.jit, donate_argnums=(1, 2))
        def step(gradient: Any, params: Any, state: Any) -> tuple:
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return step

    steps = {name: step_of(optimizer) for name, optimizer in optimizers.items()}
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
