"""Trainings of several lengths, counted in steps."""

import dataclasses
import math
from collections.abc import Iterator

from benchmarks import data
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.networks import ExperimentOnNetworks
from benchmarks.experiments.trainer import QUICK_EPOCHS, Case, cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentOnLengths(ExperimentOnNetworks):
    """An experiment that trains every method for several numbers of steps.

    Epochs are made shorter so that the last one ends with the last step: all have the same images,
    the first ones. A training in parts has equal ones, of which only one is compiled.

    Attributes:
      steps: The lengths of the trainings in steps, at least, with --quick at most two epochs;
        --epochs is not used.
    """

    steps: tuple[int, ...]

    def cases(self) -> Iterator[Case]:
        """Each method for each number of steps; `methods` sees in ``epochs`` how many these are."""
        if self.epochs != type(self).epochs:
            raise BenchmarkError(f"give --steps instead of --epochs, got --epochs {self.epochs}.")
        if min(self.steps, default=0) < 1:
            raise BenchmarkError(
                f"--steps must be at least 1, got {' '.join(map(str, self.steps)) or 'none'}."
            )
        whole = cut(self.task(data.load(self.dataset, self.data_dir)), self)
        longest = QUICK_EPOCHS * whole.steps if self.quick else max(self.steps)
        for steps in dict.fromkeys(min(steps, longest) for steps in self.steps):
            epochs = math.ceil(steps / whole.steps)
            in_epoch = math.ceil(steps / epochs)
            parts = math.ceil(in_epoch / (whole.steps_per_call or in_epoch))
            in_part = math.ceil(in_epoch / parts)
            task = dataclasses.replace(
                whole,
                dataset=whole.dataset.first(parts * in_part * whole.batch_size, None),
                steps_per_call=in_part,
                epochs=epochs,
                settings=whole.settings | {"steps": steps},
            )
            for method in dataclasses.replace(self, epochs=epochs).methods():
                yield f"{method.name}, {steps:,} steps", task, method
