"""Datasets, and how batches are made of them."""

from benchmarks.data.datasets import Dataset, Split, load, read_prepared

__all__ = ["Dataset", "Split", "load", "read_prepared"]
