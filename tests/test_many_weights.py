"""Networks with more weights than an int32 counts: traced, and never allocated."""

import jax
import jax.numpy as jnp
import optax
import pytest

import bregjax

FLOAT = jnp.float32
PARAMS = {
    "large": jax.ShapeDtypeStruct((65_536, 49_152), FLOAT),
    "small": jax.ShapeDtypeStruct((65_536, 16), FLOAT),
    "bias": jax.ShapeDtypeStruct((16,), FLOAT),
}


def linbreg():
    return bregjax.linbreg(0.1, bregjax.l1(), 0.5)


@pytest.mark.parametrize(
    "tx",
    [
        bregjax.steer(linbreg(), 0.9),
        bregjax.steer(linbreg(), 0.9, exact=True),
        bregjax.landing(linbreg(), optax.sgd(0.1), 2, density=0.9),
        bregjax.landing(linbreg(), optax.sgd(0.1), 2, count=2**31 - 1),
    ],
)
def test_steering_and_landing_are_traced(tx):
    updates, _ = jax.eval_shape(tx.update, PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def test_what_is_not_counted_exactly_is_refused():
    params = {"kernel": jax.ShapeDtypeStruct((65_536, 65_536), FLOAT)}
    tx = bregjax.landing(linbreg(), optax.sgd(0.1), 2, density=0.1)
    with pytest.raises(ValueError, match="4294967296 entries to count"):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)


def test_what_is_not_counted_exactly_is_refused_for_a_first_strength_too():
    gradients = {f"w{i}": jax.ShapeDtypeStruct((2**16, 2**15), FLOAT) for i in range(2)}
    with pytest.raises(ValueError, match="4294967296 entries to count"):
        jax.eval_shape(
            lambda gradients: bregjax.waking_strength(linbreg(), gradients, 3, 0.1), gradients
        )


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**30, 2**31 - 1])
def test_the_density_of_more_weights_than_an_int32_counts(size):
    # With the larger size 4.6 GB of bytes, more than a uint32 counts.
    dead, live = jnp.zeros((1, size), jnp.int8), jnp.ones((1, size), jnp.int8)
    more = jnp.ones((1, 2**28), jnp.int8)
    expected = (size + 2**28) / (2 * size + 2**28)
    density = jax.jit(bregjax.density)({"dead": dead, "live": live, "more": more})
    assert float(density) == pytest.approx(expected)
