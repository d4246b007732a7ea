"""Parameters are moved in one program, and know nothing of one another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

OPTIMIZERS: dict[str, Any] = {
    "linbreg": bregjax.linbreg(0.1, bregjax.per_neuron(), 0.05),
    "adabreg": bregjax.adabreg(0.1, bregjax.per_kernel(), 0.05),
    "prox_sgd": bregjax.prox_sgd(0.1, bregjax.sparse_group(0), 0.05),
}


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 6), "b": (6, 0), "c": (6, 8), "d": (3, 3, 2, 4)}
    return {name: jnp.asarray(rng.normal(size=shape), "float32") for name, shape in shapes.items()}


def two_steps(optimizer: optax.GradientTransformation, params: Any, gradient: Any) -> Any:
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


def test_parameters_that_are_not_mapped_stay_so():
    params, gradient = draw(0), draw(1)
    del params["b"], gradient["b"]
    axes = {"a": None, "c": 0, "d": None}
    mapped = {**gradient, "c": jnp.stack([gradient["c"], 2 * gradient["c"]])}
    optimizer = OPTIMIZERS["prox_sgd"]

    @jax.jit
    def both(gradient):
        def move(gradient):
            return optimizer.update(gradient, optimizer.init(params), params)[0]

        return jax.vmap(move, in_axes=(axes,), out_axes=axes)(gradient)

    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    got = both(mapped)
    for leaf in "ad":
        np.testing.assert_allclose(got[leaf], updates[leaf], rtol=1e-6, atol=3e-7)
    np.testing.assert_allclose(got["c"][0], updates["c"], rtol=1e-6, atol=3e-7)


def test_parameters_that_differ_from_device_to_device_beside_some_that_do_not():
    params, gradient = draw(0), draw(1)
    for tree in (params, gradient):
        del tree["b"], tree["d"]
        tree["e"] = tree["c"][:2]
    specs = {"a": jax.P(), "c": jax.P("x"), "e": jax.P()}
    optimizer = OPTIMIZERS["linbreg"]
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs, specs), out_specs=specs)
    def move(params, gradient):
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    halves = [
        {**tree, "c": tree["c"][rows]}
        for rows in (slice(0, 3), slice(3, 6))
        for tree in (params, gradient)
    ]
    got = move(params, gradient)
    for half, rows in zip((halves[:2], halves[2:]), (slice(0, 3), slice(3, 6)), strict=True):
        updates, _ = optimizer.update(half[1], optimizer.init(half[0]), half[0])
        np.testing.assert_allclose(got["c"][rows], updates["c"], rtol=1e-6, atol=1e-7)
        for leaf in "ae":
            np.testing.assert_allclose(got[leaf], updates[leaf], rtol=1e-6, atol=1e-7)


def test_parameters_on_different_devices_without_jit():
    params, gradient = draw(0), draw(1)
    expected, _ = OPTIMIZERS["linbreg"].update(gradient, OPTIMIZERS["linbreg"].init(params), params)
    places = dict(zip(params, jax.devices(), strict=False))
    apart = [
        {leaf: jax.device_put(x, places[leaf]) for leaf, x in tree.items()}
        for tree in (params, gradient)
    ]
    got, _ = OPTIMIZERS["linbreg"].update(apart[1], OPTIMIZERS["linbreg"].init(apart[0]), apart[0])
    for leaf, x in expected.items():
        np.testing.assert_array_equal(got[leaf], x)
        assert got[leaf].devices() == {places[leaf]}
