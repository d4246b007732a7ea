from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from benchmarks.models.products import dot_general, product


def draw(*shape, dtype=jnp.bfloat16, key=0):
    return jax.random.normal(jax.random.key(key), shape).astype(dtype)


def with_gradients(function, *args):
    """The value at ``args``, and the gradients of a fixed linear functional of it."""
    y, pullback = jax.vjp(function, *args)
    return y, *pullback(draw(*y.shape, dtype=y.dtype, key=2))


@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((5, 3), (3, 7)), ((1, 4), (4, 1))])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_equals_the_exact_product_rounded_once(shapes, dtype):
    x, kernel = draw(*shapes[0], dtype=dtype), draw(*shapes[1], dtype=dtype, key=1)
    found = jax.jit(partial(with_gradients, product))(x, kernel)
    assert [part.dtype for part in found] == [dtype] * 3
    wide = (
        np.asarray(part, np.float64)
        for part in (x, kernel, draw(*found[0].shape, dtype=dtype, key=2))
    )
    x, kernel, g = wide
    # The sums are float32 also where the result is narrower: one rounding of each.
    eps = float(jnp.finfo(dtype).eps)
    for part, exact in zip(found, (x @ kernel, g @ kernel.T, x.T @ g), strict=True):
        np.testing.assert_allclose(np.asarray(part, np.float64), exact, rtol=eps, atol=1e-5)


def test_sums_are_wide():
    # In bfloat16 a sum of ones would stop at 256.
    ones = jnp.ones((1, 1000), jnp.bfloat16)
    assert dot_general(ones, ones.T, (((1,), (0,)), ((), ()))) == 1000


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (4,)])
def test_flax_gets_what_lax_gives_it(shape):
    x = draw(*shape)
    ours, theirs = (
        nnx.Linear(4, 3, dtype=jnp.bfloat16, dot_general=dot, rngs=nnx.Rngs(0))
        for dot in (dot_general, lax.dot_general)
    )
    assert ours(x).shape == theirs(x).shape
    np.testing.assert_allclose(
        np.asarray(ours(x), np.float32), np.asarray(theirs(x), np.float32), rtol=2**-7, atol=2**-7
    )


def is_ours(dot, *args, **options):
    return "custom_vjp" in str(jax.make_jaxpr(partial(dot, **options))(*args))


def test_leaves_the_rest_to_lax(monkeypatch):
    rows, columns = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ()))
    x, kernel = draw(3, 4), draw(4, 2, key=1)
    assert is_ours(dot_general, x, kernel, dimension_numbers=rows)
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    assert not is_ours(dot_general, *wide, dimension_numbers=rows)
    assert not is_ours(dot_general, x.T, kernel, dimension_numbers=columns)
    assert not is_ours(dot_general, x, kernel, dimension_numbers=rows, precision="highest")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not is_ours(dot_general, x, kernel, dimension_numbers=rows)


def test_maps_over_seeds():
    x, kernels = draw(5, 4), draw(3, 4, 2, key=1)
    found = jax.vmap(partial(with_gradients, product), (None, 0))(x, kernels)
    for index in range(3):
        alone = with_gradients(product, x, kernels[index])
        for part, one in zip(found, alone, strict=True):
            np.testing.assert_array_equal(part[index], one)
