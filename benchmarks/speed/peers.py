"""Our training beside that of the authors' PyTorch package, on the same network and batches."""

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.table import Table

from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.options import check_counts, named_by
from benchmarks.cli.progress import track
from benchmarks.report import results
from benchmarks.speed.command import SpeedCommand, table
from benchmarks.speed.peer_training import CASES, Problem, Run, make_problem, ours, theirs

_FIRST = 50  # steps over which the losses must agree; later on, rounding errors have grown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers(SpeedCommand):
    """Our training against the authors' package `bregman-learning` for PyTorch.

    Both sides have the same networks (MNIST MLP, in mixed precision too, and Fashion-MNIST
    ConvNet), initial weights and batches, in the same order. In turn, several times, each side
    trains for two epochs in a process of its own with a given number of processor cores. The table
    reports medians of the second epoch's time. PyTorch's loop selects batches from normalized
    images in memory. The regularizers are ℓ1 on dense layers and the group norm of the kernels on
    convolutions; PyTorch's side reshapes these, because the package has groups only for matrices.
    """

    name: ClassVar[str] = "peers"

    threads: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2)[: _count_cores()])
    """Processor cores that a process may use; by default one, and two where there are two."""
    repeats: int = 3
    """How often each side trains."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    quick: bool = False
    """A trial of a minute: twenty steps, once."""

    def run(self) -> None:
        """Train everything, print the table, write summary.json."""
        self._check()
        cases = named_by(self.only, CASES)
        out = self.folder()
        problems = {
            name: make_problem(name, self.seed, self.data_dir, 20 if self.quick else None)
            for name in cases
        }
        plan = [(name, threads) for name in cases for threads in self.threads]
        runs: dict[tuple[str, int], list[tuple[Run, Run]]] = {entry: [] for entry in plan}
        repeats = 1 if self.quick else self.repeats
        for name, threads in track(plan * repeats, "training"):
            pair = [_in_a_process(side, threads, name, problems[name]) for side in (ours, theirs)]
            runs[name, threads].append((pair[0], pair[1]))
        rows = [
            {"case": name, "threads": threads, "seed": self.seed} | _compare(pairs)
            for (name, threads), pairs in runs.items()
        ]
        self.report(out, rows, *_tables(rows), packages=("torch", "bregman-learning"))

    def _check(self) -> None:
        for module, package in (("torch", "torch"), ("bregman", "bregman-learning")):
            if importlib.util.find_spec(module) is None:
                raise BenchmarkError(
                    f"{package} is not installed: pip install 'bregjax[peers]' for this comparison."
                )
        if not hasattr(os, "sched_setaffinity"):
            raise BenchmarkError("this comparison binds processes to cores, which needs Linux.")
        cores = _count_cores()
        if not self.threads or min(self.threads) < 1 or max(self.threads) > cores:
            raise BenchmarkError(
                f"--threads must be from 1 to the {cores} cores there are,"
                f" got {' '.join(map(str, self.threads))}."
            )
        check_counts(self, "repeats")


def _count_cores() -> int:
    """The number of cores that this process may use; 1 if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _in_a_process(
    side: Callable[[str, Problem], Run], threads: int, name: str, problem: Problem
) -> Run:
    """Train in a new process that has only this many cores from its beginning."""
    with _cores(threads):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(side, name, problem).result()


@contextlib.contextmanager
def _cores(threads: int) -> Iterator[None]:
    """Processes started in this context have this many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _compare(pairs: list[tuple[Run, Run]]) -> dict[str, Any]:
    """Medians over the repeats; speed-ups are their time divided by ours, pair by pair."""
    seconds, updates = (
        np.array([[getattr(run, field) for run in pair] for pair in pairs])
        for field in ("seconds", "update_seconds")
    )
    mine, other = pairs[0][0].losses, pairs[0][1].losses
    return {
        "seconds_per_epoch": float(np.median(seconds[:, 0])),
        "peer_seconds_per_epoch": float(np.median(seconds[:, 1])),
        "speedup": float(np.median(seconds[:, 1] / seconds[:, 0])),
        "seconds_per_update": float(np.median(updates[:, 0])),
        "peer_seconds_per_update": float(np.median(updates[:, 1])),
        "update_speedup": float(np.median(updates[:, 1] / updates[:, 0])),
        "loss": float(mine.mean()),
        "peer_loss": float(other.mean()),
        "largest_difference": float(np.max(np.abs(mine - other)[:_FIRST])),
        "steps": len(mine),
        "repeats": len(pairs),
    }


def _tables(rows: list[dict[str, Any]]) -> tuple[Table, Table]:
    """The times and the losses; cells with a slash have our value before theirs."""
    both = "bregjax / bregman-learning"
    label = ("case", "{case}"), ("cores", "{threads:d}")

    def in_milliseconds(row: dict[str, Any]) -> dict[str, Any]:
        return row | {
            f"{side}milliseconds_per_update": 1e3 * row[f"{side}seconds_per_update"]
            for side in ("", "peer_")
        }

    times = table(
        map(in_milliseconds, rows),
        *label,
        ("s/epoch", "{seconds_per_epoch:.2f} / {peer_seconds_per_epoch:.2f}"),
        ("ratio", "{speedup:.2f}×"),
        ("ms/update", "{milliseconds_per_update:.3f} / {peer_milliseconds_per_update:.3f}"),
        ("ratio", "{update_speedup:.1f}×"),
        title=f"{both} (PyTorch), {results.device()}",
    )
    losses = table(
        rows,
        *label,
        ("mean of the epoch", "{loss:.5f} / {peer_loss:.5f}"),
        ("largest difference", "{largest_difference:.1e}"),
        title=f"cross entropy of the training batches, {both}",
        caption=f"largest difference: of the losses of the first {_FIRST} steps",
    )
    return times, losses
