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


@pytest.mark.parametrize("mask", [True, False, np.True_, np.array(False)])
def test_a_single_boolean_is_no_mask_of_an_optimizer(mask):
    # That is what a mask returns that inject_hyperparams has called with a count.
    with pytest.raises(ValueError, match=r"static_args=\('mask',\)"):
        bregjax.linbreg(0.1, bregjax.l1(), 0.5, mask=mask)


USERS = {
    "linbreg": lambda mask: bregjax.linbreg(0.1, bregjax.l1(), 0.5, mask=mask).init(PARAMS),
    "density": lambda mask: bregjax.density(PARAMS, mask=mask),
    "report": lambda mask: bregjax.sparsity_report(PARAMS, mask=mask),
    "sparsify": lambda mask: bregjax.sparsify(jax.random.key(0), PARAMS, 0.5, mask=mask),
    "freeze_support": lambda mask: bregjax.freeze_support(optax.sgd(0.1), mask=mask).init(PARAMS),
}
over_users = pytest.mark.parametrize("use", USERS.values(), ids=USERS)


@over_users
@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (bregjax.label_by_kind, "mask['bias']='other'"),
        ({"kernel": 1, "bias": 0}, "mask['bias']=0"),
        ({"kernel": jnp.ones((2, 3), bool), "bias": False}, "mask['kernel']="),
    ],
)
def test_marks_that_are_no_booleans_are_shown(use, mask, shown):
    with pytest.raises(ValueError, match="mask must be a tree of booleans") as info:
        use(mask)
    assert shown in str(info.value)


@over_users
@pytest.mark.parametrize(
    "mask", [{"kernel": True}, [True, False], {"kernel": [True], "bias": True}]
)
def test_a_mask_of_another_structure_is_shown(use, mask):
    with pytest.raises(ValueError, match="mask must have the structure of params, or a prefix"):
        use(mask)


def test_a_prefix_marks_whole_branches():
    params = {"a": PARAMS, "b": PARAMS}
    mask = {"a": True, "b": {"kernel": np.True_, "bias": jnp.bool_(False)}}
    whole = {"a": {"kernel": True, "bias": True}, "b": {"kernel": True, "bias": False}}
    assert bregjax.density(params, mask=mask) == bregjax.density(params, mask=whole)
    key = jax.random.key(0)
    sparse = bregjax.sparsify(key, params, 0.5, mask=mask)
    expected = bregjax.sparsify(key, params, 0.5, mask=whole)
    jax.tree.map(np.testing.assert_array_equal, sparse, expected)
    assert float(sparse["a"]["bias"].min()) == 0
    assert float(sparse["b"]["bias"].min()) == 1
    states = [
        bregjax.linbreg(0.1, bregjax.l1(), 0.5, mask=marks).init(params) for marks in (mask, whole)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert optax.tree.get(states[0], "dual")["b"]["bias"] == optax.MaskedNode()


def test_a_mask_of_other_leaves_is_refused_by_the_counts():
    with pytest.raises(ValueError, match="mask must have the structure of params"):
        bregjax.density(PARAMS, mask={"kernel": True, "other": False})
