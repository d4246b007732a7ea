"""Zeros of the prox are zeros of the parameters, and what is not regularized is untouched."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import apply_updates

import bregjax


def weights(seed, dtype, shape=(300, 200), scale=1.0):
    values = scale * jax.random.normal(jax.random.key(seed), shape)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("regularizer", "strength"),
    [
        (bregjax.l1(), 0.8),
        (bregjax.nonneg_l1(), 0.8),
        (bregjax.per_neuron(), 1.41),  # near the root mean square of the entries, √2
        (bregjax.sparse_group(0), 0.58),
    ],
    ids=["l1", "nonneg_l1", "per_neuron", "sparse_group"],
)
def test_zeros_of_the_prox_survive_apply_updates(dtype, regularizer, strength):
    params = {"w": weights(0, dtype)}
    tx = bregjax.prox_step(regularizer, strength)
    step = {"w": weights(1, dtype)}
    # The point whose prox the step takes, computed as the step computes it.
    point = params["w"].astype(jnp.float32) + step["w"].astype(jnp.float32)
    target = regularizer.prox(point, strength)
    updates, _ = tx.update(step, tx.init(params), params)
    after = apply_updates(params, updates)["w"]
    zeros = target == 0
    assert after.dtype == dtype
    assert 1000 <= int(zeros.sum()) <= zeros.size - 1000
    assert np.all(after[zeros] == 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [bregjax.linbreg, bregjax.adabreg])
def test_zeros_of_the_dual_map_survive_every_step(dtype, make):
    strength, delta = 1.0, 0.5
    tx = make(0.3, bregjax.l1(), strength, delta=delta)
    params = {"w": weights(0, dtype)}
    state = tx.init(params)
    counts = []
    for seed in range(1, 6):
        with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
            updates, state = tx.update({"w": weights(seed, dtype, scale=3.0)}, state, params)
        params = apply_updates(params, updates)
        dual = optax.tree.get(state, "dual")["w"]
        zeros = np.asarray(bregjax.l1().prox(delta * dual, delta * strength)) == 0
        assert np.all(params["w"][zeros] == 0.0)
        counts.append(int(zeros.sum()))
    assert all(1000 <= count <= zeros.size - 1000 for count in counts)


def test_small_survivors_beside_large_old_values_stay_in_bfloat16():
    """A survivor may vanish by bfloat16's own rounding only: here no target is that small."""
    params = {"w": jnp.full((1000,), 100.0, jnp.bfloat16)}
    # Targets 0.001 … 0.1 above the threshold, far below the spacing 0.5 of bfloat16 at 100.
    targets = np.linspace(0.001, 0.1, 1000, dtype=np.float32)
    tx = bregjax.bregman_step(bregjax.l1(), strength=1.0)
    state = tx.init(params)
    move = {"w": jnp.asarray(targets) - 100.0}
    updates: Any
    updates, _ = tx.update(move, state, params)
    after = apply_updates(params, updates)["w"]
    assert updates["w"].dtype == jnp.float32
    assert int(jnp.sum(after == 0)) == 0
    # In float32 the difference to 100 is exact to 1e-5; the sum is rounded to bfloat16 once.
    np.testing.assert_allclose(after.astype(jnp.float32), targets, rtol=2.0**-8, atol=2e-5)
    # Cast to bfloat16 before it is added, the update would erase the small ones.
    early = apply_updates(params, jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates))["w"]
    assert int(jnp.sum(early == 0)) >= 900


def test_zeros_in_bfloat16_are_those_of_float32():
    """The share of zeros is that of the same numbers in float32, but for values that underflow."""
    start, step = weights(0, jnp.bfloat16, scale=0.1), weights(1, jnp.bfloat16, scale=2.0)
    counts = []
    for dtype in (jnp.bfloat16, jnp.float32):
        params = {"w": start.astype(dtype)}
        tx = bregjax.bregman_step(bregjax.l1(), strength=1.0)
        updates, _ = tx.update({"w": step.astype(dtype)}, tx.init(params), params)
        counts.append(int(jnp.sum(apply_updates(params, updates)["w"] == 0)))
    assert 10_000 < counts[1] < 50_000
    assert counts[0] == counts[1]


OPTIMIZERS = {
    "linbreg": (bregjax.linbreg(0.1, bregjax.l1(), 1.0), optax.sgd(0.1)),
    "linbreg_momentum": (
        bregjax.linbreg(0.1, bregjax.l1(), 1.0, momentum=0.5),
        # Ours averages, Optax's sgd sums: half the rate. Exact, as 0.5 is a power of two.
        optax.sgd(0.05, momentum=0.5),
    ),
    "linbreg_nesterov": (
        bregjax.linbreg(0.1, bregjax.l1(), 1.0, momentum=0.5, nesterov=True),
        optax.sgd(0.05, momentum=0.5, nesterov=True),
    ),
    "adabreg": (bregjax.adabreg(0.1, bregjax.l1(), 1.0), optax.adam(0.1)),
    "prox_sgd": (bregjax.prox_sgd(0.1, bregjax.l1(), 1.0), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unmasked_leaves_get_the_base_optimizer(name, dtype):
    tx, base = OPTIMIZERS[name]
    params = {"kernel": weights(0, dtype, (6, 4)), "bias": weights(1, dtype, (4,))}
    ours, alone = params, {"bias": params["bias"]}
    updates: Any
    state, base_state = tx.init(ours), base.init(alone)
    if name != "prox_sgd":
        dual = optax.tree.get(state, "dual")
        assert isinstance(dual["bias"], optax.MaskedNode)
        assert len(jax.tree.leaves(dual)) == 1
    for seed in range(5):
        grads = {
            "kernel": weights(2 * seed, dtype, (6, 4)),
            "bias": weights(2 * seed + 1, dtype, (4,)),
        }
        with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
            updates, state = tx.update(grads, state, ours)
            base_updates, base_state = base.update({"bias": grads["bias"]}, base_state, alone)
        assert updates["bias"].dtype == dtype
        ours = apply_updates(ours, updates)
        alone = apply_updates(alone, base_updates)
        # The rate comes before the momentum here and after it in Optax, and the bias correction
        # of Adam is compiled together with the kernel's: a rounding apart.
        exact = name in ("linbreg", "prox_sgd")
        eps = 0.0 if exact else float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            ours["bias"].astype(jnp.float32),
            alone["bias"].astype(jnp.float32),
            rtol=4 * eps,
            atol=2 * eps,
        )
