"""Progress on standard error: bars in a terminal, single lines in a log file."""

import time
from collections.abc import Iterable, Sequence
from typing import Self, TypeVar

import rich.progress
from rich.console import Console

console = Console()
_error_console = Console(stderr=True)
_SECONDS_BETWEEN_LINES = 30.0

T = TypeVar("T")


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Iterate over ``items`` behind a progress bar."""
    return rich.progress.track(items, description=label, console=_error_console, transient=True)


class Progress:
    """A context that shows the progress of a training: a bar with the latest figures.

    Where standard error is not a terminal, as in a log file, it prints a line every half minute.
    """

    def __init__(self, label: str, *, total: int, done: int = 0):
        self._label = label
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            console=_error_console,
            transient=True,
            disable=not _error_console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, figures="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, steps: int) -> None:
        """Note that this many further training steps are done."""
        self._bar.advance(self._task, steps)

    def report(self, epoch: int, figures: str) -> None:
        """Show what was measured after an epoch."""
        self._bar.update(self._task, figures=f"epoch {epoch}: {figures}")
        now = time.monotonic()
        if not _error_console.is_terminal and now - self._last_line > _SECONDS_BETWEEN_LINES:
            _error_console.print(f"{self._label}: epoch {epoch}: {figures}", soft_wrap=True)
            self._last_line = now
