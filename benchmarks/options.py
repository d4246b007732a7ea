"""Checks of the command line's options that several commands have."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.errors import BenchmarkError


def check_counts(command: Any, *options: str) -> None:
    """Raises `BenchmarkError` if one of these options of the command is given and below 1."""
    for option in options:
        value = getattr(command, option)
        if value is not None and value < 1:
            flag = option.replace("_", "-")
            raise BenchmarkError(f"--{flag} must be at least 1, got {value}.")


def named_by(only: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names with one of the words of ``--only`` in them, or all where it is not given.

    Raises:
        BenchmarkError: if there is none.
    """
    names = list(names)
    found = [name for name in names if not only or any(word in name for word in only)]
    if not found:
        raise BenchmarkError(f"--only {' '.join(only)}: there are only {', '.join(names)}.")
    return found
