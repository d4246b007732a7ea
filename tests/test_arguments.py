"""What cannot be right is an error that names the argument and its value."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax

L1: Any = bregjax.l1()
SGD: Any = optax.sgd(0.1)

# Every number that an optimizer or a wrapper takes, by a function of its value.
NUMBERS: dict[str, Any] = {
    "strength": lambda x: bregjax.linbreg(0.1, L1, x),
    "learning_rate": lambda x: bregjax.adabreg(x, L1, 1.0),
    "delta": lambda x: bregjax.linbreg(0.1, L1, 1.0, delta=x),
    "momentum": lambda x: bregjax.linbreg(0.1, L1, 1.0, momentum=x),
    "b1": lambda x: bregjax.adabreg(0.1, L1, 1.0, b1=x),
    "b2": lambda x: bregjax.adabreg(0.1, L1, 1.0, b2=x),
    "eps": lambda x: bregjax.adabreg(0.1, L1, 1.0, eps=x),
    "weight_decay": lambda x: bregjax.adabreg(0.1, L1, 1.0, weight_decay=x),
    "step_size": lambda x: bregjax.prox_step(L1, 1.0, x),
    "target": lambda x: bregjax.steer(bregjax.linbreg(0.1, L1, 1.0), x),
    "density": lambda x: bregjax.baselines.magnitude_pruning(SGD, x),
    "drop_fraction": lambda x: bregjax.baselines.rigl(SGD, every=1, stop=9, drop_fraction=x),
}
BAD = {
    "negative": -1.0,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "array": np.float32(-1),
    "concrete": jnp.array(-1.0),
    "concrete NaN": jnp.array([jnp.nan]),
    "complex": jnp.array(1j),
    "boolean": np.array(True),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_whether_plain_or_arrays(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {name}="):
        NUMBERS[name](value)


@pytest.mark.parametrize("name", NUMBERS)
def test_traced_numbers_pass(name):
    jax.jit(lambda x: [NUMBERS[name](x), x][1])(jnp.array(-1.0))


@pytest.mark.parametrize("name", ["b1", "b2", "momentum"])
def test_arrays_above_the_range(name):
    with pytest.raises(ValueError, match=f"{name} must be less than 1, got {name}="):
        NUMBERS[name](jnp.array(2.0))


@pytest.mark.parametrize(
    "schedule",
    [
        optax.constant_schedule(5.0),
        optax.linear_schedule(0.5, 5.0, 100),
        optax.linear_schedule(-0.5, 0.5, 100),
    ],
)
def test_a_target_for_five_percent_that_says_five(schedule):
    with pytest.raises(ValueError, match=r"target\(\d+\) must be at "):
        bregjax.steer(bregjax.linbreg(0.1, L1, 1.0), schedule)


WRAPPERS: dict[str, Any] = {
    "steer": lambda x: bregjax.steer(x, 0.1),
    "landing": lambda x: bregjax.landing(x, SGD, 3, count=1),
    "freeze_support": bregjax.freeze_support,
    "multilevel": lambda x: bregjax.multilevel(x, 2),
    "relax_on_plateau": lambda x: bregjax.relax_on_plateau(x, optax.contrib.reduce_on_plateau()),
    "rigl": lambda x: bregjax.baselines.rigl(x, every=1, stop=9),
    "magnitude_pruning": lambda x: bregjax.baselines.magnitude_pruning(x, 0.5),
}


@pytest.mark.parametrize("value", [None, 0.1, optax.sgd], ids=["None", "number", "function"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_wrapped_must_be_a_transformation(name, value):
    with pytest.raises(TypeError, match=r"inner must be an optax.GradientTransformation .*inner="):
        WRAPPERS[name](value)


def test_other_objects_of_a_wrong_kind():
    inner: Any = bregjax.linbreg(0.1, L1, 1.0)
    wrong: Any = 0.1
    with pytest.raises(TypeError, match=r"tuner must be an optax.GradientTransformation .*tuner="):
        bregjax.landing(inner, wrong, 3, count=1)
    with pytest.raises(TypeError, match=r"rule must be a SteeringRule .*rule=0.1"):
        bregjax.steer(inner, 0.1, rule=wrong)
    with pytest.raises(ValueError, match=r"size_weighted must be True or False, got .*'False'"):
        bregjax.per_neuron(size_weighted="False")  # pyright: ignore[reportArgumentType]


def test_how_far_weights_are_kept_is_a_flag_a_share_or_a_schedule_of_them():
    wrong: Any = "often"
    for share in (1.5, -0.1, wrong):
        with pytest.raises(ValueError, match=r"keep_weights must be .*got keep_weights="):
            bregjax.linbreg(0.1, L1, 1.0, keep_weights=share)
    for schedule in (lambda count: count + 2, lambda count: jnp.ones(3, bool)):
        with pytest.raises(ValueError, match=r"keep_weights\(0\) must be .*got keep_weights\(0\)="):
            bregjax.bregman_step(L1, 1.0, keep_weights=schedule)


COUNTS: dict[str, Any] = {
    "step": lambda x: bregjax.landing(bregjax.linbreg(0.1, L1, 1.0), SGD, x, count=1),
    "count": lambda x: bregjax.landing(bregjax.linbreg(0.1, L1, 1.0), SGD, 3, count=x),
    "every": lambda x: bregjax.steer(bregjax.linbreg(0.1, L1, 1.0), 0.1, every=x),
    "m": lambda x: bregjax.multilevel(SGD, x),
    "stop": lambda x: bregjax.baselines.rigl(SGD, every=1, stop=x),
    "rank": lambda x: bregjax.nuclear(rank=x),
}


@pytest.mark.parametrize("value", [2**31, 10**400, -1, 0.5], ids=["2**31", "huge", "-1", "0.5"])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_no_int32_holds(name, value):
    with pytest.raises(ValueError, match=f"{name} must be "):
        COUNTS[name](value)


@pytest.mark.parametrize(
    "key",
    [0, None, nnx.Rngs(0), jnp.zeros(3), jax.random.split(jax.random.key(0))],
    ids=["seed", "None", "Rngs", "floats", "two keys"],
)
def test_sparsify_wants_one_key(key):
    with pytest.raises(ValueError, match=r"key must be one PRNG key, such as jax\.random\.key"):
        bregjax.sparsify(key, {"w": jnp.ones((2, 2))}, 0.5)


def test_streams_of_random_numbers_give_keys():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="Call the stream"):
        bregjax.sparsify(rngs.params, {"w": jnp.ones((2, 2))}, 0.5)  # pyright: ignore[reportArgumentType]
    assert bregjax.density(bregjax.sparsify(rngs.params(), {"w": jnp.ones((2, 2))}, 0.5)) == 0.5


def test_an_optimizer_without_a_dual_cannot_land():
    tx = bregjax.landing(optax.adam(0.1), SGD, 3, count=1)
    with pytest.raises(ValueError, match="inner has no mirror_step, there is nothing to land"):
        tx.init({"w": jnp.ones((2, 2))})
