"""The strength that `waking_strength` gives wakes the share that was asked for, when it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

STEPS, SHARE = 40, 0.25
SHAPES = {"a": (6, 8), "b": (8, 4)}


def gradients(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def falling(count):
    return 0.1 * 0.95 ** jnp.asarray(count, float)


MAKERS = {
    "linbreg": functools.partial(bregjax.linbreg, 0.1, bregjax.l1()),
    "momentum": functools.partial(bregjax.linbreg, 0.1, bregjax.l1(), momentum=0.9),
    "delta": functools.partial(bregjax.linbreg, 0.1, bregjax.l1(), delta=0.3),
    "schedule": functools.partial(bregjax.linbreg, falling, bregjax.l1()),
    "per_neuron": functools.partial(bregjax.linbreg, 0.1, bregjax.per_neuron()),
    "unweighted": functools.partial(bregjax.linbreg, 0.1, bregjax.per_neuron(size_weighted=False)),
    "sparse_group": functools.partial(
        bregjax.linbreg, 0.1, bregjax.sparse_group(bregjax.per_neuron())
    ),
    "clipped": lambda s: optax.chain(optax.clip(0.5), bregjax.linbreg(0.1, bregjax.l1(), s)),
    "partition": lambda s: optax.partition(
        {
            "a": bregjax.linbreg(0.1, bregjax.l1(), s),
            "b": bregjax.linbreg(0.2, bregjax.l1(), 3 * s),
        },
        {"a": "a", "b": "b"},
    ),
}


def density_after(tx: optax.GradientTransformation, grads, steps: int) -> float:
    params = jax.tree.map(jnp.zeros_like, grads)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return float(bregjax.density(params))


@pytest.mark.parametrize("name", MAKERS)
def test_the_share_is_awake_after_so_many_steps_and_not_before(name):
    make, grads = MAKERS[name], gradients()
    strength = bregjax.waking_strength(make(1.0), grads, STEPS, SHARE)
    tx = make(float(strength))
    awake = density_after(tx, grads, STEPS)
    if name in ("clipped", "schedule", "momentum", "linbreg", "delta", "partition"):
        # Of 80 entries 20; the clipped ones have equal evidence and wake together.
        assert awake == SHARE or (name == "clipped" and awake > SHARE)
    else:
        assert SHARE <= awake <= SHARE + 8 / 80
    assert density_after(tx, grads, STEPS // 4) < awake


def test_with_adabreg_it_is_learning_rate_times_steps():
    for regularizer in (bregjax.l1(), bregjax.per_neuron()):
        tx = bregjax.adabreg(5e-3, regularizer, 1.0)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            strength = bregjax.waking_strength(tx, gradients(), STEPS, SHARE)
        np.testing.assert_allclose(strength, 5e-3 * STEPS, rtol=1e-5)


def test_it_is_relative_to_the_strength_that_was_given_and_jittable():
    grads = gradients()
    of = lambda s: bregjax.waking_strength(  # noqa: E731
        bregjax.linbreg(0.1, bregjax.l1(), s), grads, STEPS, SHARE
    )
    np.testing.assert_allclose(4 * of(4.0), of(1.0), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: of(1.0))(), of(1.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"density": 0}, "density must be greater than 0"),
        ({"density": 5}, "density must be at most 1"),
        ({"optimizer": optax.sgd(0.1)}, "optimizer has no mirror_step"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {
        "optimizer": bregjax.linbreg(0.1, bregjax.l1(), 1.0),
        "gradients": gradients(),
        "steps": STEPS,
        "density": SHARE,
    }
    with pytest.raises(ValueError, match=message):
        bregjax.waking_strength(**good | change)


def test_of_less_than_half_a_weight_none_wakes():
    tx, grads = bregjax.linbreg(0.1, bregjax.l1(), 1.0), gradients()
    strength = bregjax.waking_strength(tx, grads, STEPS, 1e-3)
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(grads))
    np.testing.assert_allclose(strength, 0.1 * STEPS * largest, rtol=1e-5)


def test_the_number_of_weights_is_rounded():
    tx, grads = bregjax.linbreg(0.1, bregjax.l1(), 1.0), gradients()
    of = [bregjax.waking_strength(tx, grads, STEPS, n / 80) for n in (19, 19.6, 20, 20.4)]
    assert of[0] > of[1] == of[2] == of[3]
