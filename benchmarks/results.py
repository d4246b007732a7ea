"""What an experiment leaves behind: summary.json, metrics.jsonl and the table on the screen."""

import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
from rich.table import Table

import bregjax
from benchmarks.errors import BenchmarkError
from benchmarks.progress import console
from benchmarks.training import Result

_PACKAGES = ("bregjax", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One method trained with one seed: an entry of summary.json."""

    experiment: str
    method: str
    settings: dict[str, Any]
    seed: int
    epochs: int
    test_accuracy: float
    density: float
    """share of non-zero weights; biases and norms are left out"""
    densities: dict[str, float]
    """the same by kind of layer"""
    nonzero: int
    seconds_per_epoch: float
    """of all seeds of the method together, divided by their number"""
    versions: dict[str, str]
    device: str
    commit: str | None


def prepare_folder(out: Path) -> Path:
    """Make the output folder, or say in one line why it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BenchmarkError(
            f"cannot write to {out} ({error.strerror}): choose another folder with --out."
        ) from error
    return out


def runs_of(
    experiment: str,
    method: str,
    settings: dict[str, Any],
    seeds: Sequence[int],
    result: Result,
) -> list[Run]:
    """One `Run` for each seed of a `Result`."""
    runs = []
    origin = provenance()
    for index, seed in enumerate(seeds):
        params = jax.tree.map(lambda x, i=index: x[i], result.params)
        report = bregjax.sparsity_report(params, ranks=False)
        runs.append(
            Run(
                experiment=experiment,
                method=method,
                settings=settings,
                seed=seed,
                epochs=len(result.curve.nonzero) - 1,
                test_accuracy=float(result.test_accuracy[index]),
                density=report.density,
                densities=report.densities(),
                nonzero=report.weights[0],
                seconds_per_epoch=result.seconds_per_epoch / len(seeds),
                **origin,
            )
        )
    return runs


def curve_rows(
    experiment: str, method: str, seeds: Sequence[int], result: Result
) -> Iterable[dict[str, Any]]:
    """One dictionary for each seed and epoch of a `Result`: the lines of metrics.jsonl."""
    for index, seed in enumerate(seeds):
        for epoch in range(len(result.curve.nonzero)):
            values = {
                name: _plain(column[epoch, index])
                for name, column in result.curve._asdict().items()
            }
            start = {"experiment": experiment, "method": method, "seed": seed, "epoch": epoch}
            yield start | values


def write(
    out: Path,
    runs: Sequence[Run],
    rows: Iterable[dict[str, Any]],
    snapshots: Mapping[str, np.ndarray],
) -> None:
    """Write summary.json, metrics.jsonl and, if there are any, snapshots.npz.

    Each file is replaced at once or not at all.
    """
    summary = json.dumps([dataclasses.asdict(run) for run in runs], indent=1, ensure_ascii=False)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    contents = {"summary.json": (summary + "\n").encode(), "metrics.jsonl": lines.encode()}
    if snapshots:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **snapshots)  # pyright: ignore[reportArgumentType]
        contents["snapshots.npz"] = buffer.getvalue()
    for name, content in contents.items():
        write_file(out / name, content)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file at once or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise BenchmarkError(f"cannot write {path} ({error.strerror}).") from error


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    with _explained(out / "metrics.jsonl") as path:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not rows or any("method" not in row for row in rows):
            raise ValueError("no learning curves in it")
        return rows


def read_snapshots(out: Path) -> dict[str, dict[int, np.ndarray]]:
    """The arrays of snapshots.npz by method and epoch."""
    snapshots: dict[str, dict[int, np.ndarray]] = {}
    with _explained(out / "snapshots.npz") as path, np.load(path) as archive:
        for key in archive:
            method, _, epoch = key.rpartition("/")
            snapshots.setdefault(method, {})[int(epoch)] = archive[key]
    return snapshots


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BenchmarkError(
            f"{path} cannot be read ({error}): run the experiment first."
        ) from error


def print_table(runs: Sequence[Run], title: str) -> None:
    """Print mean ± standard deviation over the seeds of each method."""
    seeds = len({run.seed for run in runs})
    spread = f", mean ± deviation over {seeds} seeds" if seeds > 1 else ""
    caption = f"{title}{spread}"
    table = Table(title=caption, box=rich.box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for column in ("test acc./%", "live weights", "share/%", "s/ep."):
        table.add_column(column, justify="right", no_wrap=True)
    for method in dict.fromkeys(run.method for run in runs):
        group = [run for run in runs if run.method == method]
        table.add_row(
            method,
            _mean_and_deviation([100 * run.test_accuracy for run in group], "{:.2f}"),
            _mean_and_deviation([run.nonzero for run in group], "{:,.0f}"),
            _mean_and_deviation([100 * run.density for run in group], "{:.2f}"),
            f"{np.mean([run.seconds_per_epoch for run in group]):.2g}",
        )
    console.print(table)


def _mean_and_deviation(values: Sequence[float], form: str) -> str:
    spread = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + spread


def _plain(value: Any) -> float | int | None:
    number = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number


def provenance() -> dict[str, Any]:
    """Where a number comes from: the ``versions``, ``device`` and ``commit`` of summary.json."""
    return {"versions": _versions(), "device": device(), "commit": _commit()}


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = bregjax.__version__ if package == "bregjax" else "unknown"
    return found


def device() -> str:
    """The device that JAX computes on, in words."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return f"{first.platform} ({first.device_kind})"


def _commit() -> str | None:
    """The commit of the checkout that runs, with ``+`` where files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changed else "")
