"""Progress bars, on standard error and gone when done."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

console = Console()
_error_console = Console(stderr=True)

T = TypeVar("T")


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Iterate over ``items`` behind a progress bar."""
    return rich_track(items, description=label, console=_error_console, transient=True)
