"""Parameters are moved one after the other, and still know nothing of one another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

OPTIMIZERS = {
    "linbreg": bregjax.linbreg(0.1, bregjax.per_neuron(), 0.05),
    "adabreg": bregjax.adabreg(0.1, bregjax.l1(), 0.05),
    "prox_sgd": bregjax.prox_sgd(0.1, bregjax.sparse_group(0), 0.05),
}


def draw(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 6), "b": (6, 0), "c": (6, 8), "d": (3, 3, 2, 4)}
    return {name: jnp.asarray(rng.normal(size=shape), "float32") for name, shape in shapes.items()}


def two_steps(optimizer: optax.GradientTransformation, params, gradient):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        return step(*step(params, optimizer.init(params)))[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_parameter_does_not_reach_the_next(name, value):
    params, gradient = draw(0), draw(1)
    expected = two_steps(OPTIMIZERS[name], params, gradient)
    gradient["a"] = gradient["a"].at[0, 0].set(value).at[0, 1].set(value)
    got = two_steps(OPTIMIZERS[name], params, gradient)
    assert not np.isfinite(got["a"]).all()
    for later in "bcd":
        np.testing.assert_array_equal(got[later], expected[later])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_parameter_moves_as_it_does_alone(name):
    params, gradient = draw(0), draw(1)
    together = two_steps(OPTIMIZERS[name], params, gradient)
    for leaf, x in params.items():
        alone = two_steps(OPTIMIZERS[name], {leaf: x}, {leaf: gradient[leaf]})
        np.testing.assert_allclose(together[leaf], alone[leaf], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_parameters_under_both_kinds_of_mesh_axes(name, axis_type):
    axis_type = jax.sharding.AxisType[axis_type]
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axis_type,))
    spec = jax.sharding.NamedSharding(mesh, jax.P(None, "x"))
    params, gradient = draw(0), draw(1)
    for tree in (params, gradient):
        del tree["b"], tree["d"]  # what is empty is not sharded; the other has too many axes
    expected = two_steps(OPTIMIZERS[name], params, gradient)
    sharded = jax.device_put((params, gradient), spec)
    got = two_steps(OPTIMIZERS[name], *sharded)
    for leaf, x in expected.items():
        np.testing.assert_allclose(got[leaf], x, rtol=1e-6, atol=1e-7)
        assert got[leaf].sharding.is_equivalent_to(spec, 2)
