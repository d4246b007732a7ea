"""`to_density` behind any optimizer: the count is exact, and Adam in front is AdaBreg."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import bregjax

STEPS = 40
RATE = 0.01
IN_FRONT = {
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE, weight_decay=0.1),
    "sgd": lambda: optax.sgd(RATE, momentum=0.9),
    "nadam": lambda: optax.nadam(RATE),
    "lion": lambda: optax.lion(RATE),
    "muon": lambda: contrib.muon(RATE),
    "adafactor": lambda: optax.adafactor(RATE),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
    "lbfgs direction": lambda: optax.scale_by_lbfgs(),
}


@pytest.fixture(autouse=True)
def _dtypes_mix():
    """Some of Optax's optimizers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network() -> Any:
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "first": {"kernel": jax.random.normal(keys[0], (20, 30)), "bias": jnp.zeros(30)},
        "last": {"kernel": jax.random.normal(keys[1], (30, 5)), "bias": jnp.zeros(5)},
    }


def trained(tx: Any, steps: int = STEPS) -> Any:
    inputs = jax.random.normal(jax.random.key(1), (64, 20))
    targets = jnp.sin(inputs[:, :5])

    def loss(p):
        hidden = jnp.tanh(inputs @ p["first"]["kernel"] + p["first"]["bias"])
        return jnp.mean((hidden @ p["last"]["kernel"] + p["last"]["bias"] - targets) ** 2)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), bregjax.density(params)

    params = network()
    (params, state), densities = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params, state, densities


@pytest.mark.parametrize("name", IN_FRONT)
def test_any_optimizer_ends_with_exactly_the_share(name):
    tx = optax.chain(IN_FRONT[name](), bregjax.to_density(0.1, STEPS))
    params, state, densities = trained(tx)
    entries = 20 * 30 + 30 * 5
    assert sum(int(jnp.sum(params[x]["kernel"] != 0)) for x in params) == round(0.1 * entries)
    assert np.all(np.diff(densities) <= 0)
    chex.assert_tree_all_finite(params)
    for layer in params.values():
        assert jnp.all(layer["bias"] != 0)
    # What is in front of it is not in the way of what reads the dual.
    landed = bregjax.land(tx, state, params, density=0.05)
    assert sum(int(jnp.sum(landed[x]["kernel"] != 0)) for x in params) == round(0.05 * entries)
    behind = [text for text in bregjax.diagnose(tx, state, params) if "behind" in text]
    assert not behind


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adabreg_to_density_is_adamw_and_to_density(decay):
    rate = optax.cosine_decay_schedule(RATE, STEPS)
    ours = bregjax.adabreg_to_density(0.1, STEPS, rate, weight_decay=decay)
    adamw = optax.adamw(rate, weight_decay=decay, mask=bregjax.weight_mask)
    chained = optax.chain(adamw, bregjax.to_density(0.1, STEPS))
    chex.assert_trees_all_equal(trained(ours)[0], trained(chained)[0])


def test_it_works_in_the_wrappers_of_optax():
    sparse, dense = bregjax.to_density(0.2, STEPS), optax.identity()
    labels = {"first": "sparse", "last": "dense"}
    of_a_part = optax.chain(
        optax.adam(RATE), optax.partition({"sparse": sparse, "dense": dense}, labels)
    )
    params, _, _ = trained(of_a_part)
    assert int(jnp.sum(params["first"]["kernel"] != 0)) == 120
    assert jnp.all(params["last"]["kernel"] != 0)
    named = optax.named_chain(("adam", optax.adam(RATE)), ("sparse", bregjax.to_density(0.2, 40)))
    assert float(bregjax.density(trained(named)[0])) == pytest.approx(0.2)
    chained = optax.chain(optax.adam(RATE), bregjax.to_density(0.2, STEPS))
    every_other = optax.MultiSteps(chained, 2).gradient_transformation()
    assert float(bregjax.density(trained(every_other, 2 * STEPS)[0])) == pytest.approx(0.2)
