"""Experiments with bregjax on real data: ``python -m benchmarks NAME``."""

import os

# OpenBLAS, which computes decompositions on the CPU, would leave threads behind that wait in a loop
# on the cores that XLA needs: a step with a small decomposition takes up to 20 ms longer.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
