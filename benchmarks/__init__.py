"""Experiments with bregjax on real data: ``python -m benchmarks NAME``."""
