"""The figures that README quotes, on the real images; minutes long."""

import json

import numpy as np
import pytest
from test_data import MNIST_DIR, needs_mnist

from benchmarks.__main__ import main


@needs_mnist
@pytest.mark.slow
def test_mnist_mlp_reaches_the_quoted_accuracy_and_sparsity(tmp_path):
    arguments = ["--seeds", "3", "--data-dir", str(MNIST_DIR), "--out", str(tmp_path)]
    assert main(["mnist_mlp", *arguments]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())

    def mean(method: str, field: str) -> float:
        values = [run[field] for run in runs if run["method"] == method]
        assert len(values) == 3
        return float(np.mean(values))

    assert mean("LinBreg λ=0.001", "test_accuracy") >= 0.978
    assert mean("LinBreg λ=0.1", "test_accuracy") >= 0.972
    assert mean("LinBreg λ=0.1", "density") <= 0.09
    assert mean("AdaBreg λ=0.1→1.2", "test_accuracy") >= 0.98
    assert mean("AdaBreg λ=0.1→1.2", "density") <= 0.05
    assert mean("AdaBreg λ=0.3→2.4", "test_accuracy") >= 0.98
    assert mean("AdaBreg λ=0.3→2.4", "density") <= 0.025
