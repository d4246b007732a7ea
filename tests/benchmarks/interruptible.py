"""A training to be killed: ``python interruptible.py FOLDER RESULT`` (see test_interruption)."""

import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks import methods
from benchmarks.cli.interruption import Interrupted, Interruption
from benchmarks.data import load
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.task import Task
from benchmarks.engine.training import train
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Plateau
from benchmarks.models import MLP
from bregjax import l1

EPOCHS = 30


def main(folder: str, result_file: str) -> int:
    """Train, saving as often as possible, and write every number that came out."""
    task = Task(
        load("digits"),
        lambda rngs: MLP((64, 32, 10), rngs=rngs),
        batch_size=64,
        augment=lambda key, images: crop_and_flip(key, images, padding=1),
        steps_per_call=7,
    )
    method = methods.adabreg(
        Plateau(1e-2, patience=1), everywhere(l1(), 0.3), start=methods.SparseStart(0.1)
    )
    with Interruption() as stop:
        try:
            result = train(
                task,
                method.optimizer(EPOCHS, task.steps),
                seeds=[0, 1],
                epochs=EPOCHS,
                start=method.start,
                select="best",
                snapshot=lambda params: {"live": np.asarray(jax.tree.leaves(params)[1]) != 0},
                checkpoints=Checkpoints(Path(folder), {"method": method.name}, seconds=0),
                stop=lambda: bool(stop),
            )
        except Interrupted:
            return 3
    leaves = jax.tree.leaves((result.params, result.curve, result.test_loss, result.snapshots))
    np.savez(result_file, *[np.asarray(leaf) for leaf in leaves])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
