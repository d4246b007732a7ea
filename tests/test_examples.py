"""The examples run as they are, are short, and their networks learn."""

import runpy
from pathlib import Path

import jax
import pytest

import bregjax

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
DENSITIES = {"nnx_mlp": 0.05, "linen_mlp": 0.05, "equinox_conv": 0.1}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, capsys):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100
    with jax.numpy_dtype_promotion("standard"):
        names = runpy.run_path(str(path))
    assert names["accuracy"] > 0.93
    params = names.get("model") if path.stem == "nnx_mlp" else names["params"]
    params = names["state"].params if path.stem == "linen_mlp" else params
    if path.stem in DENSITIES:
        wanted = DENSITIES[path.stem]
        assert bregjax.sparsity_report(params).density == pytest.approx(wanted, abs=1e-3)
    else:
        alive = bregjax.density(params, bregjax.per_neuron(), mask=names["hidden"])
        assert alive == pytest.approx(0.25, abs=0.02)
    assert "unseen digits right" in capsys.readouterr().out


def test_the_list_of_examples_is_complete():
    text = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in EXAMPLES)
