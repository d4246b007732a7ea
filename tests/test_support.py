"""Fixed supports: fine-tuning, and full and coarse steps in turn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import apply_updates, assert_close, assert_equal, step_with

import bregjax

STEPS = 16
rng = np.random.default_rng(0)
# Sparse kernels; one bias is zero at first.
START = {
    "kernel": rng.normal(size=(12, 10)) * (rng.random((12, 10)) < 0.5),
    "bias": np.arange(10) / 2,
}
TARGET = {"kernel": 2 * rng.normal(size=(12, 10)), "bias": rng.normal(size=10)}
NOISE = {"kernel": 4 * rng.normal(size=(STEPS, 12, 10)), "bias": rng.normal(size=(STEPS, 10))}


def gradient(params: Any, t: int) -> dict[str, Any]:
    """Of a quadratic, with noise; plain arithmetic, for NumPy and JAX alike."""
    return {name: x - TARGET[name] + NOISE[name][t] for name, x in params.items()}


def start() -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, START)


# ---- freeze_support

TUNERS: dict[str, Any] = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    # The norm is that of the gradient on the support.
    "clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TUNERS)
def test_the_support_is_trained_as_by_the_tuner_alone(name):
    tuner = TUNERS[name]()
    tx: Any = bregjax.freeze_support(tuner)
    support = {"kernel": START["kernel"] != 0, "bias": np.ones(10, bool)}
    params = expected = start()
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        state, alone = tx.init(params), tuner.init(params)
        assert_equal(state.support, support)
        for t in range(STEPS):
            params, state = step_with(tx)(params, state, gradient(params, t))
            masked = jax.tree.map(lambda g, live: g * live, gradient(expected, t), support)
            expected, alone = step_with(tuner)(expected, alone, masked)
            assert_close(params, expected)
            assert np.all(np.asarray(params["kernel"])[~support["kernel"]] == 0)
    assert np.all(params["bias"] != START["bias"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zeros_stay_zero_even_if_the_tuner_moves_them(dtype):
    # Decay towards 1 acts without a gradient.
    pull = optax.stateless(lambda updates, params: jax.tree.map(lambda x: 0.3 - 0.3 * x, params))
    params = {"w": jnp.array([[1.5, 0.0, -0.0, 3.0]], dtype)}
    tx, zeros = bregjax.freeze_support(pull), np.array([[False, True, True, False]])
    state = tx.init(params)
    for _ in range(3):
        params, state = step_with(tx)(params, state, params)
        np.testing.assert_array_equal(params["w"] == 0, zeros)
        assert not np.any(np.signbit(params["w"].astype(jnp.float32)[zeros]))
    assert abs(float(params["w"][0, 3]) - (1 + 2 * 0.7**3)) < 0.02


def test_the_mask_says_which_leaves_have_a_support():
    mask = {"kernel": False, "bias": True}
    tx: Any = bregjax.freeze_support(optax.sgd(0.1), mask=mask)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), start())
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    after: Any = apply_updates(params, updates)
    np.testing.assert_allclose(after["kernel"], START["kernel"] - 0.1, rtol=1e-5)
    np.testing.assert_allclose(
        after["bias"], np.where(START["bias"] != 0, START["bias"] - 0.1, 0), rtol=1e-5
    )
    # Optax asks for the state of a placeholder to find what is shaped like the parameters.
    labels: Any = optax.tree_map_params(tx, lambda _: True, state)
    assert labels.support == {"kernel": True, "bias": True}


# ---- multilevel

RATE, STRENGTH, DELTA, BETA = 0.3, 0.8, 0.5, 0.5


def falling(count: Any) -> Any:
    """So that there is evidence to wake for at every step."""
    return STRENGTH - 0.03 * count


INNER: dict[str, Any] = {
    "linbreg": lambda: bregjax.linbreg(RATE, bregjax.l1(), falling, delta=DELTA),
    "heavy ball": lambda: bregjax.linbreg(RATE, bregjax.l1(), falling, delta=DELTA, momentum=BETA),
    "adabreg": lambda: bregjax.adabreg(RATE, bregjax.l1(), falling, delta=DELTA, b1=BETA, b2=0.8),
    # A norm that includes what is frozen would be another one.
    "clip": lambda: optax.chain(optax.clip_by_global_norm(20.0), INNER["linbreg"]()),
    "partition": lambda: optax.partition(
        {"sparse": INNER["linbreg"](), "plain": optax.sgd(RATE)},
        {"kernel": "sparse", "bias": "plain"},
    ),
}


def numpy_multilevel(name: str, m: int) -> Any:
    """Yields parameters, dual, first and second moments after each step."""
    w = {leaf: x.copy() for leaf, x in START.items()}
    v = w["kernel"] / DELTA + falling(0) * np.sign(w["kernel"])
    first = {leaf: np.zeros_like(x) for leaf, x in w.items()}
    second = {leaf: np.zeros_like(x) for leaf, x in w.items()}
    support = np.ones_like(v, bool)
    for t in range(STEPS):
        full, g = t % (m + 1) == 0, gradient(w, t)
        moving = {"kernel": full | support, "bias": np.ones(10, bool)}
        if name == "clip":
            norm = np.sqrt(sum(np.sum(g[leaf][on] ** 2) for leaf, on in moving.items()))
            g = {leaf: x * min(1, 20 / norm) for leaf, x in g.items()}
        step = {}
        for leaf, on in moving.items():
            if name == "adabreg":
                first[leaf][on] = (BETA * first[leaf] + (1 - BETA) * g[leaf])[on]
                second[leaf][on] = (0.8 * second[leaf] + 0.2 * g[leaf] ** 2)[on]
                root = np.sqrt(second[leaf] / (1 - 0.8 ** (t + 1)))
                step[leaf] = RATE * first[leaf] / (1 - BETA ** (t + 1)) / (root + 1e-8)
            elif name == "heavy ball":
                # The rate is inside the average, and the sign that of the step.
                first[leaf][on] = (BETA * first[leaf] - (1 - BETA) * RATE * g[leaf])[on]
                step[leaf] = -first[leaf]
            else:
                step[leaf] = RATE * g[leaf]
        on = moving["kernel"]
        v = np.where(on, v - step["kernel"], v)
        shrunk = DELTA * np.sign(v) * np.maximum(np.abs(v) - falling(t), 0)
        w = {"kernel": np.where(on, shrunk, w["kernel"]), "bias": w["bias"] - step["bias"]}
        if full:
            support = w["kernel"] != 0
        yield w, v, first, second


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", INNER)
def test_full_and_coarse_steps_follow_a_numpy_loop(name):
    m = 3
    tx: Any = bregjax.multilevel(INNER[name](), m)
    changes = {"slept": 0, "woke": 0, "held back": 0}
    with jax.numpy_dtype_promotion("standard"):  # for schedules and Optax's Adam
        params, step = start(), jax.jit(step_with(tx))
        state = tx.init(params)
        for t, (w, v, first, second) in enumerate(numpy_multilevel(name, m)):
            before = np.asarray(params["kernel"])
            params, state = step(params, state, gradient(params, t))
            assert_close(params, jax.tree.map(jnp.asarray, w))
            buffers = {"dual": {"kernel": v}}
            if name == "adabreg":
                buffers |= {"mu": first, "nu": second}
            if name == "heavy ball":
                buffers["trace"] = first
            for buffer, expected in buffers.items():
                for leaf, x in expected.items():
                    actual = optax.tree.get(state, buffer)[leaf]
                    np.testing.assert_allclose(actual, x, rtol=0, atol=1e-12)
            if t % (m + 1) != 0:
                changes["slept"] += np.sum((before != 0) & (w["kernel"] == 0))
                changes["woke"] += np.sum((before == 0) & (w["kernel"] != 0))
                changes["held back"] += np.sum((np.abs(v) > falling(t)) & (w["kernel"] == 0))
    # The comparison means something: the support is left, entered again, and closed to others.
    assert min(changes.values()) >= 1, changes


@pytest.mark.parametrize("name", INNER)
def test_without_coarse_steps_it_is_the_inner_optimizer(name):
    inner = INNER[name]()
    tx: Any = bregjax.multilevel(inner, 0)
    params = other = jax.tree.map(lambda x: x.astype(jnp.float32), start())
    with jax.numpy_dtype_promotion("standard"):
        state, inner_state = tx.init(params), inner.init(params)
        for t in range(4):
            given = jax.tree.map(lambda g: g.astype(jnp.float32), gradient(params, t))
            params, state = step_with(tx)(params, state, given)
            other, inner_state = step_with(inner)(other, inner_state, given)
        assert_equal((params, state.inner_state), (other, inner_state))


def test_the_state_of_a_random_regularizer_keeps_its_shape():
    tx: Any = bregjax.multilevel(bregjax.linbreg(0.1, bregjax.soft_bernoulli(0.2), 0.5), 1)
    params = {"w": jnp.ones((2, 2))}
    state: Any = tx.init(params)
    _, next_state = jax.eval_shape(tx.update, params, state, params)
    shapes, next_shapes = (jax.tree.map(lambda x: x.shape, s) for s in (state, next_state))
    assert next_shapes == shapes


def by_name() -> Any:
    rules = bregjax.label_by_path({"*/kernel": "sparse"}, default="plain")
    sparse = bregjax.linbreg(RATE, bregjax.l1(), STRENGTH)
    return optax.partition({"sparse": sparse, "plain": optax.sgd(RATE)}, rules)


WITH_STATE: dict[str, Any] = {
    "labels by path": by_name,
    "nuclear": lambda: bregjax.linbreg(RATE, bregjax.nuclear(), 0.1),
    "warm": lambda: bregjax.linbreg(RATE, bregjax.nuclear(method="warm"), 0.1),
    "batched": lambda: bregjax.linbreg(
        RATE, bregjax.batched(bregjax.nuclear()), 0.1, mask={"a": {"kernel": False}, "b": True}
    ),
    "random": lambda: bregjax.linbreg(RATE, bregjax.soft_bernoulli(0.2), 0.5),
}


WRAPPERS: dict[str, Any] = {
    "multilevel": lambda inner: bregjax.multilevel(inner, 0),
    "pruning": lambda inner: bregjax.baselines.magnitude_pruning(inner, 1.0),
    "dynamic": lambda inner: bregjax.baselines.dynamic_sparsity(inner, every=9, stop=10),
}


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        *(("multilevel", name) for name in WITH_STATE),
        ("pruning", "labels by path"),
        ("pruning", "random"),
        ("dynamic", "labels by path"),
        ("dynamic", "random"),
    ],
)
def test_a_wrapper_that_has_nothing_to_do_is_its_inner_optimizer(wrapper, name):
    inner, keys = WITH_STATE[name](), jax.random.split(jax.random.key(0), 2)
    params = {
        "a": {"kernel": jax.random.normal(keys[0], (4, 3))},
        "b": {"kernel": jax.random.normal(keys[1], (2, 4, 3))},
    }
    tx: Any = WRAPPERS[wrapper](inner)
    ours, others = (params, tx.init(params)), (params, inner.init(params))
    for _ in range(2):
        ours = step_with(tx)(*ours, jax.tree.map(lambda x: x - 1, ours[0]))
        others = step_with(inner)(*others, jax.tree.map(lambda x: x - 1, others[0]))
    assert_close(ours[0], others[0])


def test_the_state_of_a_regularizer_is_mapped_with_trees_like_the_parameters():
    tx: Any = bregjax.linbreg(0.1, bregjax.nuclear(), 0.1)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}
    state, names = tx.init(params), {"a": "first", "b": "second"}
    mapped = optax.tree_map_params(tx, lambda _, name: name, state, names)
    (dual,) = bregjax.states_of(mapped, bregjax.MirrorState)
    (prox,) = bregjax.states_of(mapped, bregjax.ProxState)
    assert dual.dual == names
    assert prox.regularizer_state.rank == names


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_a_bad_number_of_coarse_steps_is_named(value):
    with pytest.raises(ValueError, match=f"m={value!r}"):
        bregjax.multilevel(optax.sgd(0.1), value)


@pytest.mark.parametrize(
    "tx", [bregjax.freeze_support(optax.sgd(0.1)), bregjax.multilevel(optax.sgd(0.1), 1)]
)
def test_missing_params_raise(tx):
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="params=None"):
        tx.update(params, tx.init(params))
