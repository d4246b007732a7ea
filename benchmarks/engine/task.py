"""What is trained: a network, its data and the objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset
from benchmarks.engine.objectives import Objective, classification


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and the data that it is trained on."""

    dataset: Dataset
    build: Callable[[nnx.Rngs], nnx.Module]
    """makes the dense network"""
    batch_size: int = 128
    objective: Objective = classification
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """from a random key and a batch of inputs to the inputs that are trained on"""
    steps_per_call: int | None = None
    """training steps in one program; by default an epoch. Only between programs the progress bar
    moves, a signal stops the training and checkpoints are saved: set it where an epoch takes
    minutes."""
    epochs: int | None = None
    """passes over the training images, if the task has a fixed length"""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """how the network was built, for summary.json"""

    @property
    def steps(self) -> int:
        """Of an epoch; examples that do not fill a batch are left out, in each epoch other ones.

        Raises:
            BenchmarkError: if there are fewer images than in a batch.
        """
        images = len(self.dataset.train)
        if images < self.batch_size:
            raise BenchmarkError(
                f"--batch-size {self.batch_size} exceeds the {images} training images of"
                f" {self.dataset.name}."
            )
        return images // self.batch_size

    def shapes(self) -> nnx.Module:
        """The dense network in evaluation mode, with shapes in place of arrays."""
        network = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        network.eval()
        return network
