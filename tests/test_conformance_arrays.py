"""Checks over the whole table of optimizers: dtypes, devices, buffers, saving."""

from collections.abc import Iterator
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    CASES,
    Case,
    all_cases,
    apply_updates,
    assert_close,
    assert_equal,
    each_kind,
    gradients,
    network,
    plain,
    run,
    step_with,
)

import bregjax

BUFFERS = ("dual", "trace", "mu", "nu")


@pytest.fixture
def case(name: str) -> Iterator[Case]:
    with CASES[name].promotion():
        yield CASES[name]


def spec(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@each_kind()
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes_and_shapes_stay(name, case, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    wide = jnp.dtype("float32" if dtype == "bfloat16" else dtype)
    params = network(dtype=jnp.dtype(dtype))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    tx = case.make()
    state = tx.init(params)
    if case.has_dual:
        dual = optax.tree.get(state, "dual")
        assert spec(dual) == jax.tree.map(lambda x: (x.shape, wide), params)
    for gradient in gradients(params, steps=2):
        updates, next_state = tx.update(gradient, state, params)
        assert spec(updates) == jax.tree.map(lambda x: (x.shape, wide), params)
        assert spec(next_state) == spec(state)
        after = apply_updates(params, updates)
        assert spec(after) == spec(params)
        params, state = after, next_state


def test_injected_values_of_narrow_parameters_need_a_wide_dtype():
    params = network(dtype=jnp.bfloat16)
    grads = gradients(params)

    def injected(dtype):
        factory = optax.inject_hyperparams(bregjax.adabreg, hyperparam_dtype=dtype)
        return factory(0.2, bregjax.l1(), 0.5)

    with CASES["adabreg"].promotion():
        # Rounded to bfloat16 b2 = 0.999 is 1, and the corrected second moment would be 0/0.
        with pytest.raises(ValueError, match=r"b2 must be less than 1, got b2=1\.0"):
            run(injected(None), params, grads)
        wide, _ = run(injected(jnp.float32), params, grads)[-1]
        constant, _ = run(CASES["adabreg"].make(), params, grads)[-1]
    for x, y in zip(*map(jax.tree.leaves, (wide, constant)), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        # The moments, too, are rounded to bfloat16 in one and not in the other.
        np.testing.assert_allclose(x, y, rtol=0, atol=2 * 2**-7)
        assert np.abs(y).max() > 0.3


@all_cases
def test_eval_shape_of_init(name, case):
    params, tx = network(), case.make()
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(tx.init(params))
    assert spec(shapes) == spec(tx.init(params))


@all_cases
def test_init_under_jit_gives_the_same_state(name, case):
    params, tx = network(), case.make()
    assert_close(jax.jit(tx.init)(params), tx.init(params), tolerance=1e-6)


@each_kind()
def test_state_is_sharded_as_the_parameters(name, case):
    params = network(width=8)
    grads = gradients(params, steps=2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    assert mesh.size == 8
    along = jax.sharding.PartitionSpec("devices")
    sharding = {
        "conv": {"kernel": jax.sharding.NamedSharding(mesh, jax.P(None, None, None, "devices"))},
        "dense": {"kernel": jax.sharding.NamedSharding(mesh, along)},
    }
    tx = case.make()
    step = jax.jit(step_with(tx))
    sharded = jax.device_put(params, sharding)
    state = tx.init(sharded)

    def assert_sharded(state: Any) -> None:
        for buffer in BUFFERS:
            for _, tree in optax.tree.get_all_with_path(state, buffer):
                same = jax.tree.map(
                    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, sharding
                )
                assert all(jax.tree.leaves(same))

    assert_sharded(state)
    for gradient in grads:
        sharded, state = step(sharded, state, jax.device_put(gradient, sharding))
        assert_sharded(state)
    # Sums over several devices round differently.
    expected, expected_state = run(tx, params, grads)[-1]
    assert_close(sharded, expected, tolerance=2e-5)
    assert_close(state, expected_state, tolerance=2e-5)


@all_cases
def test_state_shares_no_buffer_with_the_parameters(name, case):
    params, tx = network(), case.make()
    for init in (tx.init, jax.jit(tx.init)):
        leaves = jax.tree.leaves((params, plain(init(params))))
        assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


@each_kind()
def test_parameters_and_state_are_donated(name, case):
    mixed = {
        "conv": network(dtype=jnp.bfloat16)["conv"],
        "dense": network(dtype=jnp.float32)["dense"],
    }
    tx, gradient = case.make(), gradients(mixed)[0]
    state = tx.init(mixed)
    copies = jax.tree.map(jnp.copy, (mixed, state))
    # A buffer that could not be donated is a warning, and warnings are errors. What a step only
    # writes, such as the target of steer, would be dropped before it can be donated.
    step = jax.jit(step_with(tx), donate_argnums=(0, 1), keep_unused=True)
    first = step(mixed, state, gradient)
    assert all(x.is_deleted() for x in jax.tree.leaves((mixed, state)))
    assert_equal(step(*copies, gradient), first)


@all_cases
def test_tree_map_params_finds_what_is_shaped_like_the_parameters(name, case):
    params, tx = network(), case.make()
    state = tx.init(params)
    labels = optax.tree_map_params(
        tx, lambda _: "parameters", state, transform_non_params=lambda _: "other"
    )
    assert jax.tree.structure(labels) == jax.tree.structure(state)
    for path, label in jax.tree_util.tree_leaves_with_path(labels):
        names = {getattr(key, "name", None) for key in path}
        shaped = names & {*BUFFERS, "regularizer_state", "support"}
        assert label == ("parameters" if shaped else "other")


@each_kind()
def test_saved_and_restored_training_continues_with_the_same_bits(name, case):
    params, tx = network(), case.make()
    grads = gradients(params)
    step = jax.jit(step_with(tx))

    def advance(start: tuple[Any, Any], grads: list) -> tuple[Any, Any]:
        params, state = start
        for gradient in grads:
            params, state = step(params, state, gradient)
        return params, state

    half = advance((params, tx.init(params)), grads[:2])
    template = params, tx.init(params)
    saved = flax.serialization.to_bytes(plain(half))
    loaded = flax.serialization.from_bytes(plain(template), saved)

    def restore(like: jax.Array, x: Any) -> jax.Array:
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(x) if is_key else jnp.asarray(x, like.dtype)

    restored = jax.tree.map(restore, template, loaded)
    assert_equal(restored, half)
    assert_equal(advance(restored, grads[2:]), advance(half, grads[2:]))
