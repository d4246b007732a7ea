"""What the commands about speed share: options, the table and summary.json."""

import dataclasses
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import rich.box
from rich.table import Table

from benchmarks.cli.options import named_by
from benchmarks.cli.progress import console
from benchmarks.report import results

T = TypeVar("T")
Row = dict[str, Any]
"""An entry of summary.json."""
Comparison = tuple[tuple[str, Any], tuple[str, Any]]
"""What is compared and its baseline, each with its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedCommand:
    """A command that measures how fast something is; a subclass has a method ``run``."""

    name: ClassVar[str]

    repeats: int = 20
    """How often each is timed."""
    seed: int = 0
    """Seed of the weights, the inputs and everything else that is random."""
    out: Path | None = None
    """Folder for summary.json and figures; by default out/NAME, with --quick out/NAME-quick."""
    only: tuple[str, ...] = ()
    """Time only what has one of these words in its name, and what it is compared with."""
    quick: bool = False
    """A trial of seconds, with three repeats."""

    @property
    def rounds(self) -> int:
        """How often each is timed in this run."""
        return 3 if self.quick else self.repeats

    def chosen(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """Those that --only asks for, by the names of what is compared, not of the baselines."""
        names = named_by(self.only, (name for (name, _), _ in comparisons))
        return [one for one in comparisons if one[0][0] in names]

    def chosen_beside(self, baseline: str, calls: dict[str, T]) -> dict[str, T]:
        """The baseline and what --only asks for."""
        names = [baseline, *named_by(self.only, calls)]
        return {name: call for name, call in calls.items() if name in names}

    def folder(self) -> Path:
        """The output folder; see `results.prepare_folder`."""
        return results.prepare_folder(self.out, self.name, quick=self.quick)

    def report(
        self, out: Path, rows: Iterable[Row], *tables: Table, packages: Sequence[str] = ()
    ) -> None:
        """Print the tables, and write the rows with where they come from to summary.json."""
        origin = results.provenance(*packages)
        results.write_summary(out, [{"experiment": self.name} | row | origin for row in rows])
        console.print(*tables)
        console.print(f"Results are in {out}.", soft_wrap=True)


class _Formatter(string.Formatter):
    """Leaves a cell empty where there is no value."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None else super().format_field(value, format_spec)


def table(rows: Iterable[Row], *columns: tuple[str, str], **options: Any) -> Table:
    """A table with a line for each row.

    Args:
      rows: the entries to show.
      *columns: for each column its heading and a format such as ``{milliseconds:.3g}``; a format
        without a colon is for text, which is aligned to the left.
      **options: such as its ``title``.
    """
    made = Table(box=rich.box.SIMPLE_HEAD, **options)
    for heading, form in columns:
        if ":" in form:
            made.add_column(heading, justify="right", no_wrap=True)
        else:
            made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(_Formatter().vformat(form, (), row) for _, form in columns))
    return made
