"""Images that tfds has prepared."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.progress import track

_CHUNK = 1000  # records decoded between two ticks of the progress bar


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs of a network and the outputs that it should have, one row for each example.

    Inputs are images (n, height, width, channels), uint8 in 0 … 255 or float32 in about [0, 1];
    targets are labels (n,), int32, or float32 images.
    """

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs[index], self.targets[index]


def default_folder() -> Path:
    """Where tfds keeps its datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))


def read_prepared(name: str, split: str, data_dir: Path | None = None) -> Split:
    """All images and labels of a split that tfds has prepared.

    Args:
      name: the dataset, as tfds calls it.
      split: ``train`` or ``test``.
      data_dir: as in `load`.

    Raises:
        BenchmarkError: if the data is missing or damaged.
    """
    folder = data_dir or default_folder()
    prepare = (
        f"'pip install tensorflow && tfds build {name} --data_dir={folder}"
        " --file_format=array_record'"
    )
    if not (folder / name).is_dir():
        raise BenchmarkError(
            f"{name} was not found in {folder}: name the folder of your tfds datasets"
            f" with --data-dir or TFDS_DATA_DIR, or prepare it once with {prepare}."
        )
    # tfds and absl log advice about other decoders, which would disturb the progress bar.
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    records: list[dict[str, Any]] = []
    try:
        source: Any = tfds.data_source(name, split=split, data_dir=folder, download=False)
        for start in track(range(0, len(source), _CHUNK), f"reading {name}/{split}"):
            records += source.__getitems__(range(start, min(start + _CHUNK, len(source))))
    except Exception as error:  # tfds, array_record and the decoder raise what they like
        reason = str(error).strip().partition("\n")[0][:200]
        raise BenchmarkError(
            f"{name}/{split} in {folder} cannot be read ({type(error).__name__}: {reason}):"
            f" delete {folder / name} and prepare it again with {prepare}."
        ) from error
    images = np.stack([record["image"] for record in records])
    return Split(images, np.asarray([record["label"] for record in records], np.int32))
