"""Bad arguments of regularizers, and the random regularizer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

MATRIX = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either axis or all_but, got axis=None, all_but=None"),
        ({"axis": 0, "all_but": 1}, "give either axis or all_but, got axis=0, all_but=1"),
        ({"axis": "rows"}, "got axis='rows'"),
        ({"axis": 1.0}, "got axis=1.0"),
        ({"axis": True}, "got axis=True"),
        ({"axis": (0, 0)}, "distinct integers, got axis=(0, 0)"),
        ({"all_but": (1, 1)}, "distinct integers, got all_but=(1, 1)"),
        ({"all_but": (0, None)}, "got all_but=(0, None)"),
    ],
)
def test_group_l2_rejects(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.group_l2(**arguments)


@pytest.mark.parametrize(
    ("regularizer", "x", "message"),
    [
        (bregjax.group_l2(axis=2), MATRIX, "axis=(2,) is out of range for an array of 2 dim"),
        (bregjax.group_l2(axis=-3), MATRIX, "axis=(-3,) is out of range"),
        (bregjax.group_l2(all_but=4), MATRIX, "all_but=(4,) is out of range"),
        (bregjax.group_l2(axis=(0, -2)), MATRIX, "axis=(0, -2) names an axis twice"),
        (bregjax.group_l2(all_but=(0, -2)), MATRIX, "all_but=(0, -2) names an axis twice"),
        (bregjax.per_kernel(), jnp.ones(3), "(in_axis, out_axis)=(-2, -1) is out of range"),
        (bregjax.per_input_channel(), jnp.ones(3), "out of range for an array of 1 dimensions"),
        (bregjax.sparse_group(2), MATRIX, "axis=(2,) is out of range"),
        (bregjax.nuclear(), jnp.ones(3), "two or more dimensions, got shape (3,)"),
        (bregjax.nuclear(row_axes=2), MATRIX, "row_axes=(2,) is out of range for shape (2, 3)"),
        (bregjax.nuclear(row_axes=(0, -2)), MATRIX, "row_axes=(0, -2) names an axis twice"),
    ],
)
@pytest.mark.parametrize("method", ["value", "prox", "subgradient"])
def test_axes_that_do_not_fit_the_array(regularizer, x, message, method):
    arguments = (x, 0.1) if method == "prox" else (x,)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(regularizer, method)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": bregjax.l1()}, "axis must be axes or a group regularizer"),
        ({"axis": bregjax.sparse_group(0)}, "axis must be axes or a group regularizer"),
        ({"axis": (0, 0)}, "got axis=(0, 0)"),
        ({"axis": None}, "got axis=None"),
        ({"axis": 0, "l1_weight": -1.0}, "l1_weight must be at least 0, got l1_weight=-1.0"),
        ({"axis": 0, "group_weight": -0.5}, "group_weight must be at least 0"),
        ({"axis": 0, "group_weight": "much"}, "got group_weight='much'"),
        ({"axis": 0, "l1_weight": float("nan")}, "got l1_weight=nan"),
        ({"axis": 0, "l1_weight": np.ones(2)}, "l1_weight must be one number"),
    ],
)
def test_sparse_group_rejects(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.sparse_group(**arguments)


@pytest.mark.parametrize("row_axes", [(0, 0), 0.5, "rows", (0, True)])
def test_nuclear_rejects(row_axes):
    with pytest.raises(ValueError, match=re.escape(f"got row_axes={row_axes!r}")):
        bregjax.nuclear(row_axes=row_axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": -0.1}, "probability must be at least 0, got probability=-0.1"),
        ({"probability": 1.5}, "probability must be at most 1, got probability=1.5"),
        ({"height": -1.0}, "height must be at least 0, got height=-1.0"),
        ({"height": None}, "got height=None"),
        ({"key": "seed"}, "key must be one PRNG key or an integer seed, got key='seed'"),
        ({"key": 1.0}, "got key=1.0"),
        ({"key": None}, "got key=None"),
        ({"key": True}, "got key=True"),
        ({"key": np.zeros(2)}, "got key=array"),
    ],
)
def test_soft_bernoulli_rejects(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.soft_bernoulli(**arguments)


def test_a_constructor_that_was_not_called_is_named():
    with pytest.raises(TypeError, match=r"Call the constructor: l1\(\), not l1"):
        bregjax.prox_step(bregjax.l1, 0.1)  # pyright: ignore[reportArgumentType]


def test_each_soft_bernoulli_equals_itself_alone():
    # As a static argument of a jitted function a regularizer chooses the program.
    prox = jax.jit(lambda regularizer, x: regularizer.prox(x, 0.5), static_argnums=0)
    x = jnp.array([0.1, 2.0])
    np.testing.assert_array_equal(prox(bregjax.soft_bernoulli(0.0), x), [0, 1.5])
    np.testing.assert_array_equal(prox(bregjax.soft_bernoulli(1.0), x), [1, 1.5])
    assert bregjax.soft_bernoulli(0.3) != bregjax.soft_bernoulli(0.3)


def test_soft_bernoulli_follows_its_formula():
    p, h, step = 0.3, 1.5, 0.5
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    x[:1000] = 0
    y = np.asarray(bregjax.soft_bernoulli(p, h, key=7).prox(jnp.asarray(x), step))
    soft = np.asarray(bregjax.l1().prox(jnp.asarray(x), step))
    assert (y[:1000] == 0).all()
    lifted = np.sign(x) * np.maximum(np.abs(soft), h)
    # Each entry is one of the two; where they differ, the share of lifted ones is p.
    assert np.all((np.abs(y - soft) < 1e-6) | (np.abs(y - lifted) < 1e-6))
    distinct = np.abs(lifted - soft) > 1e-3
    share = np.mean(np.abs(y - lifted)[distinct] < 1e-6)
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / distinct.sum())


def test_soft_bernoulli_without_chance_or_height_is_l1():
    x = jnp.linspace(-2, 2, 41)
    for regularizer in (bregjax.soft_bernoulli(0.0), bregjax.soft_bernoulli(1.0, 0.0)):
        np.testing.assert_array_equal(regularizer.prox(x, 0.3), bregjax.l1().prox(x, 0.3))
        np.testing.assert_array_equal(regularizer.value(x), bregjax.l1().value(x))
        np.testing.assert_array_equal(regularizer.subgradient(x), bregjax.l1().subgradient(x))


def wake_ups(regularizer: bregjax.Regularizer, steps: int) -> list[list[np.ndarray]]:
    """Which entries of two equal leaves wake in each step."""
    params = {"a": jnp.full((40, 50), 0.1), "b": jnp.full((40, 50), 0.1)}
    tx = bregjax.prox_step(regularizer, strength=0.5)
    state = tx.init(params)
    update = jax.jit(tx.update)
    result = []
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        moved = optax.apply_updates(params, updates)
        result.append([np.asarray(leaf != 0) for leaf in jax.tree.leaves(moved)])
    return result


def test_soft_bernoulli_draws_anew_for_each_step_and_leaf():
    masks = [leaf for step in wake_ups(bregjax.soft_bernoulli(0.5, key=3), 3) for leaf in step]
    for i, a in enumerate(masks):
        assert abs(a.mean() - 0.5) < 4 * 0.5 / np.sqrt(a.size)
        for b in masks[:i]:
            # Independent draws agree in half of the entries.
            assert abs((a == b).mean() - 0.5) < 4 * 0.5 / np.sqrt(a.size)


def test_soft_bernoulli_is_reproducible_by_key():
    first = wake_ups(bregjax.soft_bernoulli(0.5, key=3), 2)
    np.testing.assert_array_equal(first, wake_ups(bregjax.soft_bernoulli(0.5, key=3), 2))
    same_key = bregjax.soft_bernoulli(0.5, key=jax.random.key(3))
    np.testing.assert_array_equal(first, wake_ups(same_key, 2))
    assert not np.array_equal(first, wake_ups(bregjax.soft_bernoulli(0.5, key=4), 2))


def test_numpy_integers_are_integers():
    x = jnp.full((40, 50), 0.1)
    first = bregjax.soft_bernoulli(0.5, key=np.int64(3)).prox(x, 0.5)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(first, bregjax.soft_bernoulli(0.5, key=3).prox(x, 0.5))
    assert bregjax.group_l2(np.int64(1)) == bregjax.group_l2(1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got key="):
        bregjax.soft_bernoulli(key=jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 3, 0, 2)])
def test_arrays_without_entries_stay_as_they_are(shape):
    x = jnp.zeros(shape)
    methods = ("svd", "gram", "randomized", "warm")
    spectral = [bregjax.nuclear(method=method) for method in methods]
    for regularizer in (bregjax.l1(), bregjax.per_kernel(), bregjax.sparse_group(0), *spectral):
        assert regularizer.prox(x, 0.5).shape == shape
        assert regularizer.subgradient(x).shape == shape
        assert regularizer.value(x) == 0
        tx = bregjax.linbreg(0.1, regularizer, 0.5)
        updates, _ = jax.jit(tx.update)(x, tx.init(x), x)
        assert updates.shape == shape


def test_soft_bernoulli_keeps_the_dtype():
    x = jnp.full((4,), 0.1, jnp.bfloat16)
    assert bregjax.soft_bernoulli(0.5).prox(x, 0.5).dtype == jnp.bfloat16
