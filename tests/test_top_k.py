"""The largest entries of several arrays, with ties, against sorts."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from bregjax._top_k import Pool, top_k


def largest(scores: np.ndarray, k: int, among: np.ndarray) -> np.ndarray:
    """The k largest of those allowed, by a stable sort."""
    order = np.argsort(np.where(among, -np.abs(scores), np.inf), axis=None, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("k", [0, 1, 7, 40, 90])
def test_top_k_is_exact_with_ties_and_over_several_arrays(k):
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.integers(-4, 5, 70) / 4, [np.inf, -0.0, 1e-42, 3e38]])
    scores = scores.astype(np.float32)
    among = rng.random(scores.size) < 0.8
    expected = largest(scores, min(k, among.sum()), among)
    parts = [part.reshape(2, -1) for part in np.split(scores, [30])]
    allowed = [part.reshape(2, -1) for part in np.split(among, [30])]
    marked = jax.jit(top_k)([parts], k, allowed).masks
    np.testing.assert_array_equal(np.concatenate([m.ravel() for m in marked]), expected)


def test_equals_in_the_first_key_are_told_apart_by_the_second_and_then_by_their_place():
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 3, 60).astype(np.float32) for _ in range(2))
    among = rng.random(60) < 0.9
    order = np.lexsort((np.arange(60), -second, -first, ~among))

    def parts(x):
        return [x[:20].reshape(4, 5), x[20:].reshape(2, 5, 4)]

    for k in range(0, 60, 3):
        expected = np.zeros(60, bool)
        expected[order[: min(k, among.sum())]] = True
        marked = top_k([parts(first), parts(second)], jnp.int32(k), parts(among)).masks
        np.testing.assert_array_equal(np.concatenate([m.ravel() for m in marked]), expected)


NUMBERS = st.sampled_from([0.0, 1e-42, 0.5, 0.5000001, 1.0, 1e30, np.inf])
NEAR = st.sampled_from([None, 0.0, 0.5, 1.0, 0.99, 1e38, np.inf])


@pytest.mark.parametrize("platform", ["cpu", "others"])
@hypothesis.given(hnp.arrays(np.float32, st.integers(2, 60), elements=NUMBERS), st.data())
@hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_the_kth_largest_is_that_of_a_sort_with_ties_too(monkeypatch, platform, values, data):
    if platform == "others":  # as on a GPU, without a loop
        monkeypatch.setattr(lax, "platform_dependent", lambda *, cpu, default: default())
    parts = values[:1], values[1:]
    near = data.draw(NEAR)
    near = None if near is None else jnp.float32(near)
    pool = Pool([jnp.asarray(x) for x in parts])

    k = data.draw(st.integers(1, len(values)))
    assert pool.kth_largest(jnp.int32(k), near=near) == np.sort(values)[-k]
    each = jnp.array([1, data.draw(st.integers(1, len(values) - 1))])
    expected = [np.sort(x)[-i] for x, i in zip(parts, each, strict=True)]
    np.testing.assert_array_equal(pool.kth_largest_of_each(each, near=near), expected)


@pytest.mark.parametrize("size", [1, 7])
def test_many_lanes_find_theirs_from_wherever_they_begin(size):
    """Under vmap the search goes on until the last lane has found it."""
    rng = np.random.default_rng(2)
    values = np.abs(rng.normal(size=(6, 4000))).astype(np.float32)
    near = jnp.array([0.0, 1e-3, 0.674, 0.68, 3.0, np.inf], jnp.float32)
    k = jnp.array([1, 10, 2000, 3999, 4000, 5], jnp.uint32)

    def search(x, k, near):
        pool = Pool([x[:1000], x[1000:]], [size, size])
        found = pool.kth_largest(size * k, near=near)
        return found, pool.count_above(found), pool.largest_below(found)

    found, above, below = jax.vmap(search)(values, k, near)
    ordered = -np.sort(-values, axis=1)
    np.testing.assert_array_equal(found, [row[i - 1] for row, i in zip(ordered, k, strict=True)])
    np.testing.assert_array_equal(above.sum(1), size * (k - 1))
    following = [row[i] if i < 4000 else 0 for row, i in zip(ordered, k, strict=True)]
    np.testing.assert_array_equal(below.max(1), following)


def test_nan_is_above_all_numbers():
    negative = np.float32(np.nan)
    values = jnp.array([1.0, np.inf, np.copysign(negative, -1.0), np.nan, 0.0], jnp.float32)
    pool = Pool([values])
    assert jnp.isnan(pool.kth_largest(2))
    assert pool.kth_largest(3) == np.inf
    assert pool.count_above(jnp.float32(np.inf)) == 2
