"""Networks without their dead units: smaller, and the same function of fresh inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bregjax
from benchmarks.models.convolution import convolution

DEAD = 0.5


class Case(NamedTuple):
    build: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    layers: Sequence[str] = ()
    """whose outputs are killed at random"""
    shrinks: bool = True
    tokens: int | None = None


class Layers(nnx.Module):
    """Layers by name, and a function of them and of the inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: nnx.Module):
        self.forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs):
        return self.forward(self, *inputs)


def build(forward: Callable[..., Any], **makers: Callable[[nnx.Rngs], nnx.Module]):
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return Layers(forward, **{name: maker(rngs) for name, maker in makers.items()})

    return make


def of(layer: Any, *args: Any, **kwargs: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    return lambda rngs: layer(*args, **kwargs, rngs=rngs)


linear = functools.partial(of, nnx.Linear)
conv = functools.partial(of, nnx.Conv, kernel_size=(3, 3))


def chain(*functions: Callable | None):
    """relu between named layers a, b, c …, or the functions given."""

    def forward(m: Any, x: jax.Array) -> jax.Array:
        for name, function in zip("abcdefgh", functions, strict=False):
            x = getattr(m, name)(x)
            x = function(x) if function else x
        return x

    return forward


def flat(x: jax.Array) -> jax.Array:
    return nnx.relu(x).reshape(x.shape[0], -1)


def mean_pool(x: jax.Array) -> jax.Array:
    return nnx.relu(x).mean((1, 2))


def pooled(x: jax.Array) -> jax.Array:
    return nnx.max_pool(nnx.relu(x), (2, 2), strides=(2, 2))


def averaged(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))


def residual(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    return m.d(nnx.relu(x + m.c(nnx.relu(m.b(x)))))


def projected(m: Any, x: jax.Array) -> jax.Array:
    return m.d(flat(m.shortcut(x) + m.b(nnx.relu(m.a(x)))))


def dense_block(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    x = jnp.concatenate([x, nnx.relu(m.b(x))], axis=-1)
    x = jnp.concatenate([x, nnx.relu(m.c(x))], axis=-1)
    return m.d(flat(x))


def branches(m: Any, x: jax.Array) -> jax.Array:
    return m.c(jnp.concatenate([nnx.relu(m.a(x)), nnx.tanh(m.b(x))], axis=-1))


def gated(m: Any, x: jax.Array) -> jax.Array:
    value, gate = jnp.split(m.a(x), 2, axis=-1)
    return m.b(value * nnx.sigmoid(gate))


def two_gates(m: Any, x: jax.Array) -> jax.Array:
    return m.c(m.a(x) * nnx.silu(m.b(x)))


def shared(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    return m.c(nnx.relu(m.b(nnx.relu(m.b(x)))))


def bag(m: Any, tokens: jax.Array) -> jax.Array:
    return m.b(nnx.relu(m.a(m.embed(tokens).mean(1))))


def tied(m: Any, tokens: jax.Array) -> jax.Array:
    return m.embed.attend(m.b(nnx.relu(m.a(m.embed(tokens)))))


def block(m: Any, x: jax.Array) -> jax.Array:
    x = x + m.attention(m.norm1(x))
    return x + m.b(nnx.gelu(m.a(m.norm2(x))))


def recurrent(m: Any, x: jax.Array) -> jax.Array:
    def step(h, x):
        h = nnx.relu(m.a(x) + m.b(h))
        return h, h

    start = jnp.zeros((x.shape[0], m.b.kernel[...].shape[0]))
    h, hs = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return m.c(h) + m.c(hs[0])


def scaled(m: Any, x: jax.Array) -> jax.Array:
    return m.b(nnx.relu(m.norm(m.a(x))))


def two_inputs(m: Any, x: jax.Array) -> jax.Array:
    left, right = x[:, :4], x[:, 4:]
    return m.c(nnx.relu(m.a(left)) - 2 * jnp.abs(m.b(right)))


CASES = {
    "mlp": Case(
        build(chain(nnx.relu, nnx.relu, None), a=linear(6, 20), b=linear(20, 16), c=linear(16, 3)),
        (6,),
        "ab",
    ),
    "mlp without biases": Case(
        build(
            chain(nnx.relu, None), a=linear(6, 20, use_bias=False), b=linear(20, 3, use_bias=False)
        ),
        (6,),
        "a",
    ),
    "sigmoids, which put out a half": Case(
        build(chain(nnx.sigmoid, None), a=linear(6, 20), b=linear(20, 3)), (6,), "a"
    ),
    "softplus, gelu": Case(
        build(
            chain(nnx.softplus, nnx.gelu, None),
            a=linear(6, 20),
            b=linear(20, 12),
            c=linear(12, 3),
        ),
        (6,),
        "ab",
    ),
    "dropout": Case(
        build(
            chain(nnx.relu, None, None), a=linear(6, 20), b=of(nnx.Dropout, 0.5), c=linear(20, 3)
        ),
        (6,),
        "a",
    ),
    "conv, flatten": Case(
        build(chain(nnx.relu, flat, None), a=conv(2, 8), b=conv(8, 6), c=linear(384, 3)),
        (8, 8, 2),
        "ab",
    ),
    "conv without padding": Case(
        build(
            chain(nnx.relu, flat, None),
            a=conv(2, 8, padding="VALID"),
            b=conv(8, 6, padding="VALID"),
            c=linear(96, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "strided": Case(
        build(chain(nnx.relu, flat, None), a=conv(2, 8, strides=2), b=conv(8, 6), c=linear(96, 3)),
        (8, 8, 2),
        "ab",
    ),
    "dilated": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8, kernel_dilation=2),
            b=conv(8, 6),
            c=linear(6, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "one-dimensional": Case(
        build(
            chain(nnx.relu, flat, None),
            a=of(nnx.Conv, 3, 8, kernel_size=3),
            b=of(nnx.Conv, 8, 4, kernel_size=3),
            c=linear(32, 3),
        ),
        (8, 3),
        "ab",
    ),
    "depthwise": Case(
        build(
            chain(nnx.relu, nnx.relu, mean_pool, None),
            a=conv(2, 8, use_bias=False),
            b=conv(8, 8, feature_group_count=8, use_bias=False),
            c=of(nnx.Conv, 8, 6, kernel_size=(1, 1)),
            d=linear(6, 3),
        ),
        (8, 8, 2),
        "ac",
    ),
    "groups of channels stay": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8),
            b=conv(8, 8, feature_group_count=2),
            c=linear(8, 3),
        ),
        (8, 8, 2),
        "a",
        shrinks=False,
    ),
    "transposed": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8),
            b=of(nnx.ConvTranspose, 8, 4, kernel_size=(3, 3)),
            c=linear(4, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "batch norm": Case(
        build(
            chain(None, nnx.relu, None, flat, None),
            a=conv(2, 8, use_bias=False),
            b=of(nnx.BatchNorm, 8),
            c=conv(8, 6, use_bias=False),
            d=of(nnx.BatchNorm, 6),
            e=linear(384, 3),
        ),
        (8, 8, 2),
        "ac",
    ),
    "pools": Case(
        build(chain(pooled, averaged, None), a=conv(2, 8), b=conv(8, 6), c=of(nnx.Linear, 6, 3)),
        (8, 8, 2),
        "ab",
    ),
    "residual": Case(
        build(residual, a=linear(6, 16), b=linear(16, 20), c=linear(20, 16), d=linear(16, 3)),
        (6,),
        "b",
    ),
    "residual with projection": Case(
        build(projected, a=conv(2, 8), b=conv(8, 6), shortcut=conv(2, 6), d=linear(384, 3)),
        (8, 8, 2),
        "a",
    ),
    "concatenated channels": Case(
        build(dense_block, a=conv(2, 6), b=conv(6, 4), c=conv(10, 4), d=linear(896, 3)),
        (8, 8, 2),
        "abc",
    ),
    "branches": Case(
        build(branches, a=linear(6, 10), b=linear(6, 12), c=linear(22, 3)), (6,), "ab"
    ),
    "gates of two layers": Case(
        build(two_gates, a=linear(6, 16), b=linear(6, 16), c=linear(16, 3)), (6,), "a"
    ),
    "shared weights": Case(
        build(shared, a=linear(6, 12), b=linear(12, 12), c=linear(12, 3)), (6,), "ab"
    ),
    "embedding": Case(
        build(bag, embed=of(nnx.Embed, 11, 8), a=linear(8, 12), b=linear(12, 3)),
        (5,),
        ("embed", "a"),
        tokens=11,
    ),
    "tied embedding": Case(
        build(tied, embed=of(nnx.Embed, 11, 8), a=linear(8, 12), b=linear(12, 8)),
        (5,),
        "a",
        tokens=11,
    ),
    "transformer block": Case(
        build(
            block,
            norm1=of(nnx.LayerNorm, 8),
            attention=of(nnx.MultiHeadAttention, 4, 8, decode=False),
            norm2=of(nnx.LayerNorm, 8),
            a=linear(8, 24),
            b=linear(24, 8),
        ),
        (5, 8),
        ("a", "heads"),
    ),
    "recurrent": Case(
        build(recurrent, a=linear(4, 10), b=linear(10, 10), c=linear(10, 3)), (6, 4), "ab"
    ),
    "layer norm over units stays": Case(
        build(scaled, a=linear(6, 12), norm=of(nnx.LayerNorm, 12), b=linear(12, 3)),
        (6,),
        "a",
        shrinks=False,
    ),
    "differences": Case(
        build(two_inputs, a=linear(4, 10), b=linear(4, 10), c=linear(10, 3)), (8,), "ab"
    ),
    "convolution in a loop of patches": Case(
        build(
            chain(nnx.relu, flat, None),
            a=conv(2, 8, conv_general_dilated=convolution),
            b=conv(8, 6, conv_general_dilated=convolution),
            c=linear(384, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "bfloat16": Case(
        build(
            chain(nnx.relu, None),
            a=linear(6, 20, param_dtype=jnp.bfloat16),
            b=linear(20, 3, param_dtype=jnp.bfloat16),
        ),
        (6,),
        "a",
    ),
}


def inputs(case: Case, seed: int, n: int = 3) -> jax.Array:
    key = jax.random.key(seed)
    if case.tokens:
        return jax.random.randint(key, (n, *case.shape), 0, case.tokens)
    return jax.random.normal(key, (n, *case.shape))


def kill(model: Any, case: Case, seed: int) -> None:
    """Half of the outputs of the named layers put out nothing, or what their biases say."""
    rng = np.random.default_rng(seed)
    dead: dict[int, np.ndarray] = {}
    for name in case.layers:
        if name == "heads":
            attention = model.attention
            for variable in (attention.value.kernel, attention.value.bias):
                variable[...] = variable[...].at[..., 1:3, :].set(0)
            continue
        layer = getattr(model, name)
        variable = layer.embedding if name == "embed" else layer.kernel
        size = variable[...].shape[-1]
        marks = dead.setdefault(size, rng.permutation(size) < DEAD * size)
        if name == "b" and "shared" in str(getattr(model.forward, "__name__", "")):
            marks = dead[size]
        variable[...] = jnp.where(marks, 0, variable[...])
        bias = getattr(layer, "bias", None)
        if bias is not None and bias[...] is not None:
            bias[...] = jnp.where(marks, 0, rng.normal(size=size)).astype(bias[...].dtype)


def randomized(model: Any, seed: int) -> None:
    """Statistics and scales of norms that are not those of the start."""
    key = jax.random.key(seed)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            size = module.num_features
            module.mean[...] = 0.3 * jax.random.normal(key, (size,))
            module.var[...] = 0.5 + jax.random.uniform(key, (size,))
            assert module.scale is not None
            module.scale[...] = 0.5 + jax.random.uniform(key, (size,))


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_network_is_the_same_function(name):
    case = CASES[name]
    with jax.numpy_dtype_promotion("standard"):
        model: Any = case.build(nnx.Rngs(0))
        model.eval()
        randomized(model, 5)
        kill(model, case, 1)
        if name == "batch norm":  # what a dead filter puts out is then 0 behind the ReLU
            for norm in (model.b, model.d):
                norm.bias[...] = jnp.minimum(norm.bias[...], norm.scale[...] * norm.mean[...])
        smaller, report, kept = bregjax.shrink(model, inputs(case, 2))
        fresh = inputs(case, 3, 7)
        expected = model(fresh)
        got = smaller(fresh)
    scale = float(jnp.abs(expected).max())
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=tolerance * scale
    )
    assert (report.parameters[1] < report.parameters[0]) == case.shrinks, str(report)
    total = sum(x.size for x in jax.tree.leaves(nnx.state(smaller, nnx.Param)))
    stats = sum(x.size for x in jax.tree.leaves(nnx.state(smaller, nnx.BatchStat)))
    assert report.parameters[1] == total + stats
    assert set(kept) == {array.name for array in report.arrays}
    if not case.shrinks:
        assert any(array.stays for array in report.arrays)
