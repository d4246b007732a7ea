"""Properties that determine the proximal maps, in float64, over the table of regularizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from regularizer_cases import CASES, Case

import bregjax

pytestmark = pytest.mark.usefixtures("x64")

over_cases = pytest.mark.parametrize("case", CASES, ids=str)
few = settings(max_examples=30)  # of each of the many cases
steps = st.floats(0.01, 4.0)


def entries(case: Case, **changes) -> st.SearchStrategy:
    numbers = {"min_value": -8.0, "max_value": 8.0, "allow_subnormal": False} | changes
    return hnp.arrays(np.float64, case.shape, elements=st.floats(**numbers))


@functools.cache
def jitted(method):
    return jax.jit(method)


def prox(case: Case, x: np.ndarray, step: float) -> np.ndarray:
    return np.asarray(jitted(case.regularizer.prox)(x, step))


def tolerance(*arrays: np.ndarray) -> float:
    """Rounding error of inner products of these arrays, with room for an SVD."""
    return 1e3 * np.finfo(np.float64).eps * (1 + max(float(np.sum(a**2)) for a in arrays))


def objective(case: Case, y: np.ndarray, x: np.ndarray, step: float) -> float:
    return 0.5 * float(np.sum((y - x) ** 2)) + step * case.value(y)


@over_cases
@few
@given(data=st.data())
def test_value_is_the_naive_one(case, data):
    x = data.draw(entries(case))
    value = jitted(case.regularizer.value)(x)
    assert value.shape == ()
    naive = case.value(x)
    np.testing.assert_allclose(value, naive, rtol=1e-13, atol=tolerance(x))


@over_cases
@few
@given(data=st.data(), step=steps)
def test_prox_satisfies_the_optimality_condition(case, data, step):
    x = data.draw(entries(case))
    y = prox(case, x, step)
    p = (x - y) / step
    assert case.excess(p) <= tolerance(x) / step
    value = float(jitted(case.regularizer.value)(y))
    np.testing.assert_allclose(np.sum(p * y), value, atol=tolerance(x) / step)


@over_cases
@pytest.mark.parametrize("step", [0.1, 0.5])
def test_moreau_identity_with_the_projection_on_the_dual_ball(case, step):
    x = np.random.default_rng(0).normal(size=case.shape, scale=2.0)
    x[:1] = 0
    x[..., -1] *= 0.1
    p = prox(case, x, step)
    assert case.name == "none" or (not np.array_equal(p, x) and p.any())
    # Alternating projections cost digits.
    precise = not case.name.startswith("sparse_group")
    dual_part = step * case.project(x / step)
    np.testing.assert_allclose(p + dual_part, x, atol=1e-13 if precise else 1e-7)


@over_cases
@few
@given(data=st.data(), step=steps)
def test_three_point_inequality(case, data, step):
    # s·J(y) + ½‖y−x‖² ≥ s·J(p) + ½‖p−x‖² + ½‖y−p‖² for all y: p is the minimizer, by a margin.
    x, y = data.draw(entries(case)), data.draw(entries(case))
    p = prox(case, x, step)
    candidates = [y, abs(y), np.zeros_like(y), x, p + 1e-3 * (y - p)]
    for y in candidates:
        margin = 0.5 * float(np.sum((y - p) ** 2))
        gap = objective(case, y, x, step) - objective(case, p, x, step)
        assert gap >= margin - tolerance(x, y)


@over_cases
@few
@given(data=st.data(), step=steps)
def test_firmly_nonexpansive(case, data, step):
    x, y = data.draw(entries(case)), data.draw(entries(case))
    moved = prox(case, x, step) - prox(case, y, step)
    assert np.sum(moved**2) <= np.sum(moved * (x - y)) + tolerance(x, y)


@over_cases
@few
@given(data=st.data())
def test_subgradient_is_one(case, data):
    low = 0.0 if case.name == "nonneg_l1" else -8.0
    x = data.draw(entries(case, min_value=low))
    p = np.asarray(jitted(case.regularizer.subgradient)(x))
    assert case.excess(p) <= tolerance(p)
    np.testing.assert_allclose(np.sum(p * x), case.value(x), atol=1e-6, rtol=1e-12)


@over_cases
@few
@given(data=st.data(), step=steps, scale=st.floats(0.1, 10.0))
def test_scaling(case, data, step, scale):
    # J(cx) = c·J(x) gives prox_{csJ}(cx) = c·prox_{sJ}(x).
    x = data.draw(entries(case))
    atol = 10 * tolerance(x)
    scaled = prox(case, scale * x, scale * step)
    np.testing.assert_allclose(scaled, scale * prox(case, x, step), atol=atol)


@over_cases
@few
@given(data=st.data())
def test_step_zero_is_the_identity(case, data):
    x = data.draw(entries(case))
    y = prox(case, x, 0.0)
    if case.name.startswith("nuclear"):
        np.testing.assert_allclose(y, x, atol=tolerance(x))
    elif case.name == "nonneg_l1":
        np.testing.assert_array_equal(y, np.maximum(x, 0))  # the projection stays
    else:
        np.testing.assert_array_equal(y, x)


@over_cases
def test_a_numerical_minimizer_finds_nothing_better(case):
    x = np.random.default_rng(1).normal(size=case.shape, scale=2.0)
    step = 0.7
    p = prox(case, x, step)
    best = objective(case, p, x, step)
    # Powell's method needs no derivatives; where it stops, the three-point inequality holds.
    for start in (p, 0.9 * p):
        found = scipy.optimize.minimize(
            lambda flat: min(objective(case, flat.reshape(case.shape), x, step), 1e9),
            start.ravel(),
            method="Powell",
            options={"maxfev": 2000},
        )
        margin = 0.5 * float(np.sum((found.x - p.ravel()) ** 2))
        assert found.fun >= best + margin - 1e-6


@pytest.mark.parametrize("regularizer", [bregjax.per_kernel(), bregjax.group_l2(axis=())], ids=repr)
def test_groups_of_one_entry_are_l1(regularizer):
    x = np.random.default_rng(2).normal(size=(5, 4))
    for method in ("prox", "value", "subgradient"):
        arguments = (jnp.asarray(x), 0.4) if method == "prox" else (jnp.asarray(x),)
        ours = getattr(regularizer, method)(*arguments)
        np.testing.assert_allclose(ours, getattr(bregjax.l1(), method)(*arguments), atol=1e-14)
