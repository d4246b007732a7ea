"""Datasets as arrays: real images, whole in memory, split once and for all."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.errors import BenchmarkError
from benchmarks.progress import track

_CHUNK = 1000  # records decoded between two ticks of the progress bar
_SPLIT_SEED = 42


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (n, height, width, channels), uint8 in 0 … 255, and labels (n,), int32."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training, validation and test images; ``mean`` and ``std`` normalize pixels in [0, 1]."""

    name: str
    train: Split
    validation: Split
    test: Split
    mean: float
    std: float
    classes: int = 10


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a dataset by name.

    Args:
      name: ``digits`` (part of scikit-learn) or ``mnist`` (prepared by tfds).
      data_dir: where tfds keeps its prepared data; by default ``$TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.

    Returns:
        The `Dataset`; the split into training and validation images is always the same.

    Raises:
        BenchmarkError: if the name is unknown or the data missing or damaged.
    """
    if name not in _LOADERS:
        raise BenchmarkError(f"unknown dataset {name!r}; there are: {', '.join(sorted(_LOADERS))}.")
    return _LOADERS[name](data_dir)


def _split_off(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[Split, Split]:
    """A training and a validation split; the latter has ``size`` images, stratified by class."""
    rest, held_out = train_test_split(
        np.arange(len(labels)), test_size=size, random_state=_SPLIT_SEED, stratify=labels
    )
    rest, held_out = np.sort(rest), np.sort(held_out)
    return Split(images[rest], labels[rest]), Split(images[held_out], labels[held_out])


def _digits(data_dir: Path | None) -> Dataset:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin, Kaynak 1998)."""
    del data_dir
    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = _split_off(images, labels, 360)
    train, validation = _split_off(rest.images, rest.labels, 137)
    return Dataset("digits", train, validation, test, mean=0.3053, std=0.3759)


def _mnist(data_dir: Path | None) -> Dataset:
    """70,000 handwritten digits of 28×28 pixels; the split sizes of the paper."""
    images, labels = _read_tfds("mnist", "train", data_dir)
    train, validation = _split_off(images, labels, 3000)
    test = Split(*_read_tfds("mnist", "test", data_dir))
    return Dataset("mnist", train, validation, test, mean=0.1307, std=0.3081)


_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {"digits": _digits, "mnist": _mnist}


def _read_tfds(name: str, split: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    # tfds and absl log advice about other decoders, which is noise beside a progress bar.
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    folder = data_dir or Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))
    if not (folder / name).is_dir():
        raise BenchmarkError(
            f"{name} was not found in {folder}: name the folder of your tfds datasets with"
            " --data-dir or TFDS_DATA_DIR, or prepare it once with"
            f" 'pip install tensorflow && tfds build {name} --file_format=array_record'."
        )
    try:
        source: Any = tfds.data_source(name, split=split, data_dir=folder, download=False)
        records = []
        starts = range(0, len(source), _CHUNK)
        for start in track(starts, f"reading {name}/{split}"):
            stop = min(start + _CHUNK, len(source))
            records += source.__getitems__(range(start, stop))
        images = np.stack([record["image"] for record in records])
        labels = np.asarray([record["label"] for record in records], np.int32)
    except Exception as error:  # tfds, array_record and the decoder raise what they like
        reason = str(error).strip().partition("\n")[0][:200]
        raise BenchmarkError(
            f"{name}/{split} in {folder} cannot be read ({type(error).__name__}: {reason}):"
            f" delete {folder / name} and prepare it again."
        ) from error
    return images, labels
