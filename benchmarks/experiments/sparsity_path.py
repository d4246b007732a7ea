"""A path of strengths in one program: accuracy over sparsity, and which strength to choose."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.mnist import MnistExperiment
from benchmarks.methods import Method, Recipe, SparseStart
from benchmarks.methods.regularization import Rising, everywhere
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results
from bregjax import l1, sparsest_within

_ALONE = "alone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityPath(MnistExperiment):
    """Which strength is the right one? Many of them are tried at once on the MNIST MLP.

    AdaBreg is trained with strengths that rise to λ, for a grid of λ (times the seeds) side by side
    in one program, which is spread over all devices. The middle λ is also trained alone, to compare
    the cost. The sparsest network whose validation accuracy is within the tolerance of the best is
    named.
    """

    name: ClassVar[str] = "sparsity_path"

    epochs: int = 20
    seeds: int = 1
    strengths: int = 16
    """The number of λ, from --weakest to --strongest in equal ratios."""
    weakest: float = 0.05
    """The smallest λ."""
    strongest: float = 5.0
    """The largest λ."""
    tolerance: float = 0.003
    """How far the validation accuracy of the chosen network may be below the best (a fraction)."""

    def methods(self) -> list[Recipe]:
        """The path, and one strength of it alone."""
        if self.strengths < 2 or not 0 < self.weakest < self.strongest:
            raise BenchmarkError(
                "a path needs at least two strengths with 0 < weakest < strongest, got"
                f" --strengths {self.strengths} --weakest {self.weakest} --strongest"
                f" {self.strongest}."
            )
        if not self.tolerance >= 0:
            raise BenchmarkError(f"--tolerance must be at least 0, got {self.tolerance}.")
        grid = np.geomspace(self.weakest, self.strongest, self.strengths)
        strengths = tuple(float(f"{strength:.3g}") for strength in grid)
        if len(set(strengths)) < len(strengths):
            raise BenchmarkError(
                f"--strengths {self.strengths} between {self.weakest} and {self.strongest} are too"
                " many: some are equal to three digits."
            )
        at = partial(_adabreg, SparseStart(0.01, gain=0.7))
        middle = at(strengths[len(strengths) // 2])
        return [
            methods.Path("AdaBreg path", at, strengths),
            dataclasses.replace(middle, note=_ALONE),
        ]

    def remarks(self, runs: Sequence[results.Run]) -> Iterator[str]:
        """The choice, and the cost of the path."""
        path = [run for run in runs if _ALONE not in run.kind]
        if path:
            means = results.means(path)
            scores = [mean.validation_accuracy for mean in means]
            chosen = means[sparsest_within(scores, [m.density for m in means], self.tolerance)]
            yield (
                f"Sparsest within {100 * self.tolerance:g} points of the best on the validation"
                f" images: {chosen.method}, {100 * chosen.density:.2f} % of the weights, test"
                f" accuracy {100 * chosen.test_accuracy:.2f} %."
            )
        alone = [run for run in runs if _ALONE in run.kind]
        if path and alone and path[0].seconds_per_epoch and alone[0].seconds_per_epoch:
            ratio = path[0].seconds_per_epoch / alone[0].seconds_per_epoch
            yield (
                f"The path of {len(path)} runs in one program costs {ratio:.2f} times as much as"
                " so many runs alone."
            )

    def draw(self, out: Path) -> None:
        """Accuracy along the path."""
        runs = [r for r in results.read_runs(out) if _ALONE not in r.kind]
        if runs:
            figure = figures.accuracy_along_path(runs, self.title, self.tolerance)
            figures.save(figure, out, "accuracy_along_path")


def _adabreg(start: SparseStart, strength: float) -> Method:
    rising = Rising(0.1 * strength, strength)
    return methods.adabreg(Cosine(5e-3), everywhere(l1(), rising), start=start)
