from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from benchmarks.models.convolution import convolution, max_pool

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape, key=0):
    return jax.random.normal(jax.random.key(key), shape)


def with_gradients(function, *args):
    """The value at ``args``, and the gradients of a fixed linear functional of it."""
    y, pullback = jax.vjp(function, *args)
    return y, *pullback(draw(*y.shape, key=2))


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def both(strides, padding, **options):
    """Our convolution and that of lax, as functions of images and kernels."""
    keywords: dict[str, Any] = {"dimension_numbers": NHWC} | options
    return [
        lambda x, kernel, conv=conv: conv(x, kernel, strides, padding, **keywords)
        for conv in (convolution, lax.conv_general_dilated)
    ]


def uses_xla(function, *args):
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize(
    ("shape", "strides", "padding"),
    [
        ((5, 5, 1, 4), (1, 1), "VALID"),
        ((5, 5, 1, 4), (3, 1), [(2, 0), (1, 3)]),
        ((3, 3, 6, 2), (1, 1), "SAME"),
        ((3, 3, 6, 2), (2, 2), "SAME"),
        ((3, 2, 3, 3), (2, 2), [(1, 1), (1, 1)]),
        ((3, 2, 3, 3), (1, 3), "SAME_LOWER"),
        ((1, 1, 3, 5), (1, 1), "VALID"),
        ((1, 1, 3, 5), (2, 2), "SAME"),
    ],
)
def test_equals_lax_with_both_gradients(shape, strides, padding):
    x, kernel = draw(6, 11, 10, shape[2]), draw(*shape, key=1)
    ours, theirs = both(strides, padding)
    assert not uses_xla(ours, x, kernel)
    assert uses_xla(theirs, x, kernel)
    assert_same(
        jax.jit(lambda *args: with_gradients(ours, *args))(x, kernel),
        with_gradients(theirs, x, kernel),
    )


@pytest.mark.parametrize("images", [1, 7, 12])
def test_equals_lax_when_the_images_come_in_several_chunks(images):
    x, kernel = draw(images, 12, 12, 64), draw(5, 5, 64, 8, key=1)
    ours, theirs = both((1, 1), "VALID")
    assert_same(with_gradients(ours, x, kernel), with_gradients(theirs, x, kernel))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_maps_over_images_and_kernels(axes):
    x, kernel = draw(2, 4, 8, 8, 3), draw(2, 3, 3, 3, 5, key=1)
    x, kernel = (
        value if axis == 0 else value[0] for value, axis in zip((x, kernel), axes, strict=True)
    )
    ours, theirs = (jax.vmap(function, axes) for function in both((2, 2), "SAME"))
    assert_same(with_gradients(jax.jit(ours), x, kernel), with_gradients(theirs, x, kernel))


def test_within_scan_and_a_second_derivative():
    x, kernel = draw(4, 6, 6, 2), draw(3, 3, 2, 2, key=1)

    def penalty(function):
        def loss(kernel):
            step = lambda x, _: (jnp.tanh(function(x, kernel)), None)  # noqa: E731
            return jnp.sum(lax.scan(step, x, length=2)[0] ** 2)

        return jax.grad(lambda kernel: jnp.sum(jax.grad(loss)(kernel) ** 2))(kernel)

    ours, theirs = both((1, 1), "SAME")
    assert_same([penalty(ours)], [penalty(theirs)])


@pytest.mark.parametrize(
    ("kernel_shape", "options"),
    [
        ((3, 3, 4, 2), {"rhs_dilation": (2, 2)}),
        ((3, 3, 4, 2), {"lhs_dilation": (1, 2)}),
        ((3, 3, 2, 4), {"feature_group_count": 2}),
        ((3, 3, 4, 2), {"batch_group_count": 2}),
        ((3, 3, 4, 2), {"precision": "highest"}),
        ((4, 2, 3, 3), {"dimension_numbers": ("NHWC", "IOHW", "NHWC")}),
    ],
)
def test_leaves_the_rest_to_lax(kernel_shape, options):
    x, kernel = draw(2, 8, 8, 4), draw(*kernel_shape, key=1)
    ours, theirs = both((1, 1), [(1, 1), (1, 1)], **options)
    assert uses_xla(ours, x, kernel)
    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))


def test_leaves_one_dimension_and_other_backends_to_lax(monkeypatch):
    numbers = ("NWC", "WIO", "NWC")
    ours, theirs = both((1,), "SAME", dimension_numbers=numbers)
    x, kernel = draw(2, 8, 4), draw(3, 4, 2, key=1)
    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert uses_xla(both((1, 1), "SAME")[0], draw(2, 8, 8, 4), draw(3, 3, 4, 2))


@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": 1}, {"padding": "CIRCULAR"}])
def test_serves_flax(options):
    x = draw(2, 8, 8, 3)
    ours, theirs = (
        nnx.Conv(3, 4, (3, 3), conv_general_dilated=conv, rngs=nnx.Rngs(0), **options)
        for conv in (convolution, lax.conv_general_dilated)
    )
    assert_same([ours(x)], [theirs(x)])


def test_max_pool_equals_reduce_window_with_its_gradient_where_values_tie_too():
    def theirs(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x = jnp.round(draw(3, 6, 8, 5))  # integers: most windows have ties
    assert_same(with_gradients(jax.jit(max_pool), x), with_gradients(theirs, x))
    assert_same(
        with_gradients(max_pool, draw(2, 2, 4, 1)), with_gradients(theirs, draw(2, 2, 4, 1))
    )


def test_max_pool_refuses_odd_sizes():
    with pytest.raises(ValueError, match="even height and width"):
        max_pool(jnp.zeros((1, 5, 4, 1)))
