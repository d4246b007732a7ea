"""Figures, drawn from what an experiment wrote: PNG for the screen, PDF for print."""

from benchmarks.report.figures.architectures import architectures, restored_images
from benchmarks.report.figures.connections import surviving_connections
from benchmarks.report.figures.curves import (
    accuracy_along_path,
    accuracy_and_cost,
    accuracy_and_density,
    accuracy_and_time,
    accuracy_at_targets,
    accuracy_by_method,
    layer_densities,
    learning_curves,
    plot_curves,
    quality_and_speed,
    quality_at_densities,
    quality_over_steps,
    steering,
)
from benchmarks.report.figures.errors import error_and_weights
from benchmarks.report.figures.kernels import learned_kernels
from benchmarks.report.figures.optimizers import of_optimizers
from benchmarks.report.figures.spectra import singular_values
from benchmarks.report.figures.speedups import speedups
from benchmarks.report.figures.style import save
from benchmarks.report.figures.weights import appearing_weights

__all__ = [
    "accuracy_along_path",
    "accuracy_and_cost",
    "accuracy_and_density",
    "accuracy_and_time",
    "accuracy_at_targets",
    "accuracy_by_method",
    "appearing_weights",
    "architectures",
    "error_and_weights",
    "layer_densities",
    "learned_kernels",
    "learning_curves",
    "of_optimizers",
    "plot_curves",
    "quality_and_speed",
    "quality_at_densities",
    "quality_over_steps",
    "restored_images",
    "save",
    "singular_values",
    "speedups",
    "steering",
    "surviving_connections",
]
