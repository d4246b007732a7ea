"""Properties that determine the proximal maps, over the table of regularizers.

In three dtypes and at three scales, the outer two of which have squares that no float holds, and
with whole slices of zeros. As J(cx) = c·J(x), so that prox_{csJ}(cx) = c·prox_{sJ}(x), all scales
are checked in the unit of the scale, in double precision.
"""

import functools
from typing import NamedTuple

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
over_dtypes = pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
few = settings(max_examples=settings().max_examples // 3)  # of each of the many cases
steps = st.floats(0.01, 4.0)


@functools.cache
def jitted(method):
    return jax.jit(method)


class Numbers(NamedTuple):
    """A dtype, and a power of two as the unit: what the regularizers see."""

    dtype: str
    scale: float = 1.0

    def _array(self, x: np.ndarray) -> jax.Array:
        return jnp.asarray(self.scale * x, self.dtype)

    def prox(self, case: Case, x: np.ndarray, step: float) -> np.ndarray:
        y = jitted(case.regularizer.prox)(self._array(x), self.scale * step)
        assert (y.dtype, y.shape) == (self.dtype, x.shape)
        return np.asarray(y, np.float64) / self.scale

    def value(self, case: Case, x: np.ndarray) -> float:
        value = jitted(case.regularizer.value)(self._array(x))
        assert (value.dtype, value.shape) == (self.dtype, ())
        return float(value) / self.scale

    def subgradient(self, case: Case, x: np.ndarray) -> np.ndarray:
        p = jitted(case.regularizer.subgradient)(self._array(x))
        assert (p.dtype, p.shape) == (self.dtype, x.shape)
        return np.asarray(p, np.float64)

    def lasting(self, case: Case, x: np.ndarray, before: float, now: float) -> np.ndarray:
        lasting = jitted(case.regularizer.lasting_subgradient)
        p = lasting(self._array(x), self.scale * before, self.scale * now)
        assert (p.dtype, p.shape) == (self.dtype, x.shape)
        return np.asarray(p, np.float64)

    def tolerance(self, *arrays: np.ndarray) -> float:
        """Rounding error of inner products of these arrays, with room for an SVD."""
        inside = "float32" if self.dtype == "bfloat16" else self.dtype
        eps = 100 * jnp.finfo(inside).eps
        if self.dtype == "bfloat16":
            eps += 2 * jnp.finfo(self.dtype).eps  # arguments are exact, results are rounded
        return float(eps) * (1 + max(float(np.sum(a**2)) for a in arrays))


def scales(dtype: str) -> st.SearchStrategy[Numbers]:
    exponents = (0, 1010, -600) if dtype == "float64" else (0, 116, -80)
    return st.sampled_from([Numbers(dtype, 2.0**k) for k in exponents])


@st.composite
def arrays(draw: st.DrawFn, case: Case, dtype: str, low: float = -8.0) -> np.ndarray:
    """Values that ``dtype`` has at every scale, often with slices of zeros."""
    numbers = st.floats(low, 8.0, width=64 if dtype == "float64" else 32, allow_subnormal=False)
    x = draw(hnp.arrays(np.float64, case.shape, elements=numbers))
    x[np.abs(x) < 1e-9] = 0
    for axis in draw(st.sets(st.integers(0, x.ndim - 1))):
        np.moveaxis(x, axis, 0)[draw(st.integers(0, x.shape[axis] - 1))] = 0
    return np.asarray(jnp.asarray(x, dtype), np.float64)


def objective(case: Case, y: np.ndarray, x: np.ndarray, step: float) -> float:
    return 0.5 * float(np.sum((y - x) ** 2)) + step * case.value(y)


@over_cases
@over_dtypes
@few
@given(data=st.data())
def test_value_is_the_naive_one(case, dtype, data):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    naive = case.value(x)
    rtol = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(numbers.value(case, x), naive, rtol=rtol, atol=numbers.tolerance(x))


@over_cases
@over_dtypes
@few
@given(data=st.data(), step=steps)
def test_prox_satisfies_the_optimality_condition(case, dtype, data, step):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    y = numbers.prox(case, x, step)
    p = (x - y) / step
    rounding = numbers.tolerance(x) / step
    assert case.excess(p) <= rounding
    np.testing.assert_allclose(np.sum(p * y), case.value(y), atol=rounding)


@over_cases
@over_dtypes
@few
@given(data=st.data(), step=steps)
def test_moreau_identity_with_the_projection_on_the_dual_ball(case, dtype, data, step):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    dual_part = step * case.project(x / step)
    atol = np.sqrt(numbers.tolerance(x)) if case.alternating else numbers.tolerance(x)
    np.testing.assert_allclose(numbers.prox(case, x, step) + dual_part, x, rtol=0, atol=atol)


@over_cases
@over_dtypes
@few
@given(data=st.data(), step=steps)
def test_three_point_inequality(case, dtype, data, step):
    # s·J(y) + ½‖y−x‖² ≥ s·J(p) + ½‖p−x‖² + ½‖y−p‖² for all y: p is the minimizer, by a margin.
    x, y = data.draw(arrays(case, dtype)), data.draw(arrays(case, dtype))
    numbers = data.draw(scales(dtype))
    p = numbers.prox(case, x, step)
    candidates = [y, abs(y), np.zeros_like(y), x, p + 1e-3 * (y - p)]
    for y in candidates:
        margin = 0.5 * float(np.sum((y - p) ** 2))
        gap = objective(case, y, x, step) - objective(case, p, x, step)
        assert gap >= margin - numbers.tolerance(x, y)


@over_cases
@over_dtypes
@few
@given(data=st.data(), step=steps)
def test_firmly_nonexpansive(case, dtype, data, step):
    x, y = data.draw(arrays(case, dtype)), data.draw(arrays(case, dtype))
    numbers = data.draw(scales(dtype))
    moved = numbers.prox(case, x, step) - numbers.prox(case, y, step)
    assert np.sum(moved**2) <= np.sum(moved * (x - y)) + numbers.tolerance(x, y)


@over_cases
@over_dtypes
@few
@given(data=st.data())
def test_subgradient_is_one(case, dtype, data):
    low = 0.0 if case.name == "nonneg_l1" else -8.0
    x, numbers = data.draw(arrays(case, dtype, low)), data.draw(scales(dtype))
    p = numbers.subgradient(case, x)
    assert case.excess(p) <= numbers.tolerance(p)
    np.testing.assert_allclose(np.sum(p * x), case.value(x), atol=numbers.tolerance(p, x))


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("nuclear")], ids=str)
@over_dtypes
@few
@given(data=st.data(), before=steps | st.just(0.0), now=steps | st.just(0.0))
def test_lasting_subgradient_is_one_of_what_lives_at_both_steps(case, dtype, data, before, now):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    p = numbers.lasting(case, x, before, now)
    y, lives = numbers.prox(case, x, before), numbers.prox(case, x, now) != 0
    if before == now == 0:  # there is no change that could be multiplied by it
        assert np.isfinite(p).all()
        return
    expected = np.where(lives, numbers.subgradient(case, y), 0)
    np.testing.assert_array_equal(p == 0, expected == 0)
    np.testing.assert_allclose(p, expected, atol=numbers.tolerance(p))


@over_cases
@over_dtypes
@few
@given(data=st.data(), step=steps, factor=st.floats(0.1, 10.0))
def test_scaling(case, dtype, data, step, factor):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    expected = factor * numbers.prox(case, x, step)
    scaled = numbers.prox(case, factor * x, factor * step)
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=10 * numbers.tolerance(x))


@over_cases
@over_dtypes
@few
@given(data=st.data())
def test_step_zero_is_the_identity(case, dtype, data):
    x, numbers = data.draw(arrays(case, dtype)), data.draw(scales(dtype))
    y = numbers.prox(case, x, 0.0)
    if case.name.startswith("nuclear"):
        np.testing.assert_allclose(y, x, rtol=0, atol=numbers.tolerance(x))
    elif case.name == "nonneg_l1":
        np.testing.assert_array_equal(y, np.maximum(x, 0))  # the projection stays
    else:
        np.testing.assert_array_equal(y, x)


@over_cases
def test_a_numerical_minimizer_finds_nothing_better(case):
    x = np.random.default_rng(1).normal(size=case.shape, scale=2.0)
    step = 0.7
    p = Numbers("float64").prox(case, x, step)
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
