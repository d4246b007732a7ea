"""Checks over the whole table of optimizers: program transformations and Optax's wrappers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import (
    CASES,
    STEPS,
    Case,
    all_cases,
    apply_updates,
    assert_close,
    assert_equal,
    each_kind,
    gradients,
    is_scheduled,
    network,
    run,
    scan,
    step_with,
)

import bregjax

# In double precision a tolerance of 1e-12 separates rounding from mistakes.
pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def history(name: str) -> list[tuple[Any, Any]]:
    """The standard run, with which the others are compared."""
    return run(CASES[name].make(), network(), gradients(network()))


@pytest.fixture
def case(name: str) -> Iterator[Case]:
    with CASES[name].promotion():
        yield CASES[name]


CONSTANT = [n for n in CASES if not is_scheduled(n)]
constant_cases = pytest.mark.parametrize("name", CONSTANT)


def test_the_table_has_every_regularizer():
    all_of_them = [
        *(bregjax.none(), bregjax.l1(), bregjax.nonneg_l1(), bregjax.nuclear()),
        *(bregjax.group_l2(0), bregjax.sparse_group(0), bregjax.soft_bernoulli()),
        bregjax.batched(bregjax.l1()),
    ]
    kinds = {type(case.regularizer) for case in CASES.values()}
    assert kinds == {type(regularizer) for regularizer in all_of_them}


@all_cases
def test_runs_of_the_table_cross_the_threshold(name, case):
    """What follows would say little about weights that stay zero or live all along."""
    (before, _), *_, (after, _) = history(name)
    if type(case.regularizer) in (type(bregjax.none()), type(bregjax.nuclear())):
        return
    lives = [
        np.concatenate([bregjax.live_groups(x, case.regularizer).ravel() for x in leaves])
        for leaves in (jax.tree.leaves(before), jax.tree.leaves(after))
    ]
    assert np.sum(lives[0] != lives[1]) >= 2


@all_cases
def test_unknown_extra_arguments_are_ignored(name, case):
    params, state = history(name)[0]
    gradient = gradients(params)[0]
    tx = case.make()
    expected = tx.update(gradient, state, params)
    assert_equal(tx.update(gradient, state, params, value=1.0, unknown="x"), expected)


@all_cases
def test_jit_compiles_once_and_changes_nothing(name, case):
    traces = []

    @jax.jit
    def step(params, state, gradient):
        traces.append(1)
        return step_with(tx)(params, state, gradient)

    tx = case.make()
    params, state = history(name)[0]
    for gradient, expected in zip(gradients(params), history(name)[1:], strict=True):
        params, state = step(params, state, gradient)
        assert_close((params, state), expected)
    assert len(traces) == 1


@each_kind(CONSTANT)
def test_vmap_over_strengths_in_a_scan(name, case):
    params = network()
    grads = gradients(params)
    strengths = [case.kwargs["strength"], 0.1, 2.0]

    def path(strength):
        return scan(case.make(strength=strength), params, grads)

    batch = jax.jit(jax.vmap(path))(jnp.array(strengths))
    assert_close(jax.tree.map(lambda x: x[0], batch), history(name)[-1])
    for i in (1, 2):
        expected = run(case.make(strength=strengths[i]), params, grads)[-1]
        assert_close(jax.tree.map(lambda x, i=i: x[i], batch), expected)


@each_kind()
def test_vmap_over_seeds_in_a_scan(name, case):
    nets = [network(), network(seed=1)]
    grads = [gradients(nets[0]), gradients(nets[1], seed=5)]

    def stack(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    batch = jax.jit(jax.vmap(lambda *args: scan(case.make(), *args)))(stack(*nets), stack(*grads))
    assert_close(jax.tree.map(lambda x: x[0], batch), history(name)[-1])
    expected = run(case.make(), nets[1], grads[1])[-1]
    assert_close(jax.tree.map(lambda x: x[1], batch), expected)


@all_cases
def test_cond_skips_or_does_a_step(name, case):
    tx = case.make()
    params, state = history(name)[0]
    gradient = gradients(params)[0]

    @jax.jit
    def step(wanted):
        return jax.lax.cond(
            wanted,
            lambda: tx.update(gradient, state, params),
            lambda: (jax.tree.map(jnp.zeros_like, params), state),
        )

    updates, next_state = step(True)
    assert_close((apply_updates(params, updates), next_state), history(name)[1])
    assert_equal(step(False)[1], state)


@each_kind()
def test_multi_steps_takes_the_mean_gradient(name, case):
    params = network()
    steps = optax.MultiSteps(case.make(), every_k_schedule=2, accumulator_dtype=jnp.float64)
    multi = steps.gradient_transformation()
    halves = [jax.tree.map(lambda g, s=s: g * s, g) for g in gradients(params) for s in (0.5, 1.5)]
    state = multi.init(params)
    # MultiSteps multiplies updates and booleans.
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(step_with(multi))
        for i, gradient in enumerate(halves):
            params, state = step(params, state, gradient)
            expected = history(name)[(i + 1) // 2]
            assert_close((params, state.inner_opt_state), expected)


@each_kind()
def test_apply_if_finite_skips_a_nan_gradient(name, case):
    params = network()
    tx, (first, *others) = case.make(), gradients(params)
    safe = optax.apply_if_finite(tx, max_consecutive_errors=3)
    bad = jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), first)
    step, state = jax.jit(step_with(safe)), safe.init(params)
    params, state = step(params, state, first)
    after, state_after = step(params, state, bad)
    assert_equal((after, state_after.inner_state), (params, state.inner_state))
    assert int(state_after.total_notfinite) == 1
    params, state = after, state_after
    for gradient in others:
        params, state = step(params, state, gradient)
    assert_close((params, state.inner_state), history(name)[-1])


@all_cases
def test_masked_leaves_the_other_leaves_alone(name, case):
    params = network()
    tx, gradient = case.make(), gradients(params)[0]
    masked = optax.masked(tx, {"conv": False, "dense": True})
    updates: Any
    updates, _ = masked.update(gradient, masked.init(params), params)
    expected = run(tx, {"dense": params["dense"]}, [{"dense": gradient["dense"]}])[-1][0]
    assert_close(apply_updates(params, updates)["dense"], expected["dense"])
    assert_equal(updates["conv"], gradient["conv"])


@all_cases
def test_partition_by_kind_equals_separate_optimizers(name, case):
    params = network()
    grads = gradients(params)
    transforms: dict[Any, Any] = {"dense": case.make(), "conv": optax.sgd(0.1)}
    after, _ = run(optax.partition(transforms, bregjax.label_by_kind), params, grads)[-1]
    for kind, alone in transforms.items():
        part = [{kind: gradient[kind]} for gradient in grads]
        expected, _ = run(alone, {kind: params[kind]}, part)[-1]
        assert_close(after[kind], expected[kind])


def buffers(state: Any) -> dict[str, Any]:
    names = ("dual", "trace", "mu", "nu", "regularizer_state")
    return {name: optax.tree.get(state, name) for name in names}


@all_cases
def test_injected_hyperparameters_change_nothing(name, case):
    params = network()
    after, state = run(case.inject(), params, gradients(params))[-1]
    assert_close(after, history(name)[-1][0])
    # Counts of schedules move to the wrapper; all else stays.
    assert_close(buffers(state), buffers(history(name)[-1][1]))


@constant_cases
def test_injected_hyperparameters_are_read_and_changed(name, case):
    params = network()
    grads = gradients(params)
    tx = case.inject()
    before, state = run(tx, params, grads[:2])[-1]
    hyperparams = optax.tree.get(state, "hyperparams")
    assert float(hyperparams["strength"]) == case.kwargs["strength"]
    assert float(hyperparams["learning_rate"]) == case.kwargs["learning_rate"]
    hyperparams["strength"] = jnp.asarray(0.05)
    hyperparams["learning_rate"] = jnp.asarray(0.01)
    after, _ = run(tx, before, grads[2:], state)[-1]
    # The same by hand: another optimizer takes over the state.
    changed = case.make(strength=0.05, learning_rate=0.01)
    assert_close(after, run(changed, history(name)[2][0], grads[2:], history(name)[2][1])[-1][0])


@all_cases
def test_clipping_and_weight_decay_in_front(name, case):
    params = network()
    tx, gradient = case.make(), gradients(params)[0]
    front = optax.chain(optax.clip_by_global_norm(5.0), optax.add_decayed_weights(0.1), tx)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    assert norm > 10
    by_hand = jax.tree.map(lambda g, x: g * (5 / norm) + 0.1 * x, gradient, params)
    after, _ = run(front, params, [gradient])[-1]
    assert_close(after, run(tx, params, [by_hand])[-1][0])


def always(value: float) -> Callable[[jax.Array], float]:
    return lambda count: value


@constant_cases
def test_constant_schedules_equal_constants(name, case):
    params = network()
    scheduled = case.make(
        strength=always(case.kwargs["strength"]), learning_rate=always(case.kwargs["learning_rate"])
    )
    after, state = run(scheduled, params, gradients(params))[-1]
    assert_equal(after, history(name)[-1][0])
    assert_equal(buffers(state), buffers(history(name)[-1][1]))
    found = [tree for _, tree in optax.tree.get_all_with_path(state, "count")]
    counts = [int(count) for count in jax.tree.leaves(found)]
    assert len(counts) >= 2
    assert set(counts) == {STEPS}
