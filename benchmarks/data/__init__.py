"""Datasets, and how batches are made of them."""

from benchmarks.data.datasets import Dataset, load
from benchmarks.data.prepared import Split, read_prepared

__all__ = ["Dataset", "Split", "load", "read_prepared"]
