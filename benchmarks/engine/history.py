"""What a training has measured so far, epoch by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.engine.programs import EpochMetrics


class History:
    """What was measured so far; ``as_dict`` gives the constructor's arguments, for checkpoints."""

    def __init__(
        self,
        rows: Mapping[str, np.ndarray] | None = None,
        seconds: Sequence[float] = (),
        snapshots: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        elapsed: float | np.ndarray = 0.0,
    ):
        # Checkpoints do not keep the order of names.
        columns = [rows[name] for name in EpochMetrics._fields] if rows else []
        self._rows = [EpochMetrics(*row) for row in zip(*columns, strict=True)]
        self.seconds = list(seconds)
        self.elapsed = float(elapsed)
        self.snapshots = {
            name: {int(epoch): array for epoch, array in kept.items()}
            for name, kept in (snapshots or {}).items()
        }

    def add(
        self,
        epoch: int,
        metrics: EpochMetrics,
        snapshot: Mapping[str, np.ndarray],
        seconds: float = np.nan,
    ) -> None:
        """Add a row; for epoch 0, before any training, the training loss and accuracy are NaN."""
        if epoch == 0:
            untrained = np.full_like(metrics.train_loss, np.nan)
            metrics = metrics._replace(train_loss=untrained, train_accuracy=untrained)
        self._rows.append(jax.device_get(metrics))
        self.seconds.append(seconds)
        for name, array in snapshot.items():
            self.snapshots.setdefault(name, {})[epoch] = array

    def curve(self) -> EpochMetrics:
        """The rows, stacked."""
        return EpochMetrics(*(np.stack(column) for column in zip(*self._rows, strict=True)))

    def seconds_per_epoch(self) -> float:
        """The median; NaN if no epoch was timed."""
        timed = [s for s in self.seconds if not np.isnan(s)]
        return float(np.median(timed)) if timed else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The arguments that make the same object."""
        arguments = {
            "rows": self.curve()._asdict(),
            "seconds": np.asarray(self.seconds),
            "elapsed": np.asarray(self.elapsed),
        }
        snapshots = {
            name: {str(epoch): array for epoch, array in kept.items()}
            for name, kept in self.snapshots.items()
        }
        return arguments | ({"snapshots": snapshots} if snapshots else {})
