"""The elastic net, its conjugate and the Bregman distances, in float64 on small arrays."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import bregjax

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_are_measured_in_float32(dtype):
    rng = np.random.default_rng(0)
    theta, other = (jnp.asarray(rng.normal(size=4000), dtype) for _ in range(2))
    states: Any = [bregjax.mirror_step(bregjax.l1(), 0.3).init(x) for x in (theta, other)]
    dual, other_dual = (state.dual for state in states)
    wide, other_wide = theta.astype(jnp.float32), other.astype(jnp.float32)
    for measure in (
        lambda x, y: bregjax.elastic_net(x, bregjax.l1(), 0.3, 0.5),
        lambda x, y: bregjax.bregman_distance(x, y, other_dual, bregjax.l1(), 0.3),
        lambda x, y: bregjax.symmetric_bregman_distance(x, dual, y, other_dual),
    ):
        got = measure(theta, other)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, measure(wide, other_wide), rtol=1e-6)
        assert got > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((bregjax.l1, 1.0), TypeError, "regularizer"),
        ((bregjax.l1(), -1.0), ValueError, "strength=-1.0"),
        ((bregjax.l1(), 1.0, 0.0), ValueError, "delta=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        bregjax.elastic_net(jnp.ones(2), *arguments)
    with pytest.raises(error, match=message):
        bregjax.elastic_net_conjugate_grad(jnp.ones(2), *arguments)


REGULARIZERS = [
    bregjax.none(),
    bregjax.l1(),
    bregjax.per_neuron(),
    bregjax.per_input_channel(size_weighted=False),
    bregjax.sparse_group(0),
    bregjax.nuclear(),
]
over_regularizers = pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
over_constants = pytest.mark.parametrize(
    ("strength", "delta"), [(0.3, 1.0), (0.8, 2.5), (0.0, 0.5)]
)


def draw(seed: int, scale: float = 1.5) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(3, 2), scale=scale)),
        "b": jnp.asarray(np.ones((2, 2))),
    }


def inner(a: dict, b: dict) -> float:
    return sum(float(np.sum(np.asarray(a[key]) * np.asarray(b[key]))) for key in a)


def minus(a: dict, b: dict) -> dict:
    return {key: a[key] - b[key] for key in a}


@over_regularizers
@over_constants
def test_elastic_net_by_its_formula(regularizer, strength, delta):
    x = draw(0)
    expected = sum(
        strength * float(regularizer.value(leaf)) + float(np.sum(np.square(leaf))) / (2 * delta)
        for leaf in x.values()
    )
    ours = bregjax.elastic_net(x, regularizer, strength, delta)
    assert ours.shape == ()
    np.testing.assert_allclose(ours, expected, rtol=1e-13)


def test_elastic_net_numbers():
    x = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    per_neuron = bregjax.per_neuron(size_weighted=False)
    assert bregjax.elastic_net(x, bregjax.l1(), 0.5, 5.0) == 0.5 * 7 + 25 / 10
    assert bregjax.elastic_net(x, per_neuron, 2.0) == 2 * 5 + 25 / 2
    assert bregjax.elastic_net(x, bregjax.none(), 2.0, 0.25) == 50


@over_regularizers
@over_constants
def test_dual_is_a_subgradient_at_its_parameters(regularizer, strength, delta):
    # θ = ∇J_δ*(v) if and only if v ∈ ∂J_δ(θ): J_δ(y) ≥ J_δ(θ) + ⟨v, y − θ⟩ + ‖y − θ‖²/(2δ).
    v = draw(1)
    theta = bregjax.elastic_net_conjugate_grad(v, regularizer, strength, delta)
    at_theta = float(bregjax.elastic_net(theta, regularizer, strength, delta))
    for seed in range(2, 12):
        y = draw(seed)
        gap = float(bregjax.elastic_net(y, regularizer, strength, delta)) - at_theta
        quadratic = inner(minus(y, theta), minus(y, theta)) / (2 * delta)
        assert gap >= inner(v, minus(y, theta)) + quadratic - 1e-11


@over_regularizers
@over_constants
def test_fenchel_young_equality_with_the_numerical_conjugate(regularizer, strength, delta):
    v = draw(3)["a"]
    theta = bregjax.elastic_net_conjugate_grad(v, regularizer, strength, delta)

    def negative(flat: np.ndarray) -> float:
        y = jnp.asarray(flat.reshape(v.shape))
        value = bregjax.elastic_net(y, regularizer, strength, delta)
        return float(value - jnp.sum(v * y))

    # J_δ*(v) = max ⟨v, y⟩ − J_δ(y), searched without derivatives.
    found = scipy.optimize.minimize(
        negative, np.zeros(v.size), method="Powell", options={"maxfev": 400}
    )
    assert negative(np.asarray(theta).ravel()) <= found.fun + 1e-10


@pytest.mark.parametrize(("strength", "delta"), [(0.4, 2.0), (0.0, 1.0)])
def test_conjugate_grad_is_the_gradient_of_the_conjugate(strength, delta):
    # For ℓ1 the conjugate is known: J_δ*(v) = δ/2 ‖soft(v, λ)‖².
    v = np.random.default_rng(0).normal(size=(4, 3))

    def conjugate(v: np.ndarray) -> float:
        return delta / 2 * float(np.sum(np.maximum(np.abs(v) - strength, 0) ** 2))

    h = 1e-6
    gradient = np.zeros_like(v)
    for i in np.ndindex(v.shape):
        e = np.zeros_like(v)
        e[i] = h
        gradient[i] = (conjugate(v + e) - conjugate(v - e)) / (2 * h)
    ours = bregjax.elastic_net_conjugate_grad(jnp.asarray(v), bregjax.l1(), strength, delta)
    np.testing.assert_allclose(ours, gradient, atol=1e-8)


@over_regularizers
def test_mirror_step_starts_from_a_dual_of_its_parameters(regularizer):
    theta = draw(4)
    state = bregjax.mirror_step(regularizer, 0.6, 2.0).init(theta)
    assert isinstance(state, bregjax.MirrorState)
    dual = state.dual
    back = bregjax.elastic_net_conjugate_grad(dual, regularizer, 0.6, 2.0)
    for key in theta:
        np.testing.assert_allclose(back[key], theta[key], atol=1e-13)


@over_regularizers
@over_constants
def test_bregman_distances(regularizer, strength, delta):
    v, w = draw(5), draw(6)
    theta = bregjax.elastic_net_conjugate_grad(v, regularizer, strength, delta)
    eta = bregjax.elastic_net_conjugate_grad(w, regularizer, strength, delta)
    there = float(bregjax.bregman_distance(eta, theta, v, regularizer, strength, delta))
    back = float(bregjax.bregman_distance(theta, eta, w, regularizer, strength, delta))
    least = inner(minus(theta, eta), minus(theta, eta)) / (2 * delta)
    assert there >= least - 1e-12
    assert back >= least - 1e-12
    symmetric = bregjax.symmetric_bregman_distance(theta, v, eta, w)
    np.testing.assert_allclose(symmetric, there + back, rtol=1e-12)
    np.testing.assert_allclose(symmetric, inner(minus(v, w), minus(theta, eta)), rtol=1e-13)
    at_itself = bregjax.bregman_distance(theta, theta, v, regularizer, strength, delta)
    np.testing.assert_allclose(at_itself, 0, atol=1e-14)


def test_bregman_distance_numbers():
    # From θ = 1 with v = 1/δ + λ to θ' = −2: λ(2 − 1) + (4 − 1)/(2δ) − v·(−3).
    theta, target = jnp.array([1.0]), jnp.array([-2.0])
    v = jnp.array([1 / 2.0 + 0.5])
    distance = bregjax.bregman_distance(target, theta, v, bregjax.l1(), 0.5, 2.0)
    np.testing.assert_allclose(distance, 0.5 + 0.75 + 3.0, rtol=1e-14)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_without_regularizer_distances_are_squared_norms(delta):
    theta, eta = draw(7), draw(8)
    v = {key: x / delta for key, x in theta.items()}
    w = {key: x / delta for key, x in eta.items()}
    square = inner(minus(theta, eta), minus(theta, eta))
    distance = bregjax.bregman_distance(eta, theta, v, bregjax.none(), 1.0, delta)
    np.testing.assert_allclose(distance, square / (2 * delta), rtol=1e-12)
    symmetric = bregjax.symmetric_bregman_distance(eta, w, theta, v)
    np.testing.assert_allclose(symmetric, square / delta, rtol=1e-12)
    grad = bregjax.elastic_net_conjugate_grad(v, bregjax.none(), 1.0, delta)
    np.testing.assert_allclose(grad["a"], theta["a"], rtol=1e-14)
