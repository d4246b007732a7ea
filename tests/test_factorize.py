"""Layers of low rank become two thin ones with the same outputs."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bregjax


def set_rank(layer, rank: int, row_axes=None) -> None:
    regularizer = bregjax.nuclear(rank=rank, row_axes=row_axes)
    layer.kernel[...] = regularizer.prox(layer.kernel[...], 1e-3)
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(layer.bias.size, dtype=jnp.float32)


def weights(model) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)) if x.ndim >= 2)


def assert_same_outputs(model, smaller, x) -> None:
    expected = model(x)
    np.testing.assert_allclose(smaller(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_dense_layer(use_bias):
    layer = nnx.Linear(30, 20, use_bias=use_bias, rngs=nnx.Rngs(0))
    set_rank(layer, 4)
    smaller = bregjax.factorize(layer)
    assert weights(smaller) == 4 * (30 + 20)
    assert_same_outputs(layer, smaller, jax.random.normal(jax.random.key(1), (7, 30)))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "strides": 2},
        {"padding": 2, "strides": (2, 1)},
        {"padding": ((1, 2), (0, 3)), "kernel_dilation": 2},
        {"padding": "VALID", "kernel_dilation": (1, 2), "use_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("conv", "row_axes", "size"),
    [("channels", None, 3 * (5 * 3 * 8 + 16)), ("separable", (0, 2), 3 * (5 * 8 + 3 * 16))],
)
def test_a_convolution(conv, row_axes, size, options):
    layer = nnx.Conv(8, 16, (5, 3), rngs=nnx.Rngs(0), **options)
    set_rank(layer, 3, row_axes)
    smaller = bregjax.factorize(layer, conv=conv)
    assert weights(smaller) == size
    assert_same_outputs(layer, smaller, jax.random.normal(jax.random.key(1), (2, 12, 13, 8)))


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([nnx.Linear(40, 40, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(40, rngs=rngs)
        self.head = nnx.Linear(40, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.relu(self.norm(block(x)))
        return self.head(x)


def test_layers_at_any_depth_are_split_where_that_is_cheaper_and_the_model_stays():
    model = Net(nnx.Rngs(0))
    model.eval()
    set_rank(model.blocks[1], 5)
    before = jax.tree.leaves(nnx.state(model))
    smaller = bregjax.factorize(model)
    assert isinstance(smaller.blocks[1], nnx.Sequential)
    assert isinstance(smaller.blocks[0], nnx.Linear)  # full rank
    assert isinstance(smaller.head, nnx.Linear)
    assert isinstance(model.blocks[1], nnx.Linear)
    for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_outputs(model, smaller, jax.random.normal(jax.random.key(1), (7, 40)))


def test_the_tolerance_drops_small_singular_values():
    layer = nnx.Linear(30, 30, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.diag(jnp.r_[jnp.linspace(5, 2, 4), jnp.full(26, 0.1)])
    assert isinstance(bregjax.factorize(layer), nnx.Linear)
    smaller = bregjax.factorize(layer, tolerance=0.5)
    assert weights(smaller) == 4 * 60


def test_the_rank_can_be_cut():
    layer = nnx.Linear(30, 20, rngs=nnx.Rngs(0))
    smaller = bregjax.factorize(layer, rank=5)
    assert weights(smaller) == 5 * 50
    u, s, vt = np.linalg.svd(layer.kernel[...], full_matrices=False)
    thin, last = cast("Any", smaller).layers
    best = (u[:, :5] * s[:5]) @ vt[:5]
    np.testing.assert_allclose(thin.kernel[...] @ last.kernel[...], best, atol=1e-5)


def test_a_layer_without_a_live_weight_keeps_its_bias():
    layer = nnx.Linear(30, 20, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((30, 20))
    assert layer.bias is not None
    layer.bias[...] = jnp.arange(20.0)
    smaller = bregjax.factorize(layer)
    assert weights(smaller) == 50
    np.testing.assert_array_equal(smaller(jnp.ones((1, 30))), layer(jnp.ones((1, 30))))


@pytest.mark.parametrize("options", [{"feature_group_count": 4}, {"input_dilation": 2}])
def test_convolutions_that_cannot_be_split_are_left_alone(options):
    layer = nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(0), **options)
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    assert isinstance(bregjax.factorize(layer), nnx.Conv)


def test_a_shared_layer_stays_shared():
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(40, 40, rngs=rngs)
            self.second = self.first
            self.more = nnx.Dict(third=self.first)

        def __call__(self, x):
            return self.more["third"](self.second(self.first(x)))

    model = Twice(nnx.Rngs(0))
    set_rank(model.first, 3)
    smaller = bregjax.factorize(model)
    assert weights(smaller) == 3 * 80
    assert smaller.first is smaller.second is smaller.more["third"]
    assert_same_outputs(model, smaller, jax.random.normal(jax.random.key(1), (7, 40)))


def test_subclasses_and_stacked_layers_are_left_alone():
    lora = nnx.LoRALinear(30, 30, lora_rank=2, rngs=nnx.Rngs(0))
    set_rank(lora, 3)
    assert type(bregjax.factorize(lora)) is nnx.LoRALinear
    stacked = nnx.vmap(lambda rngs: nnx.Linear(30, 30, rngs=rngs))(nnx.Rngs(0).split(2))
    stacked.kernel[...] = jnp.zeros((2, 30, 30))
    assert type(bregjax.factorize(stacked)) is nnx.Linear


def test_half_precision_and_the_type_of_the_outputs():
    layer = nnx.Linear(
        64,
        64,
        param_dtype=jnp.bfloat16,
        dtype=jnp.bfloat16,
        preferred_element_type=jnp.float32,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    layer.kernel[...] = jnp.outer(jnp.arange(64.0), jnp.ones(64)).astype(jnp.bfloat16)
    smaller = bregjax.factorize(layer, tolerance=1.0)
    assert weights(smaller) == 128
    x = jnp.ones((1, 64), jnp.bfloat16)
    assert smaller(x).dtype == layer(x).dtype
    np.testing.assert_allclose(smaller(x), layer(x), rtol=0.02)


def test_bad_arguments_are_named():
    layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="got conv='rows'"):
        bregjax.factorize(layer, conv="rows")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got rank=0"):
        bregjax.factorize(layer, rank=0)
    with pytest.raises(ValueError, match="got tolerance=-1"):
        bregjax.factorize(layer, tolerance=-1)
    with pytest.raises(TypeError, match=r"must be a flax\.nnx\.Module"):
        bregjax.factorize({"kernel": jnp.ones((3, 3))})  # pyright: ignore[reportArgumentType]


def test_a_convolution_with_strides_none():
    layer = nnx.Conv(6, 8, (3, 3), strides=None, rngs=nnx.Rngs(0))
    set_rank(layer, 1)
    smaller = bregjax.factorize(layer)
    assert weights(smaller) < weights(layer)
    assert_same_outputs(layer, smaller, jax.random.normal(jax.random.key(1), (2, 7, 7, 6)))
