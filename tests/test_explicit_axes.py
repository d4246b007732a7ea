"""On a mesh with explicit axes everything computes what it does on one device."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from sharded import (
    TRANSFORMATIONS,
    assert_as_on_one_device,
    each_kind,
    make_mesh,
    placement,
    train_on,
)


@each_kind
def test_sharded_training_equals_that_on_one_device(name):
    mesh, tx = make_mesh(AxisType.Explicit), TRANSFORMATIONS[name]
    got = train_on(mesh, tx)
    for x, where in zip(*map(jax.tree.leaves, (got, placement(mesh))), strict=True):
        assert x.sharding.is_equivalent_to(where, x.ndim)
    assert_as_on_one_device(got, tx)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_compiled_init_splits_the_state_as_the_parameters(axis_type):
    mesh = make_mesh(axis_type)
    placed = NamedSharding(mesh, jax.P("data", "model"))
    params = jax.device_put(jnp.ones((16, 24)), placed)
    with jax.set_mesh(mesh):
        for init in (TRANSFORMATIONS["multilevel"].init, TRANSFORMATIONS["freeze_support"].init):
            support = jax.jit(init)(params).support
            assert support.sharding.is_equivalent_to(placed, 2)
