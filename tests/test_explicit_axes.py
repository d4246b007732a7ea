"""On a mesh with explicit axes everything computes what it does on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import bregjax
from bregjax import baselines

SPECS = {
    "conv": {"kernel": jax.P(None, None, "data", "model")},
    "dense": {"kernel": jax.P("data", "model"), "bias": jax.P("model")},
}


def linbreg(regularizer, **options):
    return bregjax.linbreg(0.1, regularizer, 0.5, momentum=0.5, **options)


def landing(regularizer, groups):
    return bregjax.landing(linbreg(regularizer), optax.adam(0.1), 2, density=0.5, groups=groups)


NEURONS = bregjax.per_neuron()
TRANSFORMATIONS = {
    "l1": linbreg(bregjax.l1()),
    "keep_weights": linbreg(bregjax.l1(), keep_weights=True),
    "per_neuron": linbreg(NEURONS),
    "per_kernel": linbreg(bregjax.per_kernel()),
    "per_input_channel": linbreg(bregjax.per_input_channel()),
    "sparse_group": linbreg(bregjax.sparse_group(NEURONS)),
    "soft_bernoulli": linbreg(bregjax.soft_bernoulli(0.3, 0.1)),
    "nuclear": linbreg(bregjax.nuclear()),
    "nuclear, gram": linbreg(bregjax.nuclear(method="gram")),
    "nuclear, warm": linbreg(bregjax.nuclear(method="warm")),
    "nuclear, randomized": linbreg(bregjax.nuclear(method="randomized")),
    "adabreg": bregjax.adabreg(0.1, bregjax.l1(), 0.3, weight_decay=0.1),
    "prox_sgd": bregjax.prox_sgd(0.1, NEURONS, 0.5),
    "freeze_support": bregjax.freeze_support(optax.adam(0.1)),
    "multilevel": bregjax.multilevel(linbreg(bregjax.l1()), 2),
    "steer": bregjax.steer(linbreg(bregjax.l1()), 0.3),
    "steer, exact": bregjax.steer(linbreg(bregjax.l1()), 0.3, exact=True),
    "steer, exact, groups": bregjax.steer(linbreg(NEURONS), 0.3, exact=True),
    "landing": landing(bregjax.l1(), None),
    "landing, groups": landing(NEURONS, NEURONS),
    "magnitude_pruning": baselines.magnitude_pruning(optax.sgd(0.1), 0.3),
}


def draw(seed):
    shapes = {
        "conv": {"kernel": (3, 3, 8, 16)},
        "dense": {"kernel": (16, 24), "bias": (24,)},
    }
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def train(tx, params, gradient):
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        for _ in range(4):
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_sharded_training_equals_that_on_one_device(name):
    tx, params, gradient = TRANSFORMATIONS[name], draw(0), draw(1)
    expected = train(tx, params, gradient)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    with jax.set_mesh(mesh):
        got = train(tx, *jax.device_put((params, gradient), (placed, placed)))
    for one, many, where in zip(*map(jax.tree.leaves, (expected, got, placed)), strict=True):
        assert many.sharding.is_equivalent_to(where, many.ndim)
        np.testing.assert_array_equal(np.asarray(many) != 0, np.asarray(one) != 0)
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_compiled_init_splits_the_state_as_the_parameters(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    placed = NamedSharding(mesh, jax.P("data", "model"))
    params = jax.device_put(jnp.ones((16, 24)), placed)
    with jax.set_mesh(mesh):
        for init in (TRANSFORMATIONS["multilevel"].init, TRANSFORMATIONS["freeze_support"].init):
            support = jax.jit(init)(params).support
            assert support.sharding.is_equivalent_to(placed, 2)
