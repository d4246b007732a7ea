"""Residual networks on CIFAR-10: the paper's comparison, and our recommendation."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine.objectives import classification, smoothed_classification
from benchmarks.engine.task import Task
from benchmarks.experiments.experiment import Experiment
from benchmarks.methods import Recipe, SparseStart, ToDensity
from benchmarks.methods.regularization import Penalty, Regularization, everywhere
from benchmarks.methods.schedules import Cosine, Plateau
from benchmarks.models import resnet18, resnet20
from benchmarks.report import figures, results
from bregjax import Regularizer, l1, per_filter, per_kernel, sparsity_report

_NETWORKS = {"resnet18": resnet18, "resnet20": resnet20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarResNet(Experiment):
    """ResNet-18 or ResNet-20 on CIFAR-10, in the paper's setting or in ours.

    --preset paper is the setting of Bungert et al. (JMLR 2022): a given strength λ, the plateau
    schedule and 1 % of the weights at the start, with ℓ1, groups of kernels and groups of filters.
    All baselines are trained beside it. --preset best asks for a density and steers to it; the
    dense network, gradual pruning and RigL get the same epochs, schedule and label smoothing.
    --preset ablation trains AdaBreg and LinBreg, exactly steered to one density, and changes one
    setting at a time. All use random crops and flips, and batches of 128.
    """

    name: ClassVar[str] = "cifar_resnet"
    dataset: ClassVar[str] = "cifar10"
    convolutional: ClassVar[bool] = True

    preset: Literal["paper", "best", "ablation"] = "paper"
    """The paper's setting, what we recommend, or our methods with one setting changed at a time."""
    network: Literal["resnet20", "resnet18"] = "resnet20"
    """ResNet-20 is narrow (0.27 million weights); ResNet-18 (11 million) needs a GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the computation; parameters, duals and statistics are float32."""
    all_images: bool = False
    """Train on the 2,500 validation images too; the curves then show the first test images."""
    density: tuple[float, ...] = (0.034,)
    """Shares of the weights that stay, for methods that can be told; several make a curve."""
    rate: float | None = None
    """Largest learning rate of AdaBreg and of Adam in --preset best; by default our optimizer's."""
    baseline_rate: float | None = None
    """Largest learning rate of SGD, and of pruning and RigL around it, in --preset best: 0.1."""
    epochs: int = 100
    seeds: int = 1

    @property
    def title(self) -> str:
        """The heading of table and figures."""
        return f"CIFAR-10, {self.network.replace('resnet', 'ResNet-')}, preset {self.preset}"

    def methods(self) -> list[Recipe]:
        """What the preset compares."""
        methods.check_shares("--density", self.density)
        for option, rate in {"--rate": self.rate, "--baseline-rate": self.baseline_rate}.items():
            if rate is not None:
                methods.check_rate(option, rate)
                if self.preset != "best":
                    raise BenchmarkError(
                        f"{option} is for --preset best, got --preset {self.preset}."
                    )
        if self.all_images and (self.select == "best" or self.patience is not None):
            raise BenchmarkError(
                "with --all-images there are no validation images: neither --select best nor"
                " --patience can choose by them."
            )
        if self.preset == "ablation":
            if len(self.density) != 1:
                raise BenchmarkError(
                    "--preset ablation is at one --density, got"
                    f" {' '.join(map(str, self.density)) or 'none'}."
                )
            return list(methods.ablation(self.density[0], self._warmup_epochs))
        return self._paper() if self.preset == "paper" else self._best()

    @property
    def _warmup_epochs(self) -> float:
        """The epochs over which the learning rate rises, except in the paper's setting."""
        return min(1.0, 0.1 * self.epochs)

    def _paper(self) -> list[Recipe]:
        start = SparseStart(0.01)
        rate, adaptive = Plateau(0.1), Plateau(1e-3)
        penalties = {
            "weights": _penalty(l1()),
            "kernels": _penalty(per_kernel()),
            "filters": _penalty(per_filter()),
        }
        ours = [
            dataclasses.replace(method, note=what)
            for what, penalty in penalties.items()
            for method in (
                methods.linbreg(rate, penalty, start=start),
                methods.linbreg(rate, penalty, start=start, momentum=0.9),
                methods.adabreg(adaptive, penalty, start=start),
            )
        ]
        baselines = [
            methods.sgd(rate, momentum=0.9),
            methods.adam(adaptive),
            # Our momentum is a mean, SGD's is a sum: ten times the rate gives the same steps.
            methods.prox_sgd(Plateau(1.0), everywhere(l1(), 1e-4), momentum=0.9),
            methods.lasso(rate, 1e-4, momentum=0.9),
        ]
        told = [
            method
            for density in self.density
            for method in methods.sparse_baselines(rate, density, momentum=0.9)
        ]
        return [*ours, *baselines, *told]

    def _best(self) -> list[Recipe]:
        warmup, decay = self._warmup_epochs, 5e-4
        sgd = Cosine(self.baseline_rate or 0.1, warmup_epochs=warmup)
        # By default Adam has the learning rate of `adabreg_to_density` for 625 steps and more.
        given = None if self.rate is None else Cosine(self.rate, warmup_epochs=warmup)
        adam = given or Cosine(1e-2, warmup_epochs=warmup, distance=0.5)
        return [
            methods.decayed(methods.sgd(sgd, momentum=0.9), decay),
            *(
                method
                for density in self.density
                for method in (
                    methods.linbreg_to_density(density, warmup, weight_decay=decay),
                    ToDensity(density, learning_rate=given),
                    methods.decayed(methods.gradual_pruning(sgd, density, momentum=0.9), decay),
                    methods.gradual_pruning(adam, density, adaptive=True),
                    methods.decayed(methods.rigl(sgd, density, momentum=0.9), decay),
                )
            ),
        ]

    def task(self, dataset: Dataset) -> Task:
        """The network, with random crops and flips."""
        build = _NETWORKS[self.network]
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
        return Task(
            dataset.all_for_training() if self.all_images else dataset,
            lambda rngs: build(dtype=dtype, rngs=rngs),
            batch_size=128,
            objective=classification if self.preset == "paper" else smoothed_classification,
            augment=crop_and_flip,
            steps_per_call=78 if self.all_images else 53,  # divide the steps of an epoch
            settings={
                "network": self.network,
                "precision": self.precision,
                "preset": self.preset,
                "all_images": self.all_images,
            },
        )

    def exhibits(self, task: Task, network: nnx.Module) -> dict[str, np.ndarray]:
        """The density of each layer."""
        del task
        layers = sparsity_report(network, ranks=False).layers
        return {
            layer.name.replace("/", "."): np.asarray(layer.density, np.float32) for layer in layers
        }

    def draw(self, out: Path) -> None:
        """The learning curves, accuracy over density, and the density of every layer.

        Of an ablation, which has one density, the accuracy of each method.
        """
        if self.preset == "ablation":
            order = [method.name for method in self.methods()]
            runs = [run for run in results.read_runs(out) if run.method in order]
            runs.sort(key=lambda run: order.index(run.method))
            figure = figures.accuracy_by_method(runs, self.title)
            return figures.save(figure, out, "accuracy_by_method")
        super().draw(out)
        figure = figures.accuracy_and_density(results.read_runs(out), self.title)
        figures.save(figure, out, "accuracy_and_density")
        layers = {
            # NNX sorts layers by name, which puts the first one last.
            method: dict(sorted(densities.items(), key=lambda item: "stem" not in item[0]))
            for method, densities in results.read_exhibits(out).items()
        }
        figure = figures.layer_densities(layers, self.title)
        figures.save(figure, out, "layer_densities")


def _penalty(conv: Regularizer) -> Regularization:
    """The paper's strength: groups for convolutions, ℓ1 for the classifier."""
    return Regularization({"conv": Penalty(conv, 0.1), "dense": Penalty(l1(), 0.1)})
