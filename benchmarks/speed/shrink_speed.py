"""How much faster networks become without their dead units."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

import bregjax
from benchmarks.cli.options import check_counts, named_by
from benchmarks.experiments.mnist import PAPER
from benchmarks.measure.timing import forward_pass, speedup, time_in_turn
from benchmarks.models import MLP, ConvNet, resnet20
from benchmarks.report import results
from benchmarks.speed.command import Row, SpeedCommand, table


class _Network(NamedTuple):
    build: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    """of an input"""
    dead: float
    """share of the units of each hidden layer"""
    batch_size: int


_NETWORKS = {
    "MLP 784-200-80-10": _Network(lambda rngs: MLP(PAPER, rngs=rngs), (784,), 0.75, 500),
    "MLP 784-2000-800-10": _Network(
        lambda rngs: MLP((784, 2000, 800, 10), rngs=rngs), (784,), 0.75, 500
    ),
    "ConvNet": _Network(lambda rngs: ConvNet(rngs=rngs), (28, 28, 1), 0.75, 100),
    "ResNet-20": _Network(lambda rngs: resnet20(rngs=rngs), (32, 32, 3), 0.8, 100),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShrinkSpeed(SpeedCommand):
    """Forward passes of networks with dead units, and of the same networks after `bregjax.shrink`.

    Random units of each hidden layer are dead: three of four neurons and filters, and four of five
    in the ResNet, where all layers of a residual sum lose the same ones. Both networks are timed in
    turn, as one jitted program each. The table reports medians, and how much the outputs differ.
    """

    name: ClassVar[str] = "shrink_speed"

    quick: bool = False
    """A trial: the first network alone, three repeats."""

    def run(self) -> None:
        """Shrink and time everything, print the table, write summary.json."""
        check_counts(self, "repeats")
        out = self.folder()
        names = named_by(self.only, _NETWORKS)
        names = names[:1] if self.quick else names
        rows = [self._row(name, _NETWORKS[name]) for name in names]
        shown = table(
            rows,
            ("network", "{network}"),
            ("parameters", "{parameters:.1%}"),
            ("multiply-adds", "{multiply_adds:.1%}"),
            ("speed-up", "{speedup:.2f}"),
            ("difference", "{difference:.1e}"),
            title=f"networks without their dead units, float32, {results.device()}",
        )
        self.report(out, rows, shown)

    def _row(self, name: str, network: _Network) -> Row:
        rng = np.random.default_rng(self.seed)
        model: Any = network.build(nnx.Rngs(self.seed))
        model.eval()
        _kill(model, network.dead, rng)
        inputs = jnp.asarray(rng.standard_normal((network.batch_size, *network.shape)), jnp.float32)
        smaller, report, _ = bregjax.shrink(model, inputs[:2])
        calls = {"dense": forward_pass(model, inputs), "shrunk": forward_pass(smaller, inputs)}
        expected, got = calls["dense"](), calls["shrunk"]()
        seconds = time_in_turn(calls, self.rounds, rng)
        row = {
            "network": name,
            "dead": network.dead,
            "batch_size": network.batch_size,
            "parameters": report.parameters[1] / report.parameters[0],
            "multiply_adds": report.multiply_adds[1] / report.multiply_adds[0],
            "difference": float(jnp.max(jnp.abs(got - expected)) / jnp.max(jnp.abs(expected))),
            "repeats": len(seconds["dense"]),
        }
        return row | speedup(seconds, "shrunk", "dense")


def _kill(model: nnx.Module, share: float, rng: np.random.Generator) -> None:
    """Let units of all layers but the last die; layers of the same width lose the same units."""
    chosen: dict[int, np.ndarray] = {}
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, (nnx.Linear, nnx.Conv))]
    for layer in layers:
        size = int(np.max(layer.out_features))
        if size == 10:  # classes
            continue
        dead = chosen.setdefault(size, rng.permutation(size) < share * size)
        for variable in (layer.kernel, layer.bias):
            if variable is not None:
                variable[...] = jnp.where(dead, 0, variable[...])
