"""What the README shows is what happens."""

import re
from pathlib import Path

import jax
import numpy as np

import bregjax

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_fits_with_six_percent_of_the_weights(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(code, names)
    error = np.mean((names["model"](names["x"])[:, 0] - names["y"]) ** 2)
    assert error < 1e-3
    report = bregjax.sparsity_report(names["model"])
    assert 0.055 < report.density < 0.075
    assert str(report) in capsys.readouterr().out


def test_every_name_in_the_readme_exists():
    for name in re.findall(r"bregjax\.(\w+)", README):
        assert hasattr(bregjax, name), name
