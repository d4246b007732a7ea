"""The time of the prox of the nuclear norm, by every method, beside full decompositions."""

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

import bregjax
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.options import check_counts
from benchmarks.measure.timing import time_in_turn
from benchmarks.report import results
from benchmarks.speed.command import Row, SpeedCommand, table
from bregjax._regularizers._nuclear import Method

_STEP = 1.0  # the threshold of the prox
_FULL = "jnp.linalg.svd"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowrankSpeed(SpeedCommand):
    """The prox of the nuclear norm on square matrices of low rank.

    The singular values above the threshold fall from ten times to twice the threshold or, with
    --close, from 1.5 times to 1.01 times. The others fall from a half of it to a twentieth. From
    call to call the matrix moves by --drift times its norm, as a dual does from step to step; a
    method that keeps a basis has to follow. The four methods of `nuclear` are compared with
    `jnp.linalg.svd` and, if PyTorch is installed, with its full and truncated decompositions. All
    are timed in turn; the table reports medians.
    """

    name: ClassVar[str] = "lowrank_speed"

    sizes: tuple[int, ...] = (256, 512, 1024)
    """Rows and columns of the matrices."""
    rank: int = 32
    """Singular values above the threshold."""
    close: bool = False
    """Put the live singular values close to the threshold, as if many had just appeared."""
    drift: float = 1e-3
    """How far the matrix moves between two calls, relative to its norm."""
    repeats: int = 30
    """How often each is timed."""
    quick: bool = False
    """A trial of seconds: matrices of 64 rows with rank 4, three repeats."""

    def run(self) -> None:
        """Time everything, print the table, write summary.json."""
        check_counts(self, "rank", "repeats")
        if not 0 <= self.drift < 1:
            raise BenchmarkError(f"--drift must be at least 0 and below 1, got {self.drift}.")
        sizes, rank = ((64,), 4) if self.quick else (self.sizes, self.rank)
        if not sizes or min(sizes) < rank:
            raise BenchmarkError(f"--sizes must be at least the rank, {rank}, got {sizes}.")
        out = self.folder()
        rows = [row for size in sizes for row in self._rows(size, rank)]
        shown = table(
            rows,
            ("size", "{size:d}"),
            ("method", "{method}"),
            ("ms", "{milliseconds:.3g}"),
            ("relative error", "{relative_error:.1e}"),
            ("speed-up", "{speedup_over_svd:.1f}"),
            title=f"prox of the nuclear norm, rank {rank}, float32, {results.device()}",
        )
        self.report(out, rows, shown)

    def _rows(self, size: int, rank: int) -> list[Row]:
        rng = np.random.default_rng(self.seed)
        live = np.linspace(1.5, 1.01, rank) if self.close else np.linspace(10, 2, rank)
        matrices = _drifting(size, live, self.drift, rng)
        latest: dict[str, tuple[int, Any]] = {}

        def call(name: str, function: Callable[[int], Any]) -> Callable[[], Any]:
            turns = itertools.cycle(range(len(matrices)))

            def timed() -> Any:
                index = next(turns)
                latest[name] = index, function(index)
                return latest[name][1]

            return timed

        functions = self.chosen_beside(_FULL, _functions(matrices, rank))
        calls = {name: call(name, function) for name, function in functions.items()}
        seconds = time_in_turn(calls, self.rounds, rng)
        rows = []
        for name, times in seconds.items():
            index, result = latest[name]
            rows.append(
                {
                    "size": size,
                    "method": name,
                    "milliseconds": float(1e3 * np.median(times)),
                    "relative_error": _relative_error(matrices[index], result),
                    "speedup_over_svd": float(np.median(seconds[_FULL] / times)),
                    "rank": rank,
                    "close": self.close,
                    "drift": self.drift,
                    "repeats": self.rounds,
                }
            )
        return rows


def _drifting(
    size: int, live: np.ndarray, drift: float, rng: np.random.Generator
) -> list[jax.Array]:
    """Eight matrices, there and back: each differs from the previous one by ``drift``."""
    u, v = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    spectrum = _STEP * np.r_[live, np.geomspace(0.5, 0.05, size - len(live))]
    matrix = (u * spectrum) @ v.T
    way = [matrix]
    for _ in range(4):
        noise = rng.standard_normal((size, size))
        way.append(way[-1] + drift * np.linalg.norm(matrix) / np.linalg.norm(noise) * noise)
    return [jnp.asarray(x, jnp.float32) for x in (*way, *way[3:0:-1])]


def _functions(matrices: Sequence[jax.Array], rank: int) -> dict[str, Callable[[int], Any]]:
    """Functions from the index of a matrix to its prox or, for decompositions, to its factors."""
    full = jax.jit(lambda x: jnp.linalg.svd(x, full_matrices=False))
    functions: dict[str, Callable[[int], Any]] = {_FULL: lambda i: full(matrices[i])}
    for method in get_args(Method):
        functions[f"nuclear, {method}"] = _Prox(bregjax.nuclear(method=method), matrices)
    on_cpu = jax.default_backend() == "cpu"  # a comparison across devices would say nothing
    if on_cpu and importlib.util.find_spec("torch") is not None:
        import torch  # pyright: ignore[reportMissingImports]

        tensors = [torch.from_numpy(np.array(x)) for x in matrices]

        def truncated(index: int) -> tuple:
            u, s, v = torch.svd_lowrank(tensors[index], q=rank, niter=2)
            return u, s, v.mT

        functions["torch.linalg.svd"] = lambda i: torch.linalg.svd(tensors[i], full_matrices=False)
        functions[f"torch.svd_lowrank, q={rank}"] = truncated
    return functions


class _Prox:
    """The prox with its state, which is passed from call to call as in an optimizer."""

    def __init__(self, regularizer: bregjax.Regularizer, matrices: Sequence[jax.Array]):
        self._prox = jax.jit(regularizer.prox_with_state)
        self._matrices = matrices
        self._state = regularizer.init_state(matrices[0], 0)

    def __call__(self, index: int) -> jax.Array:
        y, self._state = self._prox(self._matrices[index], _STEP, self._state)
        return y


def _relative_error(matrix: jax.Array, result: Any) -> float:
    """The error of the prox, relative to NumPy in double precision."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    exact = u * np.maximum(s - _STEP, 0) @ vt
    if isinstance(result, tuple):
        u, s, vt = (np.asarray(x, np.float64) for x in result)
        result = u * np.maximum(s - _STEP, 0) @ vt
    return float(np.linalg.norm(np.asarray(result, np.float64) - exact) / np.linalg.norm(exact))
