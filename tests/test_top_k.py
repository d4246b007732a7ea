"""The largest entries of several arrays, with ties, against sorts."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

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


@hypothesis.given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.5, 1.0, 1e30])),
    st.data(),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_kth_largest_is_that_of_a_sort_with_ties_too(values, data):
    k = data.draw(st.integers(1, len(values)))
    got = Pool([jnp.asarray(values[:3]), jnp.asarray(values[3:])]).kth_largest(jnp.int32(k))
    assert got == np.sort(values)[-k]
