"""Strengths that fall and ranks that grow when a loss stalls."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

# A loss that stalls twice: after the third value and after the seventh.
LOSSES = [5.0, 4, 3, 3, 3, 2, 1, 1, 1, 1]
# With patience 2 the answer comes after two values that are no better, at the next step.
SCALES = [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.fixture(autouse=True)
def promotion():
    """Optax's plateau counts in integers that it adds to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def plateau(factor=0.5):
    return optax.contrib.reduce_on_plateau(factor=factor, patience=2, rtol=1e-6)


def follow(tx, params, losses, **names):
    """The state before each step and the parameters after it."""
    state, update = tx.init(params), jax.jit(tx.update)
    for loss in losses:
        extra = {names.get("watch", "value"): jnp.float32(loss)}
        before = state
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params, **extra)
        params = cast("Any", optax.apply_updates(params, updates))
        yield before, params


def test_the_strength_is_halved_on_each_plateau_and_the_dual_stays():
    """θ = dual − λ for positive duals: with a dual of 10 the parameter tells the strength."""
    inner = bregjax.linbreg(0.1, bregjax.l1(), 4.0)
    params = jnp.full((1, 2), 6.0)
    found = [
        10 - float(params[0, 0])
        for _, params in follow(bregjax.relax_on_plateau(inner, plateau()), params, LOSSES)
    ]
    np.testing.assert_allclose(found, 4 * np.asarray(SCALES), rtol=1e-6)


def test_another_loss_can_be_watched_and_scales_multiply():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 4.0)
    tx = bregjax.relax_on_plateau(inner, plateau(), watch="validation_loss")
    outer = bregjax.relax_on_plateau(tx, plateau(), watch="validation_loss")
    steps = follow(outer, jnp.full((1, 2), 6.0), LOSSES, watch="validation_loss")
    found = [10 - float(params[0, 0]) for _, params in steps]
    np.testing.assert_allclose(found, 4 * np.asarray(SCALES) ** 2, rtol=1e-6)


@pytest.mark.parametrize("method", ["svd", "warm"])
def test_the_rank_grows_on_each_plateau(method):
    x = jnp.asarray(np.diag(np.linspace(20, 9, 50)), jnp.float32)
    inner = bregjax.linbreg(0.1, bregjax.nuclear(method=method), 0.5)
    tx = bregjax.grow_rank_on_plateau(inner, 3, plateau())
    found = [int(bregjax.effective_rank(params, 1e-3)) for _, params in follow(tx, x, LOSSES)]
    assert found == [round(3 / scale) for scale in SCALES]


def test_a_limit_between_two_numbers_is_rounded_up():
    x = jnp.asarray(np.diag(np.linspace(20, 9, 12)), jnp.float32)
    inner = bregjax.linbreg(0.1, bregjax.nuclear(), 0.5)
    tx = bregjax.grow_rank_on_plateau(inner, 3, plateau(0.7))
    found = [int(bregjax.effective_rank(params, 1e-3)) for _, params in follow(tx, x, LOSSES)]
    # 3, 3 / 0.7 = 4.3 and 3 / 0.49 = 6.1
    assert found == [{1: 3, 0.5: 5, 0.25: 7}[scale] for scale in SCALES]


def test_the_smaller_of_two_limits_counts():
    inner = bregjax.linbreg(0.1, bregjax.nuclear(rank=4), 0.5)
    tx = bregjax.grow_rank_on_plateau(inner, 3, plateau())
    x = jnp.asarray(np.diag(np.linspace(20, 9, 8)), jnp.float32)
    found = [int(bregjax.effective_rank(params, 1e-3)) for _, params in follow(tx, x, LOSSES)]
    assert found == [min(4, round(3 / scale)) for scale in SCALES]


def test_all_of_it_is_one_program_and_the_state_keeps_its_shapes():
    inner = optax.chain(optax.clip(1.0), bregjax.adabreg(0.1, bregjax.nuclear(method="warm"), 0.5))
    tx = bregjax.relax_on_plateau(bregjax.grow_rank_on_plateau(inner, 2, plateau()), plateau())
    params = {"w": jnp.asarray(np.diag(np.linspace(3, 1, 60)), jnp.float32), "b": jnp.zeros(3)}
    compiled = 0

    @jax.jit
    def step(params, state, loss):
        nonlocal compiled
        compiled += 1
        updates, state = tx.update(params, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for loss in LOSSES:
        params, state = step(params, state, jnp.float32(loss))
    assert compiled == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bregjax.relax_on_plateau(optax.sgd(0.1), plateau()).init(jnp.zeros((2, 2))),
            "inner has no prox_step",
        ),
        (
            lambda: bregjax.grow_rank_on_plateau(
                bregjax.linbreg(0.1, bregjax.l1(), 1.0), 2, plateau()
            ).init(jnp.zeros((2, 2))),
            "inner has no nuclear",
        ),
        (
            lambda: bregjax.grow_rank_on_plateau(
                bregjax.linbreg(0.1, bregjax.nuclear(), 1.0), 0, plateau()
            ),
            "rank must be a whole number, at least 1, got rank=0",
        ),
        (
            lambda: bregjax.relax_on_plateau(
                bregjax.linbreg(0.1, bregjax.l1(), 1.0),
                cast("Any", optax.contrib.reduce_on_plateau),
            ),
            "plateau must be optax.contrib.reduce_on_plateau(…), got <function",
        ),
        (
            lambda: bregjax.relax_on_plateau(
                bregjax.linbreg(0.1, bregjax.l1(), 1.0), cast("Any", optax.sgd(0.1))
            ).init(jnp.zeros((2, 2))),
            "plateau must be optax.contrib.reduce_on_plateau(…)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_missing_loss_is_named():
    tx = bregjax.relax_on_plateau(bregjax.linbreg(0.1, bregjax.l1(), 1.0), plateau(), watch="loss")
    params = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=r"loss=…, got value"):
        tx.update(params, tx.init(params), params, value=1.0)


def test_a_limit_that_rounding_makes_larger_is_the_whole_number():
    """49 / 0.7² is 100, and in float32 100.00001."""
    x = jnp.asarray(np.diag(np.linspace(20, 9, 102)), jnp.float32)
    inner = bregjax.linbreg(0.1, bregjax.nuclear(), 0.5)
    tx = bregjax.grow_rank_on_plateau(inner, 49, plateau(0.7))
    *_, (_, params) = follow(tx, x, LOSSES)
    assert int(bregjax.effective_rank(params, 1e-3)) == 100
