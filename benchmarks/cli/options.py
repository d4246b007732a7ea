"""Options that several commands have, and checks of options."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.cli.errors import BenchmarkError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of every experiment that trains networks.

    Each experiment has its own defaults for these two, so they are explained here, for all of them.

    Attributes:
      epochs: Passes over the training examples.
      seeds: Number of runs of each method, each with its own initial weights and order of examples.
    """

    epochs: int = 30
    seeds: int = 5
    seed: int = 0
    """The first seed; the runs use this one and those after it."""
    data_dir: Path | None = None
    """Folder of the tfds datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for summary.json, metrics.jsonl and the figures; by default out/NAME, with --quick
    out/NAME-quick."""
    images: int | None = None
    """Train only on this many images, the first ones, to save time; by default on all."""
    batch_size: int | None = None
    """Images in a training batch; the default is that of the paper or of the experiment's page."""
    quick: bool = False
    """A trial: at most two epochs, one seed, 2,000 images to train on and 500 for tests;
    strengths are reduced in proportion to the number of steps."""
    select: Literal["last", "best"] = "last"
    """Which network is tested: that of the last epoch, or the best one on the validation images."""
    patience: int | None = None
    """Stop a method when no seed has improved on the validation images for this many epochs."""
    only: tuple[str, ...] = ()
    """Train only the methods with one of these words in their names; results of others are kept."""
    restart: bool = False
    """Discard what an interrupted run has saved; by default the run continues from there."""
    checkpoint_seconds: float = 30.0
    """The shortest time between two checkpoints of a method."""
    redraw: bool = False
    """Only draw the figures again, from the results of an earlier run in the folder."""


def check_counts(command: Any, *options: str) -> None:
    """Raises `BenchmarkError` if one of these options is given and is below 1."""
    for option in options:
        value = getattr(command, option)
        if value is not None and value < 1:
            flag = option.replace("_", "-")
            raise BenchmarkError(f"--{flag} must be at least 1, got {value}.")


def named_by(only: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that contain one of the words of ``--only``; without this option, all names.

    Case does not matter, and ``l1`` finds ℓ1.

    Raises:
        BenchmarkError: if there is no such name.
    """
    names = list(names)
    words = [_typed(word) for word in only]
    found = [name for name in names if not only or any(word in _typed(name) for word in words)]
    if not found:
        raise BenchmarkError(f"--only {' '.join(only)}: there are only {', '.join(names)}.")
    return found


def _typed(text: str) -> str:
    """The text as one would type it on a keyboard."""
    return text.casefold().replace("ℓ", "l")
