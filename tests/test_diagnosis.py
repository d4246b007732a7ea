"""What is chained behind the step is found, and nothing else is taken for it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from optimizer_table import CASES, STEPS, each_kind, gradients, network, step_with

import bregjax

OTHERS: dict[str, Any] = {
    "steer, adaptive": bregjax.steer(bregjax.linbreg(0.2, bregjax.l1(), 1.0), 0.3),
    "steer, exact": bregjax.steer(bregjax.linbreg(0.2, bregjax.l1(), 1.0), 0.3, exact=True),
    "adabreg_to_density": bregjax.adabreg_to_density(0.3, STEPS),
    "adabreg_to_density, groups": bregjax.adabreg_to_density(
        0.3, STEPS, regularizer=bregjax.per_neuron()
    ),
    "keep_weights": bregjax.adabreg(
        0.2, bregjax.l1(), optax.linear_schedule(0.1, 0.5, STEPS), keep_weights=True
    ),
    "injected": optax.inject_hyperparams(bregjax.linbreg, static_args=("regularizer",))(
        0.2, bregjax.l1(), optax.linear_schedule(0.1, 0.5, STEPS)
    ),
    "two of them": optax.partition(
        {
            "conv": bregjax.linbreg(0.2, bregjax.per_kernel(), 0.5),
            "dense": bregjax.steer(bregjax.linbreg(0.2, bregjax.l1(), 1.0), 0.3),
        },
        bregjax.label_by_kind,
    ),
}
# Of these the parameters are no function of the dual: after the landing, and with a random prox.
UNKNOWN = ("landing", "linbreg_soft_bernoulli")
WITH_DUAL = [name for name in CASES if CASES[name].has_dual]


def words(tx: Any, steps: int = STEPS, dtype: Any = jnp.float32) -> str:
    """What the diagnosis says about what comes behind the step."""
    params = jax.tree.map(jnp.abs, network(dtype=dtype))  # nonneg_l1 allows no others
    state, step = tx.init(params), jax.jit(step_with(tx))
    for gradient in gradients(params)[:steps]:
        params, state = step(params, state, gradient)
    said = bregjax.diagnose(tx, state, params)
    return " ".join(sentence for sentence in said if "behind the step" in sentence)


@each_kind(WITH_DUAL)
def test_what_comes_behind_the_step(name):
    check_behind(CASES[name].make(), name not in UNKNOWN)


@pytest.mark.parametrize("name", OTHERS)
def test_what_comes_behind_the_step_of_others(name):
    check_behind(OTHERS[name], known=True)


@jax.numpy_dtype_promotion("standard")
def check_behind(tx: Any, known: bool) -> None:
    assert words(tx, steps=0) == ""
    assert words(tx) == ""
    said = words(optax.chain(tx, optax.scale(0.5)))
    assert ("conv/kernel, dense/kernel is not what the dual says" in said) == known


def test_decay_behind_the_step_is_found():
    said = words(optax.chain(CASES["linbreg"].make(), optax.add_decayed_weights(-0.1)))
    assert "conv/kernel, dense/kernel is not what the dual says" in said


@jax.numpy_dtype_promotion("standard")
def test_rounding_to_bfloat16_is_no_change():
    tx = bregjax.adabreg(0.2, bregjax.l1(), 0.5)
    assert words(tx, dtype=jnp.bfloat16) == ""
    behind = optax.add_decayed_weights(-0.2)
    assert "dense/kernel" in words(optax.chain(tx, behind), dtype=jnp.bfloat16)


def test_a_state_that_is_older_than_the_weights():
    tx = bregjax.linbreg(0.2, bregjax.l1(), 0.5)
    params = network()
    state = tx.init(params)
    thinned = bregjax.sparsify(jax.random.key(0), params, 0.2, rescale=False)
    assert "call tx.init again" in " ".join(bregjax.diagnose(tx, state, thinned))


def _trained_with(behind: optax.GradientTransformation) -> tuple[Any, Any, Any]:
    tx = optax.chain(bregjax.adabreg_to_density(0.1, 200), behind)
    params: Any = {"kernel": jax.random.normal(jax.random.key(0), (20, 30)), "bias": jnp.zeros(30)}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(200):
        gradient = jax.tree.map(lambda x, s=step: x - jnp.sin(7.0 * x + s), params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return tx, state, params


@pytest.mark.parametrize(
    "behind",
    [optax.scale(0.5), optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 200))],
    ids=["scale", "schedule"],
)
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_what_lives_is_compared_with_what_was_asked_for(behind):
    tx, state, params = _trained_with(behind)
    words = " ".join(bregjax.diagnose(tx, state, params))
    share = 100 * float(bregjax.density(params))
    assert share > 11
    assert f"{share:.0f} % of the weights live, where exact steering has left 10 %" in words


@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_nan_in_the_parameters_alone_is_named_in_weights_and_biases():
    tx, state, params = _trained_with(optax.identity())
    assert not [x for x in bregjax.diagnose(tx, state, params) if "live, where" in x]
    for name in params:
        spoilt = params | {name: params[name].at[0].set(jnp.nan)}
        assert bregjax.diagnose(tx, state, spoilt)[0].startswith(f"{name} is not finite")


def test_a_flax_model_and_outputs_of_one_dimension():
    model = nnx.Linear(6, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, bregjax.linbreg(0.1, bregjax.l1(), 0.01), wrt=nnx.Param)
    arguments = optimizer.tx, optimizer.opt_state
    of_params = bregjax.diagnose(*arguments, nnx.state(model, nnx.Param))
    assert bregjax.diagnose(*arguments, model) == of_params
    assert bregjax.diagnose(*arguments, model, jnp.arange(5.0)) == of_params
    assert "The network is dead" in bregjax.diagnose(*arguments, model, jnp.ones(5))[-1]
