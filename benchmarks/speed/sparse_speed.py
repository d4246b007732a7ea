"""The time of a dense layer with sparse matrices, with zeros and with fewer columns."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from benchmarks.cli.options import check_counts
from benchmarks.measure.timing import speedup, time_in_turn
from benchmarks.methods import check_shares
from benchmarks.report import figures, results
from benchmarks.speed.command import Row, SpeedCommand, table

_DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseSpeed(SpeedCommand):
    """The product of a batch with a square kernel most of whose entries are zero.

    The dense product, which multiplies by the zeros too, is compared with the formats BCSR and BCOO
    of `jax.experimental.sparse`, and with a dense kernel that has the same number of weights in
    fewer columns, as `bregjax.shrink` leaves it. All are timed in turn; the table reports medians,
    and quartiles of the ratios.
    """

    name: ClassVar[str] = "sparse_speed"

    sizes: tuple[int, ...] = (512, 1024, 2048)
    """Inputs and outputs of the layer."""
    batch_sizes: tuple[int, ...] = (1, 128)
    """Rows of the batch."""
    densities: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5)
    """Shares of the weights that are not zero."""
    quick: bool = False
    """A trial of seconds: layers of 64 units, three repeats."""

    def run(self) -> None:
        """Time everything, print the table, write summary.json, draw the figure."""
        check_counts(self, "repeats")
        check_shares("--densities", self.densities)
        out = self.folder()
        rows = [
            row
            for batch_size in self.batch_sizes
            for size in ((64,) if self.quick else self.sizes)
            for density in self.densities
            for row in self._rows(size, batch_size, density)
        ]
        shown = table(
            rows,
            ("size", "{size:d}"),
            ("batch", "{batch_size:d}"),
            ("weights", "{density:.0%}"),
            ("product", "{method}"),
            ("ms", "{milliseconds:.3g}"),
            ("speed-up", "{speedup:.2g}"),
            ("quartiles", "{speedup_quartiles[0]:.2g} … {speedup_quartiles[1]:.2g}"),
            title=f"one dense layer, float32, {results.device()}",
        )
        figures.save(figures.speedups(rows, f"a dense layer, {results.device()}"), out, "speedups")
        self.report(out, rows, shown)

    def _rows(self, size: int, batch_size: int, density: float) -> list[Row]:
        rng = np.random.default_rng(self.seed)
        inputs = jnp.asarray(rng.standard_normal((batch_size, size)), jnp.float32)
        calls = self.chosen_beside(_DENSE, products(inputs, size, density, rng))
        seconds = time_in_turn(calls, self.rounds, rng)
        return [
            {
                "size": size,
                "batch_size": batch_size,
                "density": density,
                "method": name,
                "milliseconds": float(1e3 * np.median(times)),
                "repeats": len(times),
            }
            | speedup(seconds, name, _DENSE)
            for name, times in seconds.items()
        ]


def products(
    inputs: jax.Array, size: int, density: float, rng: np.random.Generator
) -> dict[str, Callable[[], jax.Array]]:
    """The same layer in every format, and one with as many weights in its first columns.

    The sparse kernels are transposed: on a CPU JAX has a fast program only for BCSR times dense.
    """
    kernel = rng.standard_normal((size, size))
    live = rng.permutation(size**2).reshape(size, size) < round(density * size**2)
    zeros, kernel = (jnp.asarray(x, jnp.float32) for x in (np.where(live, kernel, 0), kernel))
    dense = jax.jit(jnp.matmul)
    turned = jax.jit(lambda kernel, inputs: (kernel @ inputs.T).T)
    return {
        _DENSE: partial(dense, inputs, zeros),
        "BCSR": partial(turned, sparse.BCSR.fromdense(zeros.T), inputs),
        "BCOO": partial(turned, sparse.BCOO.fromdense(zeros.T), inputs),
        "shrunk": partial(dense, inputs, kernel[:, : max(1, round(density * size))]),
    }
