"""Masks that would silently do the wrong thing are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def test_a_mask_taken_for_a_schedule_says_what_to_do():
    factory = optax.inject_hyperparams(bregjax.linbreg)
    with pytest.raises(ValueError, match=r"mask=False.*static_args=\('mask',\)"):
        factory(0.1, bregjax.l1(), 0.5, mask=bregjax.weight_mask).init(PARAMS)


@pytest.mark.parametrize("factory", [bregjax.linbreg, bregjax.prox_sgd])
def test_static_args_let_a_mask_through(factory):
    injected = optax.inject_hyperparams(factory, static_args=("mask",))
    mask = bregjax.label_by_path({"bias": True}, default=False)
    tx = injected(1.0, bregjax.l1(), 0.25, mask=mask)
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "hyperparams")["strength"]) == 0.25
    gradient = {"kernel": jnp.zeros((2, 3)), "bias": jnp.full(3, 0.9)}
    updates, _ = tx.update(gradient, state, PARAMS)
    changes = jax.tree.map(np.asarray, updates)
    np.testing.assert_array_equal(changes["kernel"], 0)
    assert np.max(changes["bias"]) < -0.5


def test_a_mask_of_other_leaves_is_refused_by_the_counts():
    with pytest.raises(ValueError, match="mask must have the structure of params"):
        bregjax.density(PARAMS, mask={"kernel": True, "other": False})
