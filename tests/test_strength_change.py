"""What happens to the weights when the strength changes while training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import step_with

import bregjax

pytestmark = pytest.mark.usefixtures("x64")
DELTA = 0.5


def trained(strength, delta=DELTA):
    """Weights, state and dual after a few steps at the old strength."""
    tx = optax.inject_hyperparams(bregjax.linbreg)(0.1, bregjax.l1(), strength, delta=delta)
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (30, 20))}
    state = tx.init(params)
    for i in range(10):
        gradient = {"w": 2 * jax.random.normal(jax.random.fold_in(key, i), (30, 20))}
        params, state = step_with(tx)(params, state, gradient)
    return tx, params, state


def change(tx, params, state, strength):
    """One step with zero gradient after the change."""
    optax.tree.get(state, "hyperparams")["strength"] = jnp.asarray(strength)
    params, state = step_with(tx)(params, state, jax.tree.map(jnp.zeros_like, params))
    return params["w"], state


@pytest.mark.parametrize("new", [0.3, 1.0, 1.7, 4.0])
def test_the_dual_keeps_its_evidence(new):
    tx, params, state = trained(strength=1.0)
    before = optax.tree.get(state, "dual")["w"]
    _, state = change(tx, params, state, new)
    np.testing.assert_array_equal(optax.tree.get(state, "dual")["w"], before)


@pytest.mark.parametrize(("new", "delta"), [(1.2, 0.5), (1.7, 0.5), (1.7, 2.0)])
def test_live_weights_shrink_at_once_by_delta_times_the_rise(new, delta):
    tx, params, state = trained(strength=1.0, delta=delta)
    old = params["w"]
    after, _ = change(tx, params, state, new)
    fall = delta * (new - 1.0)
    survivors = np.abs(old) > fall
    asleep = (np.abs(old) < fall) & (old != 0)
    assert survivors.sum() > 20
    assert asleep.sum() > 5
    shrunk = np.sign(old) * (np.abs(old) - fall)
    np.testing.assert_allclose(after[survivors], shrunk[survivors], rtol=0, atol=1e-12)
    assert np.all(after[asleep] == 0)
    assert np.all(after[old == 0] == 0)


@pytest.mark.parametrize(("new", "delta"), [(0.8, 0.5), (0.3, 0.5), (0.3, 2.0)])
def test_live_weights_grow_and_others_wake_when_the_strength_falls(new, delta):
    tx, params, state = trained(strength=1.0, delta=delta)
    old, dual = params["w"], optax.tree.get(state, "dual")["w"]
    after, _ = change(tx, params, state, new)
    live = old != 0
    grown = np.sign(old) * (np.abs(old) + delta * (1.0 - new))
    np.testing.assert_allclose(after[live], grown[live], rtol=0, atol=1e-12)
    # Dormant weights wake where the evidence collected under the old strength exceeds the new.
    woken = ~live & (np.abs(dual) > new)
    assert woken.sum() > 5
    np.testing.assert_array_equal(after[~live] != 0, woken[~live])


def test_the_threshold_of_the_dual_is_the_strength_for_every_delta():
    for delta in (0.25, 1.0, 4.0):
        _, params, state = trained(strength=1.0, delta=delta)
        live = np.abs(optax.tree.get(state, "dual")["w"]) > 1.0
        np.testing.assert_array_equal(params["w"] != 0, live)


def test_changing_there_and_back_restores_the_weights():
    tx, params, state = trained(strength=1.0)
    for strength in (3.0, 0.1, 1.0):
        after, state = change(tx, params, state, strength)
    np.testing.assert_allclose(after, params["w"], rtol=0, atol=1e-12)


def test_a_schedule_of_the_strength_does_the_same_as_setting_it():
    strengths = jnp.array([1.0, 1.0, 1.6, 1.6, 0.4])
    key = jax.random.key(1)
    scheduled = bregjax.linbreg(0.1, bregjax.l1(), lambda t: strengths[t], delta=DELTA)
    by_hand = optax.inject_hyperparams(bregjax.linbreg)(0.1, bregjax.l1(), 1.0, delta=DELTA)
    params = other = {"w": jax.random.normal(key, (30, 20))}
    state, other_state = scheduled.init(params), by_hand.init(params)
    for t, strength in enumerate(strengths):
        gradient = {"w": 2 * jax.random.normal(jax.random.fold_in(key, t), (30, 20))}
        params, state = step_with(scheduled)(params, state, gradient)
        optax.tree.get(other_state, "hyperparams")["strength"] = strength
        other, other_state = step_with(by_hand)(other, other_state, gradient)
        np.testing.assert_allclose(params["w"], other["w"], rtol=0, atol=1e-12)


def test_a_schedule_gets_an_array_at_init():
    def rising(count: Any) -> Any:
        return 0.1 * (1 + count.astype(jnp.float32))

    tx = bregjax.linbreg(0.1, bregjax.l1(), rising)
    state = tx.init({"w": jnp.array([[2.0, -1.0]])})
    (mirror,) = bregjax.states_of(state, bregjax.MirrorState)
    np.testing.assert_allclose(mirror.dual["w"], [[2.1, -1.1]])
