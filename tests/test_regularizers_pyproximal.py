"""Agreement with pyproximal, an independent NumPy library, where it has the same functional."""

import jax.numpy as jnp
import numpy as np
import pyproximal
import pytest

import bregjax

pytestmark = pytest.mark.usefixtures("x64")

over_steps = pytest.mark.parametrize("step", [0.05, 0.5, 2.0])
SHAPE = (6, 5)


@pytest.fixture(params=range(3))
def x(request) -> np.ndarray:
    x = np.random.default_rng(request.param).normal(size=SHAPE)
    x[:, 1] *= 0.1
    return x


def check(ours: bregjax.Regularizer, theirs, x: np.ndarray, step: float) -> None:
    np.testing.assert_allclose(ours.value(jnp.asarray(x)), theirs(x.ravel()), rtol=1e-12)
    expected = np.asarray(theirs.prox(x.ravel(), step)).reshape(x.shape)
    np.testing.assert_allclose(ours.prox(jnp.asarray(x), step), expected, rtol=0, atol=1e-12)


@over_steps
def test_l1(x, step):
    check(bregjax.l1(), pyproximal.L1(), x, step)


@over_steps
def test_none_is_the_zero_quadratic(x, step):
    check(bregjax.none(), pyproximal.L2(sigma=0.0), x, step)


@over_steps
def test_group_l2_of_columns_is_l21(x, step):
    check(bregjax.per_neuron(size_weighted=False), pyproximal.L21(ndim=SHAPE[0]), x, step)
    weighted = pyproximal.L21(ndim=SHAPE[0], sigma=np.sqrt(SHAPE[0]))
    check(bregjax.per_neuron(), weighted, x, step)


@over_steps
def test_group_l2_of_everything_is_the_euclidean_norm(x, step):
    check(bregjax.group_l2((0, 1), size_weighted=False), pyproximal.Euclidean(), x, step)


@over_steps
def test_sparse_group_is_l21_plus_l1(x, step):
    ours = bregjax.sparse_group(
        bregjax.per_neuron(size_weighted=False), l1_weight=0.6, group_weight=1.4
    )
    theirs = pyproximal.L21_plus_L1(sigma=2.0, rho=0.3)
    np.testing.assert_allclose(ours.value(jnp.asarray(x)), theirs(x), rtol=1e-12)
    with np.errstate(divide="ignore"):  # it divides by the norm of dead groups
        expected = theirs.prox(x, step)
    np.testing.assert_allclose(ours.prox(jnp.asarray(x), step), expected, rtol=0, atol=1e-12)


@over_steps
def test_nuclear(x, step):
    check(bregjax.nuclear(), pyproximal.Nuclear(SHAPE), x, step)
