"""Shrunk networks as ONNX files: jax2onnx writes them, onnxruntime gets the same outputs.

jax2onnx wants an older orbax-checkpoint than the benchmarks, so that the two do not share an
environment: ``pip install -e '.[onnx]' hypothesis pytest-xdist`` and
``pytest tests/test_onnx.py``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

import bregjax
from benchmarks.models import MLP, SmallConvNet, resnet20
from benchmarks.models.resnet import ResidualBlock

pytest.importorskip("jax2onnx", reason="needs the extra onnx")


class Case(NamedTuple):
    build: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    functions: tuple[type, ...] = ()
    """classes that become functions of the ONNX graph"""


CASES = {
    "mlp": Case(lambda rngs: MLP((784, 200, 80, 10), rngs=rngs), (784,)),
    "convnet": Case(lambda rngs: SmallConvNet(28, normalized=True, rngs=rngs), (28, 28, 1)),
    "resnet20": Case(lambda rngs: resnet20(rngs=rngs), (32, 32, 3), (ResidualBlock,)),
}


def hidden(params: Any) -> Any:
    """The kernels of all layers but the last."""
    return jax.tree.map(lambda x: x.ndim > 1 and x.shape[-1] != 10, params)


# What jax2onnx and its parts warn of is theirs.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_gets_what_jax_gets(name, tmp_path):
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from jax2onnx import onnx_function, to_onnx  # pyright: ignore[reportMissingImports]

    build, shape, functions = CASES[name]
    model = build(nnx.Rngs(0))
    params, key = nnx.state(model, nnx.Param), jax.random.key(0)
    params = bregjax.sparsify(key, params, 0.25, groups=bregjax.per_filter(), mask=hidden)
    nnx.update(model, params)
    smaller, report, _ = bregjax.shrink(model, jax.random.normal(key, (2, *shape)))
    assert report.bytes[1] < 0.4 * report.bytes[0]
    for part in functions:
        onnx_function(part)
    path = tmp_path / "network.onnx"
    to_onnx(smaller, [("batch", *shape)], return_mode="file", output_path=path)
    assert path.stat().st_size < 0.6 * report.bytes[0]
    session = onnxruntime.InferenceSession(path)
    for size in (1, 5):
        x = jax.random.normal(jax.random.key(size), (size, *shape))
        (got,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
        expected = smaller(x)
        np.testing.assert_allclose(got, expected, atol=1e-5 * float(abs(expected).max()))
