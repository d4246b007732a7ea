"""The results of an experiment: summary.json, metrics.jsonl and the table on the screen."""

import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax
import numpy as np
import rich.box
from rich.markup import escape
from rich.table import Table
from typeguard import check_type

import bregjax
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.progress import console
from benchmarks.engine.training import Result

_PACKAGES = ("bregjax", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One method trained with one seed: an entry of summary.json."""

    experiment: str
    method: str
    kind: str
    """the method without its strength and target, such as ``LinBreg+m``"""
    settings: dict[str, Any]
    seed: int
    epochs: int
    selected_epoch: int
    """the epoch to which all that follows belongs"""
    test_loss: float
    test_accuracy: float | None
    """a fraction; None where there are no classes"""
    density: float
    """share of non-zero weights, without biases and norms"""
    densities: dict[str, float]
    """the same, by kind of layer"""
    nonzero: int
    seconds_per_epoch: float | None
    """the time of all seeds of the method, divided by their number; None if no epoch without
    compilation was run"""
    versions: dict[str, str]
    device: str
    commit: str | None
    title: str = ""
    """of the experiment with its network and preset; empty in older files"""
    validation_accuracy: float | None = None
    """a fraction; None where there are no classes"""
    validation_loss: float | None = None
    """None in older files"""
    findings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """other results of the experiment, by name"""

    @property
    def target_density(self) -> float | None:
        """The density that was asked for, if any."""
        return self.settings.get("target_density")


def prepare_folder(out: Path | None, name: str, *, quick: bool) -> Path:
    """The output folder; raises `BenchmarkError` if it cannot be written to.

    The folder is made when the first file is written, so a run that fails before leaves none. By
    default it is out/NAME. Quick trials have another one, so that they do not replace the numbers
    of a whole run.
    """
    out = out or Path("out") / (f"{name}-quick" if quick else name)
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
        for folder in missing:
            folder.rmdir()
    except OSError as error:
        raise BenchmarkError(
            f"cannot write to {out} ({error.strerror}): choose another folder with --out."
        ) from error
    return out


def runs_of(
    experiment: str,
    title: str,
    method: str,
    kind: str,
    settings: dict[str, Any],
    seeds: Sequence[int],
    result: Result,
    findings: Sequence[dict[str, Any]],
) -> list[Run]:
    """One `Run` for each seed of a `Result`, with the findings of the experiment."""
    runs = []
    origin = provenance()
    for index, seed in enumerate(seeds):
        params = jax.tree.map(lambda x, i=index: x[i], result.params)
        report = bregjax.sparsity_report(params, ranks=False)
        runs.append(
            Run(
                experiment=experiment,
                title=title,
                method=method,
                kind=kind,
                settings=settings,
                seed=seed,
                epochs=len(result.curve.nonzero) - 1,
                selected_epoch=int(result.selected_epoch[index]),
                test_loss=float(result.test_loss[index]),
                test_accuracy=_plain(result.test_accuracy[index]),
                density=report.density,
                densities=report.densities(),
                nonzero=report.weights[0],
                seconds_per_epoch=_plain(np.float64(result.seconds_per_epoch) / len(seeds)),
                validation_accuracy=_plain(
                    result.curve.validation_accuracy[result.selected_epoch[index], index]
                ),
                validation_loss=_plain(
                    result.curve.validation_loss[result.selected_epoch[index], index]
                ),
                findings=findings[index],
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


class Archive:
    """The files of an experiment: summary.json, metrics.jsonl, and arrays if there are any.

    ``snapshots.npz`` holds what was kept of each epoch, ``exhibits.npz`` what was kept of the final
    networks. Each file is replaced as a whole or not at all.

    Args:
      out: the folder.
      keep: whether to keep results of other methods that are in the folder.
    """

    def __init__(self, out: Path, *, keep: bool = False):
        self._out = out
        self.kept: list[Run] = []
        self.new: list[Run] = []
        self._rows: list[dict[str, Any]] = []
        self._snapshots: dict[str, np.ndarray] = {}
        self._exhibits: dict[str, np.ndarray] = {}
        if keep and (out / "summary.json").exists():
            self.kept = read_runs(out)
            self._rows = read_rows(out)
            self._snapshots = _read_arrays(out / "snapshots.npz")
            self._exhibits = _read_arrays(out / "exhibits.npz")

    @property
    def runs(self) -> list[Run]:
        """Those that were kept, and those that were added."""
        return self.kept + self.new

    def add(
        self,
        method: str,
        runs: Iterable[Run],
        rows: Iterable[dict[str, Any]],
        snapshots: Mapping[str, Mapping[int, np.ndarray]],
        exhibits: Mapping[str, np.ndarray],
    ) -> None:
        """Replace the results of a method, and write the files."""
        self.kept = [run for run in self.kept if run.method != method]
        self.new = [run for run in self.new if run.method != method] + list(runs)
        self._rows = [row for row in self._rows if row["method"] != method] + list(rows)
        self._snapshots = _without(method, self._snapshots) | {
            f"{method}/{name}/{epoch}": array
            for name, kept in snapshots.items()
            for epoch, array in kept.items()
        }
        self._exhibits = _without(method, self._exhibits) | {
            f"{method}/{name}": array for name, array in exhibits.items()
        }
        summary = [dataclasses.asdict(run) for run in self.runs]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
        write_summary(self._out, summary)
        write_file(self._out / "metrics.jsonl", lines.encode())
        _write_arrays(self._out / "snapshots.npz", self._snapshots)
        _write_arrays(self._out / "exhibits.npz", self._exhibits)


def _without(method: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: x for key, x in arrays.items() if not key.startswith(f"{method}/")}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        write_file(path, buffer.getvalue())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with _explained(path), np.load(path) as archive:
        return dict(archive)


def file_name(method: str) -> str:
    """A method's name, changed so that it can be the name of a folder."""
    return re.sub(r"[^\w.+-]+", "_", method)


def write_summary(out: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.json, a list of runs or timings."""
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "summary.json", text.encode())


def write_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise BenchmarkError(f"cannot write {path} ({error.strerror}).") from error


def read_runs(out: Path) -> list[Run]:
    """The entries of summary.json."""
    with _explained(out / "summary.json") as path:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise ValueError("no list of runs in it")
        try:
            runs = [Run(**entry) for entry in entries]
        except TypeError as error:
            raise ValueError("another version of the benchmarks wrote it") from error
        hints = get_type_hints(Run)
        for run in runs:
            for name, value in vars(run).items():
                check_type(value, hints[name])
        return runs


def check_title(out: Path, title: str) -> None:
    """Raises `BenchmarkError` if the results in a folder have another title."""
    runs = read_runs(out) if (out / "summary.json").exists() else []
    others = {run.title for run in runs} - {"", title}
    if others:
        raise BenchmarkError(
            f"the results in {out} are of {others.pop()!r}, not of {title!r}: give the options of"
            " those, or another --out."
        )


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    with _explained(out / "metrics.jsonl") as path:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not rows or not all(isinstance(row, dict) and "method" in row for row in rows):
            raise ValueError("no learning curves in it")
        texts = {"experiment", "method"}
        for row in rows:
            for name, value in row.items():
                check_type(value, str if name in texts else float | None)
        return rows


def read_snapshots(out: Path) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """The arrays of snapshots.npz, by name, method and epoch."""
    snapshots: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    with _explained(out / "snapshots.npz") as path, np.load(path) as archive:
        for key in archive:
            method, name, epoch = key.rsplit("/", 2)
            snapshots.setdefault(name, {}).setdefault(method, {})[int(epoch)] = archive[key]
    return snapshots


def read_exhibits(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of exhibits.npz, by method and name."""
    exhibits: dict[str, dict[str, np.ndarray]] = {}
    with _explained(out / "exhibits.npz") as path, np.load(path) as archive:
        for key in archive:
            method, name = key.rsplit("/", 1)
            exhibits.setdefault(method, {})[name] = archive[key]
    return exhibits


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[Path]:
    try:
        yield path
    except FileNotFoundError as error:
        raise BenchmarkError(f"there is no {path}: run the experiment first.") from error
    except Exception as error:  # JSON, NumPy and zip files raise errors of many types
        reason = " ".join(str(error).split())
        raise BenchmarkError(
            f"{path} cannot be read ({reason}): the experiment writes it anew without --only and"
            " --redraw; or choose another --out."
        ) from error


class Mean(NamedTuple):
    """The means of a method over its seeds; NaN where a value is missing."""

    method: str
    density: float
    test_accuracy: float
    validation_accuracy: float
    validation_loss: float


def means(runs: Sequence[Run]) -> list[Mean]:
    """The `Mean` of each method."""

    def mean(values: Iterable[float | None]) -> float:
        return float(np.mean([math.nan if value is None else value for value in values]))

    return [
        Mean(
            method,
            mean(run.density for run in group),
            mean(run.test_accuracy for run in group),
            mean(run.validation_accuracy for run in group),
            mean(run.validation_loss for run in group),
        )
        for method, group in by_method(runs).items()
    ]


def best_of_families(runs: Sequence[Run], *, by_loss: bool = False) -> Iterator[str]:
    """Sentences that name the best setting of each family by the validation data.

    It is the one with the best accuracy or the smallest loss. A setting's name begins with its
    family, then comes ``, rate``.
    """
    families: dict[str, list[Mean]] = {}
    for mean in means(runs):
        families.setdefault(mean.method.partition(", rate ")[0], []).append(mean)
    for family in families.values():
        if by_loss:
            best = min(family, key=lambda mean: np.nan_to_num(mean.validation_loss, nan=np.inf))
            value = f"loss {best.validation_loss:.4f}"
        else:
            best = max(family, key=lambda mean: mean.validation_accuracy)
            value = f"{100 * best.validation_accuracy:.2f} %"
        yield f"Best on the validation data: {best.method}, {value}."


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method; methods are in the order of their first runs."""
    return {
        method: [run for run in runs if run.method == method]
        for method in dict.fromkeys(run.method for run in runs)
    }


def differences(kept: Sequence[Run], new: Sequence[Run], *, epochs: bool = True) -> Iterator[str]:
    """Sentences about kept runs whose length, images or number of seeds is not that of new ones.

    Where methods are trained for several numbers of steps, which decide the epochs and the images,
    these are compared at the same number.

    Args:
      kept: runs from before.
      new: at least one run.
      epochs: whether to compare epochs; of runs that may end early they say nothing.
    """
    now = {_steps(group): _extent(group, epochs) for group in by_method(new).values()}
    (first, *_) = now.values()
    always = {name: first[name] for name in ("batch_size", "seeds")}
    methods: dict[str, list[str]] = {}
    for method, group in by_method(kept).items():
        mine, other = _extent(group, epochs), now.get(_steps(group), always)
        unlike = [
            f"{name}: {value}, now {other[name]}"
            for name, value in mine.items()
            if value != other.get(name, value)
        ]
        methods.setdefault("; ".join(unlike), []).append(method)
    for unlike, names in methods.items():
        if unlike:
            yield f"Kept from before, and trained otherwise ({unlike}): {', '.join(names)}."


def _steps(group: Sequence[Run]) -> int | None:
    """The number of steps that was asked for, if any."""
    return group[0].settings.get("steps")


def _extent(group: Sequence[Run], epochs: bool) -> dict[str, int]:
    """What --epochs, --images, --batch-size and --seeds decided; older files have no images."""
    first = group[0]
    length = {"epochs": first.epochs} if epochs else {}
    images = {n: first.settings[n] for n in ("images", "batch_size") if n in first.settings}
    return length | images | {"seeds": len(group)}


def over_seeds(counts: Collection[int]) -> str:
    """Such as ``mean ± deviation over 1 to 3 seeds``; empty if no method has more than one."""
    fewest, most = min(counts, default=1), max(counts, default=1)
    seeds = most if fewest == most else f"{fewest} to {most}"
    return f"mean ± deviation over {seeds} seeds" if most > 1 else ""


def print_table(runs: Sequence[Run], title: str) -> None:
    """Print mean ± standard deviation over the seeds of each method."""
    spread = over_seeds([len(group) for group in by_method(runs).values()])
    table = Table(title=f"{title}, {spread}" if spread else title, box=rich.box.SIMPLE_HEAD)
    classes = all(run.test_accuracy is not None for run in runs)
    quality = "test acc./%" if classes else "test loss"
    table.add_column("method", overflow="fold")
    counted = all("multiply_adds" in run.findings for run in runs)
    size = "mult.-adds/%" if counted else "live weights"
    for column in (quality, size, "share/%", "s/ep."):
        table.add_column(column, justify="right", no_wrap=True)
    for method, group in by_method(runs).items():
        table.add_row(
            escape(method),
            _mean_and_deviation([100 * (run.test_accuracy or 0) for run in group], "{:.2f}")
            if classes
            else _mean_and_deviation([run.test_loss for run in group], "{:.5f}"),
            _mean_and_deviation([100 * run.findings["multiply_adds"] for run in group], "{:.1f}")
            if counted
            else _mean_and_deviation([run.nonzero for run in group], "{:,.0f}"),
            _mean_and_deviation([100 * run.density for run in group], "{:.2f}"),
            _seconds(group),
        )
    console.print(table)


def _seconds(group: Sequence[Run]) -> str:
    timed = [run.seconds_per_epoch for run in group if run.seconds_per_epoch is not None]
    return f"{np.mean(timed):.2g}" if timed else "–"


def _mean_and_deviation(values: Sequence[float], form: str) -> str:
    spread = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + spread


def _plain(value: Any) -> float | int | None:
    number = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number


def provenance(*packages: str) -> dict[str, Any]:
    """Where a number comes from: the ``versions``, ``device`` and ``commit`` of summary.json.

    Args:
      *packages: further packages whose versions matter.
    """
    return {"versions": _versions(*packages), "device": device(), "commit": _commit()}


def _versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = bregjax.__version__ if package == "bregjax" else "unknown"
    return found


def device() -> str:
    """The device that JAX computes on, in words."""
    first, count = jax.devices()[0], jax.device_count()
    kind = first.device_kind
    if first.platform == "cpu":
        kind = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{first.platform} ({kind})" if count == 1 else f"{count} × {first.platform} ({kind})"


def _commit() -> str | None:
    """The commit of this checkout, with ``+`` if files have changed since."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    try:
        done = subprocess.run([*describe, "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
