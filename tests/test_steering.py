"""The factor on the strength, the rules that set it, and the sparsity that they reach."""

import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from optimizer_table import apply_updates, assert_close, assert_equal, gradients, network
from optimizer_table import mirror_prox_chain as chain

import bregjax

L1, GROUPS = bregjax.l1(), bregjax.per_neuron()


def soft(x: np.ndarray, s: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - s, 0)


def column_shrink(x: np.ndarray, s: float) -> np.ndarray:
    """The prox of √n·Σ‖column‖."""
    norms = np.linalg.norm(x, axis=0)
    return x * np.maximum(1 - s * np.sqrt(len(x)) / np.maximum(norms, 1e-30), 0)


# ---- the extra arguments of a step

# From the factor on all strengths to the optimizer.
OPTIMIZERS: dict[str, Any] = {
    "linbreg": lambda s: bregjax.linbreg(0.2, L1, 0.5 * s, delta=0.5, momentum=0.5),
    "adabreg": lambda s: bregjax.adabreg(0.2, L1, 0.2 * s, delta=2.0),
    "prox_sgd": lambda s: bregjax.prox_sgd(0.2, L1, 2.0 * s),
    "chain": lambda s: chain(0.2, L1, 0.5 * s, delta=0.5),
    "schedule": lambda s: bregjax.linbreg(0.2, L1, lambda t: 0.3 * s * t),
    "partition": lambda s: optax.partition(
        {
            "conv": bregjax.linbreg(0.2, bregjax.per_kernel(), 0.2 * s),
            "dense": bregjax.linbreg(0.2, L1, 0.8 * s, delta=0.5),
        },
        bregjax.label_by_kind,
    ),
    "inject_hyperparams": lambda s: optax.inject_hyperparams(bregjax.linbreg)(0.2, L1, 0.5 * s),
    "masked": lambda s: optax.masked(
        bregjax.linbreg(0.2, L1, 0.5 * s), {"conv": True, "dense": False}
    ),
    "MultiSteps": lambda s: optax.MultiSteps(
        bregjax.linbreg(0.2, L1, 0.5 * s), every_k_schedule=2
    ).gradient_transformation(),
}


def run(tx: Any, params: Any, grads: Any, **extra_args: Any) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradient, state, params, **extra_args)
        return apply_updates(params, updates), state

    # Strict promotion is too strict for schedules that count and for Optax's Adam and MultiSteps.
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        for gradient in grads:
            params, state = step(params, state, gradient)
    return params, state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_strength_scale_is_a_larger_strength(name):
    # From zero, where the first dual is zero for every strength.
    make, params = OPTIMIZERS[name], jax.tree.map(jnp.zeros_like, network())
    grads = gradients(params)
    scaled, _ = run(make(1.0), params, grads, strength_scale=1.75)
    assert_close(scaled, run(make(1.75), params, grads)[0])
    assert 0 < bregjax.density(scaled) < bregjax.density(run(make(1.0), params, grads)[0])


def test_a_strength_scale_reaches_a_regularizer_with_a_state():
    params = jnp.asarray(SOLUTION)
    moved: Any = []
    for strength, scale in ((0.5, 2.0), (1.0, 1.0), (0.5, 1.0)):
        tx: Any = bregjax.prox_step(bregjax.soft_bernoulli(0.3), strength)
        moved.append(tx.update(params, tx.init(params), params, strength_scale=scale)[0])
    np.testing.assert_array_equal(moved[0], moved[1])
    assert np.any(moved[0] != moved[2])


def test_a_strength_scale_of_none_is_one():
    tx, params = OPTIMIZERS["linbreg"](1.0), network()
    plain, one = (run(tx, params, gradients(params), strength_scale=s) for s in (None, 1.0))
    assert_equal(plain, one)


@pytest.mark.parametrize("name", ["linbreg", "adabreg", "chain"])
def test_with_the_dual_held_the_parameters_are_read_off_it(name):
    tx, start = OPTIMIZERS[name](1.0), network()
    (strength, delta) = (0.2, 2.0) if name == "adabreg" else (0.5, 0.5)
    grads = gradients(start)
    params, state = run(tx, start, grads)
    dual = optax.tree.get(state, "dual")
    with jax.numpy_dtype_promotion("standard"):
        updates, held = tx.update(grads[0], state, params, strength_scale=1.3, hold_dual=True)
    assert_equal(optax.tree.get(held, "dual"), dual)
    for moved, v in zip(*map(jax.tree.leaves, (apply_updates(params, updates), dual)), strict=True):
        expected = soft(delta * np.asarray(v), delta * strength * 1.3)
        np.testing.assert_allclose(moved, expected, rtol=0, atol=2e-6)
        assert 0 < np.count_nonzero(moved) < v.size


# ---- the rules

GAPS = st.lists(st.just(0.0) | st.floats(-1, 1, width=32), min_size=24, max_size=24)


def adaptive(gaps: Any, rate: float, shrink: float, minimum: float) -> list[float]:
    scales, scale, last = [], 1.0, 0.0
    for gap in gaps:
        if gap * last < 0:
            rate = max(shrink * rate, minimum)
        scale *= (1 + rate * abs(gap)) ** np.sign(gap)
        last = np.sign(gap) or last
        scales.append(scale)
    return scales


def discrepancy(gaps: Any, increment: float, warmup: int, cooldown: int) -> list[float]:
    scales, scale = [], 1.0
    for i, gap in enumerate(gaps):
        if i >= warmup and (i - warmup) % (cooldown + 1) == 0:
            scale = scale + increment if gap > 0 else max(scale - increment, 0.0)
        scales.append(scale)
    return scales


def scales_of(rule: bregjax.SteeringRule, gaps: Any) -> jax.Array:
    def step(carry: Any, gap: jax.Array) -> Any:
        scale, state = rule.update(carry[0], gap, carry[1])
        return (scale, state), scale

    return jax.lax.scan(step, (jnp.float32(1.0), rule.init()), gaps)[1]


@jax.jit
def adaptive_scales(gaps: Any, rate: Any, shrink: Any, minimum: Any) -> jax.Array:
    return scales_of(bregjax.adaptive_rule(rate, shrink=shrink, minimum_rate=minimum), gaps)


@functools.cache
def discrepancy_scales(warmup: int, cooldown: int) -> Any:
    def scales(gaps: Any, increment: Any) -> jax.Array:
        rule = bregjax.discrepancy_rule(increment, warmup=warmup, cooldown=cooldown)
        return scales_of(rule, gaps)

    return jax.jit(scales)


unit = functools.partial(st.floats, width=32)


@hypothesis.given(GAPS, unit(0.125, 2), unit(0.5, 1), unit(0, 0.125))
def test_adaptive_rule_is_the_formula(gaps, rate, shrink, minimum):
    actual = adaptive_scales(*(np.asarray(x, np.float32) for x in (gaps, rate, shrink, minimum)))
    np.testing.assert_allclose(actual, adaptive(gaps, rate, shrink, minimum), rtol=3e-5)


def test_the_rate_shrinks_at_changes_of_sign_alone():
    rule = bregjax.adaptive_rule(0.5, shrink=0.5, minimum_rate=0.2)
    scale, state = jnp.float32(1.0), rule.init()
    for gap, rate in [(0.1, 0.5), (0, 0.5), (0.1, 0.5), (0, 0.5), (-0.1, 0.25), (0.1, 0.2)]:
        scale, state = rule.update(scale, jnp.float32(gap), state)
        assert float(state.rate) == pytest.approx(rate)


@hypothesis.given(GAPS, unit(0.0625, 1), st.sampled_from([(0, 0), (3, 0), (0, 2), (5, 3)]))
def test_discrepancy_rule_is_the_formula_and_never_negative(gaps, increment, timing):
    actual = discrepancy_scales(*timing)(np.float32(gaps), np.float32(increment))
    assert np.all(actual >= 0)
    np.testing.assert_allclose(actual, discrepancy(gaps, increment, *timing), rtol=0, atol=1e-5)


# ---- steering

SOLUTION = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
SOLUTION *= np.linspace(0.2, 1.8, 8, dtype=np.float32)


def cubic(final: float) -> Any:
    schedule = optax.polynomial_schedule(0.9, final, power=3, transition_steps=15)

    def target(count: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # it raises a float to an integer
            return schedule(count)

    return target


RULES = {
    "adaptive": (bregjax.adaptive_rule(1.0), lambda gaps: adaptive(gaps, 1.0, 0.9, 0.025)),
    "discrepancy": (
        bregjax.discrepancy_rule(0.3, warmup=2),
        lambda gaps: discrepancy(gaps, 0.3, 2, 0),
    ),
    "default": (None, lambda gaps: adaptive(gaps, 0.25, 0.9, 0.025)),
}


@pytest.mark.parametrize(
    ("rule", "every", "target"),
    [("adaptive", 1, 0.3), ("discrepancy", 1, cubic(0.2)), ("default", 3, cubic(0.2))],
)
def test_steer_follows_a_numpy_loop(rule, every, target: Any):
    rate, strength, delta = 0.2, 0.4, 0.5
    given_rule, scales_after = RULES[rule]
    inner = bregjax.linbreg(rate, L1, strength, delta=delta)
    tx: Any = bregjax.steer(inner, target, rule=given_rule, every=every)
    step = jax.jit(tx.update)
    theta, dual, gaps = np.zeros_like(SOLUTION), np.zeros_like(SOLUTION), []
    params: Any = jnp.zeros_like(SOLUTION)
    state = tx.init(params)
    for t in range(24):
        aim = target if isinstance(target, float) else float(target(t))
        if t % every == 0:
            gaps.append(np.mean(theta != 0) - aim)
        scale = scales_after(gaps)[-1]
        dual = dual - rate * (theta - SOLUTION)
        theta = soft(delta * dual, delta * strength * scale)
        updates, state = step(params - SOLUTION, state, params)
        params = optax.apply_updates(params, updates)
        for name, value in (("strength_scale", scale), ("target", aim), ("gap", gaps[-1])):
            np.testing.assert_allclose(optax.tree.get(state, name), value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(params, theta, rtol=0, atol=1e-5)
    assert len({*scales_after(gaps)}) >= 5
    assert {*np.sign(gaps)} >= {-1, 1}


MEASURES: dict[str, Any] = {
    "density": (L1, bregjax.density, lambda x: np.mean(x != 0)),
    "live neurons": (
        GROUPS,
        lambda params: bregjax.density(params, GROUPS),
        lambda x: np.mean(np.any(x != 0, axis=0)),
    ),
    "relative rank": (
        bregjax.nuclear(),
        bregjax.relative_rank,
        lambda x: np.linalg.matrix_rank(x, tol=1e-4) / min(x.shape),
    ),
}


def train(tx: Any, solution: Any, steps: int) -> tuple[Any, Any]:
    """Parameters and state after some steps on ½‖θ − solution‖², from zero."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(params - solution, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros_like(solution)
    return jax.lax.scan(step, (start, tx.init(start)), length=steps)[0]


@pytest.mark.parametrize("name", MEASURES)
def test_the_gap_is_that_of_the_measure(name):
    regularizer, measure, by_hand = MEASURES[name]
    tx: Any = bregjax.steer(bregjax.linbreg(0.2, regularizer, 2.0), 0.5, measure=measure)
    solution = jnp.asarray(SOLUTION)
    params, state = jax.jit(lambda: train(tx, solution, 12))()
    _, state = tx.update(params, state, params)
    assert 0 < by_hand(np.asarray(params)) < 1
    np.testing.assert_allclose(state.gap, by_hand(np.asarray(params)) - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "target"), [("density", (60, 50), 0.1), ("live neurons", (8, 400), 0.25)]
)
def test_the_target_is_met_on_a_quadratic(name, shape, target):
    regularizer, measure, by_hand = MEASURES[name]
    solution = jax.random.normal(jax.random.key(0), shape) * jnp.linspace(0.2, 1.8, shape[1])
    tx: Any = bregjax.steer(bregjax.linbreg(0.01, regularizer, 0.01), target, measure=measure)
    # What sleeps collects evidence at every step, so that the strength has to grow by its 1/t-th
    # in step t: the rule needs a gap of 1/(αt) for that, a few thousandths here.
    params, _ = jax.jit(lambda: train(tx, solution, 3000))()
    assert by_hand(np.asarray(params)) == pytest.approx(target, abs=0.006)


def test_targets_side_by_side_equal_targets_alone():
    solution = jnp.asarray(SOLUTION)

    @jax.jit
    def path(target: Any) -> Any:
        return train(bregjax.steer(bregjax.linbreg(0.2, L1, 0.4), target, every=2), solution, 30)

    targets = jnp.array([0.1, 0.3, 0.7])
    batch = jax.vmap(path)(targets)
    for i, target in enumerate(targets):
        assert_close(jax.tree.map(lambda x, i=i: x[i], batch), path(target), tolerance=1e-5)
    assert len({float(scale) for scale in batch[1].strength_scale}) == 3


def test_an_outer_scale_multiplies_the_steered_one():
    tx: Any = bregjax.steer(bregjax.linbreg(0.2, L1, 0.5), 0.3)
    params, state = network(), tx.init(network())
    gradient = gradients(params)[0]
    updates: Any
    updates, scaled = tx.update(gradient, state, params, strength_scale=1.5)
    _, plain = tx.update(gradient, state, params)
    scale = float(scaled.strength_scale)
    assert scale == plain.strength_scale != 1
    dual = np.asarray(optax.tree.get(scaled, "dual")["dense"]["kernel"])
    moved = apply_updates(params, updates)["dense"]["kernel"]
    np.testing.assert_allclose(moved, soft(dual, 0.5 * 1.5 * scale), rtol=0, atol=1e-6)


def test_the_parts_of_a_partition_keep_the_ratio_of_their_strengths():
    parts: Any = {"a": bregjax.linbreg(0.2, L1, 0.3), "b": bregjax.linbreg(0.2, GROUPS, 0.1)}
    tx: Any = bregjax.steer(optax.partition(parts, {"a": "a", "b": "b"}), 0.4)
    params = {"a": jnp.zeros_like(SOLUTION), "b": jnp.zeros_like(SOLUTION.T)}
    state = tx.init(params)
    updates: Any
    for _ in range(10):
        gradient = {"a": params["a"] - SOLUTION, "b": params["b"] - SOLUTION.T}
        updates, state = tx.update(gradient, state, params)
        params = apply_updates(params, updates)
    a, b = (np.asarray(dual[i]) for i, (_, dual) in zip("ab", duals(state), strict=True))
    scale = float(state.strength_scale)
    assert abs(scale - 1) > 0.05
    np.testing.assert_allclose(params["a"], soft(a, 0.3 * scale), rtol=0, atol=1e-5)
    np.testing.assert_allclose(params["b"], column_shrink(b, 0.1 * scale), rtol=0, atol=1e-5)


def duals(state: Any) -> list[Any]:
    return optax.tree.get_all_with_path(state, "dual")


# ---- wrong arguments

FACTORIES: dict[str, Any] = {
    "steer": lambda target=0.5, **kwargs: bregjax.steer(optax.sgd(0.1), target, **kwargs),
    "adaptive_rule": bregjax.adaptive_rule,
    "discrepancy_rule": bregjax.discrepancy_rule,
}


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        *(("steer", "target", value) for value in (-0.1, 1.5, float("nan"), "half")),
        *(("steer", "every", value) for value in (0, 1.5, True)),
        ("adaptive_rule", "rate", 0.0),
        *(("adaptive_rule", "shrink", value) for value in (0.0, 1.1)),
        ("adaptive_rule", "minimum_rate", -0.1),
        ("discrepancy_rule", "increment", 0.0),
        ("discrepancy_rule", "warmup", -1),
        ("discrepancy_rule", "cooldown", 0.5),
    ],
)
def test_a_bad_value_is_named(name, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        FACTORIES[name](**{argument: value})


def test_steering_needs_the_parameters():
    tx: Any = bregjax.steer(bregjax.linbreg(0.1, L1, 1.0), 0.5)
    params = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="params=None"):
        tx.update(params, tx.init(params))


def test_a_target_out_of_reach_leaves_a_way_back():
    rule = bregjax.adaptive_rule()
    for gap in (0.5, -0.5):
        scale, state = jnp.float32(1), rule.init()
        step = jax.jit(lambda carry, gap=gap: rule.update(carry[0], jnp.float32(gap), carry[1]))
        for _ in range(400):
            scale, state = step((scale, state))
        assert 1e-16 < scale < 1e16
        back, _ = rule.update(scale, jnp.float32(-gap), state)
        assert (back < scale) == (gap > 0)


def test_there_must_be_a_prox_step_to_steer():
    with pytest.raises(ValueError, match="inner has no prox_step"):
        bregjax.steer(optax.adam(1e-3), 0.1).init(jnp.ones((2, 2)))


def test_a_rate_below_the_minimum_stays_as_it_is():
    rule = bregjax.adaptive_rule(0.25, minimum_rate=0.5)
    scales = scales_of(rule, jnp.array([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(scales, [1.25, 1.0, 1.25], rtol=1e-6)
