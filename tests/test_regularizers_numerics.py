"""Floating point: dtypes, exact zeros, zero and huge arrays, derivatives, jit and vmap."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regularizer_cases import CASES, Case

import bregjax
from bregjax._numerics import power_of_two_near

# One of each way to compute; the properties are tested on all.
NAMES = """none, l1, nonneg_l1, axis 0, axis (1, 3), per_kernel, per_filter, sparse_group,
    sparse_group of kernels, nuclear, nuclear of kernels"""
SOME = tuple(case for case in CASES if case.name in re.split(r",\s+(?!3\))", NAMES))
SPECTRAL = tuple(case for case in SOME if case.name.startswith("nuclear"))
GROUPED = tuple(case for case in SOME if case.regularizer.group_axes(len(case.shape)))

over_cases = pytest.mark.parametrize("case", SOME, ids=str)
over_dtypes = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])


def sample(case: Case, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=case.shape, scale=scale)
    x[..., -1] *= 0.1
    return x


@over_cases
@over_dtypes
def test_dtype_and_shape_are_kept(x64, case, dtype):
    del x64
    x = jnp.asarray(sample(case), dtype)
    for step in (0.25, jnp.asarray(0.25, dtype)):
        y = case.regularizer.prox(x, step)
        assert (y.dtype, y.shape) == (dtype, case.shape)
    p = case.regularizer.subgradient(x)
    assert (p.dtype, p.shape) == (dtype, case.shape)
    value = case.regularizer.value(x)
    assert (value.dtype, value.shape) == (dtype, ())


@over_cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_narrow_dtypes_agree_with_float64(x64, case, dtype):
    del x64
    x = jnp.asarray(sample(case), dtype)
    exact = np.asarray(x, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    largest = np.abs(exact).max()
    # Two roundings of the result; the sums inside are in float32 and count there only.
    atol = 2 * eps * largest if dtype == jnp.bfloat16 else 16 * eps * largest
    y = np.asarray(case.regularizer.prox(x, 0.25), np.float64)
    expected = np.asarray(case.regularizer.prox(jnp.asarray(exact), 0.25))
    np.testing.assert_allclose(y, expected, rtol=0, atol=atol)
    if case not in SPECTRAL:
        np.testing.assert_array_equal(y == 0, expected == 0)
    p = np.asarray(case.regularizer.subgradient(x), np.float64)
    expected = np.asarray(case.regularizer.subgradient(jnp.asarray(exact)))
    np.testing.assert_allclose(p, expected, rtol=2 * eps, atol=16 * eps)


@pytest.mark.parametrize("case", GROUPED, ids=str)
@over_dtypes
def test_dead_groups_are_exactly_zero_and_live_ones_are_not(x64, case, dtype):
    del x64
    x = np.ones(case.shape)
    axes = case.regularizer.group_axes(x.ndim)
    live = np.arange(np.prod(np.max(x, axis=axes).shape)).reshape(np.max(x, axis=axes).shape) % 2
    x = jnp.asarray(x * np.where(np.expand_dims(live, axes), 8.0, 0.125), dtype)
    y = case.regularizer.prox(x, 0.25)
    np.testing.assert_array_equal(np.asarray(y != 0), np.asarray(x == 8.0))


@over_dtypes
def test_l1_zeros_are_positive_zeros(x64, dtype):
    del x64
    y = bregjax.l1().prox(jnp.asarray([-0.3, 0.3, -0.5, 0.5, -0.0], dtype), 0.5)
    assert not np.signbit(np.asarray(y, np.float64)).any()
    assert (y == 0).all()


@functools.cache
def everything(regularizer: bregjax.Regularizer):
    def prox(x):
        return regularizer.prox(x, 0.5)

    def results(x):
        return {
            "prox": prox(x),
            "value": regularizer.value(x),
            "subgradient": regularizer.subgradient(x),
            "grad of prox": jax.grad(lambda x: jnp.sum(prox(x)))(x),
            "grad of value": jax.grad(regularizer.value)(x),
            "grad of subgradient": jax.grad(lambda x: jnp.sum(regularizer.subgradient(x)))(x),
        }

    return jax.jit(results)


@over_cases
@pytest.mark.parametrize("filling", ["zeros", "one zero group", "equal", "one huge", "all huge"])
def test_extreme_arrays_give_no_nan_not_even_in_derivatives(case, filling):
    x = sample(case).astype(np.float32)
    if filling == "zeros":
        x[:] = 0
    elif filling == "one zero group":
        x[..., 0] = 0
        x[0] = 0
    elif filling == "equal":
        x[:] = 1
    elif filling == "one huge":
        x[..., 0] = 1e30
    else:
        x[:] = 1e30
    regularizer = case.regularizer
    x = jnp.asarray(x)

    results = everything(regularizer)(x)
    bad = [name for name, result in results.items() if jnp.isnan(result).any()]
    assert not bad
    if "huge" in filling:
        rtol = 1e-5 if case in SPECTRAL else 1e-6
        huge = np.abs(x) == np.float32(1e30)
        np.testing.assert_allclose(results["prox"][huge], x[huge], rtol=rtol)


@pytest.mark.parametrize("case", GROUPED, ids=str)
@pytest.mark.parametrize("step", [1e-25, 1e-20, 1e-3, 1.0, 1e20, 1e30])
def test_groups_of_any_size_beside_thresholds_of_any_size(case, step):
    # float64 needs no unit for these numbers.
    wide = everything_at_step(case.regularizer)
    for size in (1e-25, 1e-15, 1.0, 1e15, 1e22, 1e36):
        if step < 1e-12 and size > 1e22:
            continue
        x = (size * sample(case)).astype(np.float32)
        found = everything_at_step(case.regularizer)(x, np.float32(step))
        with jax.enable_x64(True):
            exact = wide(x.astype(np.float64), float(np.float32(step)))
        np.testing.assert_allclose(found["prox"], exact["prox"], rtol=1e-5, atol=1e-6 * size)
        for name in ("grad", "jvp"):
            np.testing.assert_allclose(found[name], exact[name], rtol=1e-4, atol=1e-4)


@functools.cache
def everything_at_step(regularizer: bregjax.Regularizer):
    def results(x, step):
        def prox(x):
            return regularizer.prox(x, step)

        return {
            "prox": prox(x),
            "grad": jax.grad(lambda x: jnp.sum(prox(x)))(x),
            "jvp": jax.jvp(prox, (x,), (jnp.ones_like(x),))[1],
        }

    return jax.jit(results)


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_values_near_the_largest_float_and_not_finite_ones(case):
    x = np.zeros(case.shape, np.float32)
    x.flat[:2] = 1e38, 1.5e38
    x.flat[2] = 1
    regularizer = case.regularizer
    with jax.enable_x64(True):
        exact = np.asarray(regularizer.subgradient(jnp.asarray(x, jnp.float64)))
    np.testing.assert_allclose(
        regularizer.subgradient(jnp.asarray(x)), exact, rtol=1e-6, atol=1e-37
    )
    unweighted = bregjax.group_l2(tuple(range(x.ndim)), size_weighted=False)
    value = float(unweighted.value(jnp.asarray(x)))
    assert value == pytest.approx(np.hypot(1e38, 1.5e38), rel=1e-6)
    for bad in (np.nan, np.inf):
        x.flat[3] = bad
        np.testing.assert_array_equal(regularizer.value(jnp.asarray(x)), bad)


@over_cases
def test_huge_steps_leave_nothing(case):
    x = jnp.asarray(sample(case), jnp.float32)
    for step in (1e30, jnp.inf):
        y = case.regularizer.prox(x, step)
        expected = x if case.name == "none" else jnp.zeros_like(x)
        np.testing.assert_array_equal(y, expected)


@over_cases
def test_subgradient_is_the_derivative_of_the_value(x64, case):
    del x64
    x = sample(case)
    x = jnp.asarray(abs(x) if case.name == "nonneg_l1" else x)
    gradient = jax.grad(case.regularizer.value)(x)
    np.testing.assert_allclose(case.regularizer.subgradient(x), gradient, atol=1e-11)


@over_cases
def test_derivative_of_prox_is_the_difference_quotient(x64, case):
    del x64
    x, direction = jnp.asarray(sample(case)), jnp.asarray(sample(case, seed=1))

    def along(t):
        return case.regularizer.prox(x + t * direction, 0.25)

    h = 1e-6
    quotient = (along(h) - along(-h)) / (2 * h)
    _, derivative = jax.jvp(along, (0.0,), (1.0,))
    np.testing.assert_allclose(derivative, quotient, atol=1e-7)


@over_cases
def test_equal_under_jit_and_vmap(case):
    regularizer = case.regularizer
    xs = jnp.stack([jnp.asarray(sample(case, seed), jnp.float32) for seed in range(3)])
    steps = jnp.asarray([0.0, 0.25, 1.0])
    eps = float(jnp.finfo(jnp.float32).eps)
    atol = eps * (32 if case in SPECTRAL else 4)
    same = functools.partial(np.testing.assert_allclose, rtol=4 * eps, atol=atol)

    plain = [regularizer.prox(x, step) for x, step in zip(xs, steps, strict=True)]
    same(jax.jit(jax.vmap(regularizer.prox))(xs, steps), plain)
    path = jax.jit(jax.vmap(regularizer.prox, in_axes=(None, 0)))(xs[1], steps)
    same(path[1], plain[1])
    same(jax.jit(regularizer.prox)(xs[1], steps[1]), plain[1])
    for method in (regularizer.value, regularizer.subgradient):
        same(jax.vmap(method)(xs)[1], method(xs[1]))
        same(jax.jit(method)(xs[1]), method(xs[1]))


def test_group_norms_of_many_leading_slices_are_the_plain_ones(x64):
    # Short leading axes are summed slice by slice, long ones by a reduction.
    del x64
    for shape in ((3, 3, 4, 5), (12, 12, 2, 3), (1, 1, 4, 5), (128, 1, 2, 3), (129, 1, 2, 3)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        norms = np.sqrt(np.square(x).sum(axis=(0, 1)))
        expected = x * np.maximum(1 - 0.25 * np.sqrt(shape[0] * shape[1]) / norms, 0)
        np.testing.assert_allclose(bregjax.per_kernel().prox(x, 0.25), expected, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_units_are_the_powers_of_two_above_or_one(dtype, x64):
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    drawn = np.exp2(rng.uniform(info.minexp, info.maxexp, 1000)) * rng.choice([-1, 1], 1000)
    ends = [info.tiny, info.max, 0.5, 1.0, 2.0, -0.75]
    x = np.concatenate([drawn, ends]).astype(dtype)
    most = 3 * info.maxexp // 4
    expected = np.ldexp(np.ones(len(x), dtype), np.clip(np.frexp(x)[1], -most, most))
    np.testing.assert_array_equal(power_of_two_near(jnp.asarray(x)), expected)
    others = jnp.asarray([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(power_of_two_near(others), 1)
