"""What sparse matrices cost in a dense layer, beside zeros and beside fewer columns."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from rich.table import Table

from benchmarks.cli.options import check_counts
from benchmarks.cli.progress import console
from benchmarks.measure.timing import speedup, time_in_turn
from benchmarks.methods import check_shares
from benchmarks.report import figures, results

_DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseSpeed:
    """The product of a batch with a square kernel most of whose entries are zero.

    Compares the dense product, zeros and all, with the formats BCSR and BCOO of
    `jax.experimental.sparse`, and with a dense kernel of as many weights in fewer columns, which is
    what `bregjax.shrink` leaves of dead neurons. All are timed in turn; the table reports medians,
    and quartiles of the ratios.
    """

    name: ClassVar[str] = "sparse_speed"

    sizes: tuple[int, ...] = (512, 1024, 2048)
    """Inputs and outputs of the layer."""
    batch_sizes: tuple[int, ...] = (1, 128)
    """Rows of the batch."""
    densities: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5)
    """Shares of the weights that are not zero."""
    repeats: int = 20
    """How often each is timed."""
    seed: int = 0
    """Seed of the weights and inputs."""
    out: Path | None = None
    """Folder for summary.json and the figure; by default out/sparse_speed (--quick:
    out/sparse_speed-quick)."""
    quick: bool = False
    """A trial of seconds: layers of 64 units, three repeats."""

    def run(self) -> None:
        """Time everything, print the table, write summary.json, draw the figure."""
        check_counts(self, "repeats")
        check_shares("--densities", self.densities)
        out = results.prepare_folder(self.out, self.name, quick=self.quick)
        rows = [
            row
            for batch_size in self.batch_sizes
            for size in ((64,) if self.quick else self.sizes)
            for density in self.densities
            for row in self._rows(size, batch_size, density)
        ]
        table = Table(title=f"one dense layer, float32, {results.device()}")
        for column in ("size", "batch", "weights", "product", "ms", "speed-up", "quartiles"):
            table.add_column(column, justify="left" if column == "product" else "right")
        for row in rows:
            low, high = row["speedup_quartiles"]
            table.add_row(
                str(row["size"]),
                str(row["batch_size"]),
                f"{row['density']:.0%}",
                row["method"],
                f"{row['milliseconds']:.3g}",
                f"{row['speedup']:.2g}",
                f"{low:.2g} … {high:.2g}",
            )
        console.print(table)
        results.write_summary(out, rows)
        figures.save(figures.speedups(rows, f"a dense layer, {results.device()}"), out, "speedups")
        console.print(f"Results and figures are in {out}.", soft_wrap=True)

    def _rows(self, size: int, batch_size: int, density: float) -> list[dict[str, Any]]:
        rng = np.random.default_rng(self.seed)
        inputs = jnp.asarray(rng.standard_normal((batch_size, size)), jnp.float32)
        calls = products(inputs, size, density, rng)
        seconds = time_in_turn(calls, 3 if self.quick else self.repeats, rng)
        return [
            {
                "experiment": self.name,
                "size": size,
                "batch_size": batch_size,
                "density": density,
                "method": name,
                "milliseconds": float(1e3 * np.median(times)),
                "repeats": len(times),
            }
            | speedup(seconds, name, _DENSE)
            | results.provenance()
            for name, times in seconds.items()
        ]


def products(
    inputs: jax.Array, size: int, density: float, rng: np.random.Generator
) -> dict[str, Callable[[], jax.Array]]:
    """The same layer in every way, and the one of as many weights in its first columns.

    The sparse kernels are transposed: on a CPU JAX has a kernel for BCSR times dense alone.
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
