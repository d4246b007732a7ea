"""Options of the command line that several commands have, and their checks."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.cli.errors import BenchmarkError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every experiment that trains networks can be told.

    Each experiment has its own defaults for these two, so they are explained here, for all of them.

    Attributes:
      epochs: Passes over the training examples.
      seeds: Number of runs of each method, each with its own initial weights and order of examples.
    """

    epochs: int = 30
    seeds: int = 5
    seed: int = 0
    """The first seed; the runs take the seeds from here on."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for summary.json, metrics.jsonl and the figures; by default out/NAME, with --quick
    out/NAME-quick."""
    images: int | None = None
    """Train on the first so many images only, where time is short; by default on all."""
    batch_size: int | None = None
    """Images in a training batch; by default those of the paper, or of the experiment's page."""
    quick: bool = False
    """A trial: at most two epochs, one seed, 2,000 images to train on and 500 to test,
    with strengths in proportion to the number of steps."""
    select: Literal["last", "best"] = "last"
    """Which network is tested: that of the last epoch, or the best on the validation images."""
    patience: int | None = None
    """Stop a method when no seed has improved on the validation images for so many epochs."""
    only: tuple[str, ...] = ()
    """Only the methods with one of these words in their names; results of others are kept."""
    restart: bool = False
    """Discard what an interrupted run has saved; by default the run goes on from there."""
    checkpoint_seconds: float = 30.0
    """At least so long between two checkpoints of a method."""
    minutes: float | None = None
    """Begin no method that would not end within so many minutes, judged by the last one."""
    redraw: bool = False
    """Only draw the figures again, from what an earlier run left in the folder."""


def check_counts(command: Any, *options: str) -> None:
    """Raises `BenchmarkError` if one of these options of the command is given and below 1."""
    for option in options:
        value = getattr(command, option)
        if value is not None and value < 1:
            flag = option.replace("_", "-")
            raise BenchmarkError(f"--{flag} must be at least 1, got {value}.")


def named_by(only: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names with one of the words of ``--only`` in them, or all where it is not given.

    Capitals do not matter, and ``l1`` finds ℓ1.

    Raises:
        BenchmarkError: if there is none.
    """
    names = list(names)
    words = [_typed(word) for word in only]
    found = [name for name in names if not only or any(word in _typed(name) for word in words)]
    if not found:
        raise BenchmarkError(f"--only {' '.join(only)}: there are only {', '.join(names)}.")
    return found


def _typed(text: str) -> str:
    """As one types it on a keyboard."""
    return text.casefold().replace("ℓ", "l")
