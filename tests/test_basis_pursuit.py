"""LinBreg on ½‖Ax − b‖²: it finds the solution of least ℓ1 norm, and its loss obeys the theorem.

Yin, Osher, Goldfarb, Darbon (2008) for the limit; Bungert, Roith, Tenbrinck, Burger (2022) for
the decay of the loss.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import bregjax

pytestmark = pytest.mark.usefixtures("x64")
L1 = bregjax.l1()
ROWS, COLUMNS = 15, 30


@functools.cache
def system(seed):
    """A, b and the Lipschitz constant ‖A‖² of the gradient of the loss.

    Even seeds plant a sparse solution, the others have any right-hand side.
    """
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(ROWS, COLUMNS)) / np.sqrt(ROWS)
    sparse = np.zeros(COLUMNS)
    sparse[rng.choice(COLUMNS, 3, replace=False)] = rng.choice([-1, 1], 3) * rng.uniform(1, 2, 3)
    b = rng.normal(size=ROWS) if seed % 2 else A @ sparse
    return A, b, np.linalg.norm(A, 2) ** 2


def least_l1_solution(A, b):
    """As a linear program in the positive and the negative part."""
    cost, equations = np.ones(2 * COLUMNS), np.hstack([A, -A])
    result = scipy.optimize.linprog(cost, A_eq=equations, b_eq=b, bounds=(0, None), method="highs")
    assert result.success
    return result.x[:COLUMNS] - result.x[COLUMNS:]


@functools.partial(jax.jit, static_argnames=("steps", "stride", "regularizer"))
def run(A, b, x, rate, strength, delta, *, steps, stride, regularizer):
    tx = bregjax.linbreg(rate, regularizer, strength, delta=delta, mask=lambda params: True)

    def loss(x):
        return jnp.sum((A @ x - b) ** 2) / 2

    def step(_, carry):
        x, state = carry
        updates, state = tx.update(jax.grad(loss)(x), state, x)
        return x + updates, state

    def record(x, state):
        return x, optax.tree.get(state, "dual"), loss(x)

    def steps_and_record(carry, _):
        carry = jax.lax.fori_loop(0, stride, step, carry)
        return carry, record(*carry)

    state = tx.init(x)
    _, history = jax.lax.scan(steps_and_record, (x, state), length=steps // stride)
    return jax.tree.map(lambda a, h: jnp.concatenate([a[None], h]), record(x, state), history)


def trajectory(seed, *, rate, strength, delta, steps, start=None, regularizer=L1, stride=1):
    """Iterates, duals and losses: the initial ones, then those after every `stride` steps."""
    A, b, _ = system(seed)
    start = np.zeros(COLUMNS) if start is None else np.asarray(start)
    hyperparams = jnp.asarray(rate), jnp.asarray(strength), jnp.asarray(delta)
    args = jnp.asarray(A), jnp.asarray(b), jnp.asarray(start), *hyperparams
    return run(*args, steps=steps, stride=stride, regularizer=regularizer)


@pytest.mark.parametrize("seed", range(8))
def test_limit_is_the_solution_of_least_l1_norm(seed):
    A, b, lipschitz = system(seed)
    delta = 0.5 if seed < 4 else 1.0
    expected = least_l1_solution(A, b)
    assert np.linalg.norm(A @ expected - b) < 1e-9
    assert np.sum(np.abs(expected) > 1e-9) == (ROWS if seed % 2 else 3)
    # Large enough that the quadratic of the elastic net no longer moves the minimizer.
    strength, steps = 200 / delta, 400_000
    rate = 1.9 / (delta * lipschitz)
    solutions, _, losses = trajectory(
        seed, rate=rate, strength=strength, delta=delta, steps=steps, stride=steps
    )
    assert losses[-1] < 1e-20
    np.testing.assert_allclose(solutions[-1], expected, rtol=0, atol=1e-8)


def test_a_small_strength_gives_another_solution():
    """Without enough weight on ℓ1 the limit is that of the elastic net."""
    A, b, lipschitz = system(0)
    solution, _, losses = trajectory(0, rate=1 / lipschitz, strength=0.1, delta=1.0, steps=20_000)
    expected = least_l1_solution(A, b)
    assert losses[-1] < 1e-12
    assert np.abs(solution[-1] - expected).max() > 0.1
    assert np.abs(solution[-1]).sum() > np.abs(expected).sum() + 0.1


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_loss_decreases_below_the_bound_on_the_rate(seed, delta):
    *_, lipschitz = system(seed)
    for fraction in (0.3, 0.99):
        rate = fraction * 2 / (delta * lipschitz)
        *_, losses = trajectory(seed, rate=rate, strength=1.0, delta=delta, steps=500)
        assert losses[-1] < 0.1 * losses[0]
        assert np.all(np.diff(losses) <= 1e-13)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_loss_increases_above_the_bound_on_the_rate(seed, delta):
    """Sharp where the threshold plays no part: no strength, started off along the top vector."""
    A, b, lipschitz = system(seed)
    top = np.linalg.svd(A)[2][0]
    start = least_l1_solution(A, b) + top
    for fraction, grows in ((0.99, False), (1.01, True)):
        *_, losses = trajectory(
            seed,
            rate=fraction * 2 / (delta * lipschitz),
            strength=0.0,
            delta=delta,
            steps=20,
            start=start,
        )
        assert np.all(np.diff(losses) > 0) == grows
        assert np.all(np.diff(losses) < 0) != grows


@pytest.mark.parametrize(
    "regularizer",
    [bregjax.l1(), bregjax.nonneg_l1(), bregjax.group_l2(0)],
    ids=["l1", "nonneg_l1", "group_l2"],
)
@pytest.mark.parametrize("seed", range(3))
def test_estimate_of_the_loss_decay(seed, regularizer):
    """L(θ⁺) + D_sym/τ ≤ L(θ) + K/2·‖θ⁺ − θ‖² at every step, and for every rate."""
    *_, lipschitz = system(seed)
    delta = 0.5
    # The bound on τ is 1; beyond it the loss soon explodes, yet the estimate holds.
    for fraction, steps in ((0.2, 200), (0.9, 200), (1.5, 20)):
        rate = fraction * 2 / (delta * lipschitz)
        xs, vs, losses = trajectory(
            seed, rate=rate, strength=0.5, delta=delta, steps=steps, regularizer=regularizer
        )
        distances = jax.vmap(bregjax.symmetric_bregman_distance)(xs[1:], vs[1:], xs[:-1], vs[:-1])
        moves = jnp.sum((xs[1:] - xs[:-1]) ** 2, axis=1)
        assert np.all(distances >= moves / delta * (1 - 1e-9) - 1e-12)
        slack = losses[:-1] + lipschitz / 2 * moves - losses[1:] - distances / rate
        scale = 1 + losses[:-1]
        assert np.all(slack >= -1e-12 * scale)
        # For a quadratic loss the slack is half of ‖θ⁺ − θ‖² in the metric K − AᵀA.
        A, _, _ = system(seed)
        images = jnp.sum(((xs[1:] - xs[:-1]) @ A.T) ** 2, axis=1)
        exact = (lipschitz * moves - images) / 2
        np.testing.assert_allclose(slack / scale, exact / scale, rtol=0, atol=1e-12)
        assert np.max(moves) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_distance_to_the_solution_decreases(seed):
    """D^v(x*, x) falls monotonically for τ ≤ 2/(δ·‖A‖²)."""
    A, b, lipschitz = system(seed)
    delta, strength = 0.5, 10.0
    solution = jnp.asarray(least_l1_solution(A, b))
    xs, vs, _ = trajectory(
        seed, rate=0.9 / (delta * lipschitz), strength=strength, delta=delta, steps=300
    )

    def distance(x, v):
        return bregjax.bregman_distance(solution, x, v, bregjax.l1(), strength, delta)

    distances = jax.vmap(distance)(xs, vs)
    assert np.all(distances >= -1e-12)
    assert np.all(np.diff(distances) <= 1e-12)
    assert distances[-1] < 0.5 * distances[0]
