"""Four ways to shrink singular values, against NumPy's, and the rank they keep."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bregjax

METHODS = ("svd", "gram", "randomized", "warm")
TRUNCATED = ("randomized", "warm")


def with_spectrum(spectrum, rows: int, seed: int = 0) -> np.ndarray:
    """A matrix with these singular values and as many columns."""
    rng = np.random.default_rng(seed)
    columns = len(spectrum)
    u = np.linalg.qr(rng.normal(size=(rows, columns)))[0]
    v = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    return (u * spectrum) @ v.T


def exact_prox(x: np.ndarray, step: float, rank: int | None = None) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    f = np.maximum(s - step, 0)
    f[len(f) if rank is None else rank :] = 0
    return u * f @ vt


def distance(x, expected) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64) - expected))


def proxes(regularizer: bregjax.Regularizer, matrices, step: float):
    """The prox of one matrix after the other, and the state after each."""
    state = regularizer.init_state(jnp.asarray(matrices[0], jnp.float32), 0)
    prox = jax.jit(regularizer.prox_with_state)
    for matrix in matrices:
        y, state = prox(jnp.asarray(matrix, jnp.float32), step, state)
        yield np.asarray(y), state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("rows", "spectrum"),
    [
        (90, np.geomspace(10, 0.01, 60)),
        (60, np.concatenate([[9.0, 9, 9, 5], np.full(56, 0.9)])),
        pytest.param(60, np.concatenate([[3.0, 2], np.zeros(58)]), marks=pytest.mark.slow),
        (60, np.zeros(60)),
        pytest.param(60, np.linspace(20, 2, 60), marks=pytest.mark.slow),
        (5, np.array([4.0, 2, 0.5])),
    ],
    ids=["falling", "flat tail", "rank 2", "zero", "all live", "few columns"],
)
def test_every_method_shrinks_as_numpy_does(method, rows, spectrum):
    x = with_spectrum(spectrum, rows).astype(np.float32)
    expected = exact_prox(x, 1.0)
    for matrix, wanted in ((x, expected), (x.T, expected.T)):
        for y, state in proxes(bregjax.nuclear(method=method), [matrix] * 3, 1.0):
            assert distance(y, wanted) <= 1e-5 * np.linalg.norm(wanted)
            assert state.rank == (np.asarray(spectrum) > 1).sum()


@pytest.mark.parametrize("method", ["svd", "gram"])
def test_exact_methods_are_exact_in_double_precision(x64, method):
    del x64
    x = with_spectrum(np.geomspace(5, 0.2, 30), 40)
    y = bregjax.nuclear(method=method).prox(jnp.asarray(x), 1.0)
    assert distance(y, exact_prox(x, 1.0)) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_huge_and_tiny_matrices(method):
    x = with_spectrum(np.geomspace(10, 0.01, 60), 60)
    for scale in (1e-15, 1e15):
        y = bregjax.nuclear(method=method).prox(jnp.asarray(scale * x, jnp.float32), scale)
        expected = scale * exact_prox(x, 1.0)
        assert distance(y, expected) <= 2e-5 * np.linalg.norm(expected)


@given(
    seed=st.integers(0, 2**16),
    live=st.integers(0, 12),
    gap=st.floats(1.01, 3.0),
    tail=st.floats(0.0, 0.99),
)
@settings(max_examples=20)
def test_the_error_is_below_the_bound(seed, live, gap, tail):
    spectrum = np.concatenate([np.linspace(2 * gap, gap, live), np.full(64 - live, tail)])
    x = with_spectrum(spectrum, 64, seed).astype(np.float32)
    expected = exact_prox(x, 1.0)
    # A coarse tolerance, so that the bound is that of the iteration and not of rounding.
    regularizer = bregjax.nuclear(method="warm", tolerance=1e-2)
    rounding = 1e-6 * np.linalg.norm(spectrum)
    for y, state in proxes(regularizer, [x, x], 1.0):
        assert distance(y, expected) <= float(state.error) + rounding
        assert state.error <= 1e-2 * np.linalg.norm(expected) + rounding


@pytest.mark.parametrize(("tail", "share"), [(0.5, 0.15), (0.95, 0.4)])
def test_the_result_is_closer_than_the_bound(tail, share):
    """It is made of X·v, which knows of X what the bound does not: about the next half step."""
    spectrum = np.r_[np.linspace(10, 2, 8), np.geomspace(tail, 0.05, 56)]
    x = with_spectrum(spectrum, 96)
    noise = np.random.default_rng(0).standard_normal(x.shape)
    moved = x + 0.02 * np.linalg.norm(x) / np.linalg.norm(noise) * noise
    regularizer = bregjax.nuclear(method="warm", tolerance=1.0)  # no second round
    *_, (y, state) = proxes(regularizer, [x.astype(np.float32), moved.astype(np.float32)], 1.0)
    error, norm = distance(y, exact_prox(moved, 1.0)), np.linalg.norm(spectrum)
    assert state.rounds == 0
    assert 1e-5 * norm < state.error
    assert error < share * state.error


@pytest.mark.parametrize("size", [60, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ends", [(9, 4), (1.05, 1.002)], ids=str)
def test_a_good_basis_needs_no_second_look(size: int, ends: tuple[float, float]):
    """Rounding alone must not keep it going, wherever the live singular values are."""
    spectrum = np.r_[np.linspace(*ends, 7), np.full(size - 7, 0.5)]
    x = with_spectrum(spectrum, size).astype(np.float32)
    (_, first), (_, second), (_, third) = proxes(bregjax.nuclear(method="warm"), [x] * 3, 1.0)
    assert first.rounds > 0
    assert (second.rounds, third.rounds) == (0, 0)
    assert third.settled


def test_new_directions_are_found_after_a_zero_matrix():
    """Columns of the basis that have met nothing so far are drawn anew."""
    new = np.zeros((128, 96), np.float32)
    new[64:, 48:] = with_spectrum(np.r_[np.linspace(9, 2, 8), np.zeros(40)], 64)
    matrices = [np.zeros_like(new)] * 3 + [new] * 30
    *_, (y, _) = proxes(bregjax.nuclear(method="warm"), matrices, 1.0)
    assert distance(y, exact_prox(new, 1.0)) <= 1e-5 * np.linalg.norm(new)


def test_what_may_come_is_followed_and_told():
    """One singular value a hair below the threshold, in a basis that does not know it yet."""
    spectrum = np.r_[5.0, 4.0, 1 - 1e-6, np.linspace(0.999, 0.9, 93)]
    x = with_spectrum(spectrum, 96).astype(np.float32)
    (_, state), *_ = proxes(bregjax.nuclear(method="randomized"), [x], 1.0)
    assert not state.settled
    assert state.rounds >= 4
    (_, state), *_ = proxes(
        bregjax.nuclear(method="randomized"), [np.diag(np.r_[5.0, 4, np.full(94, 0.5)])], 1.0
    )
    assert state.settled


@pytest.mark.parametrize("method", TRUNCATED)
def test_nothing_is_lost_while_the_rank_goes_up_and_down(method):
    ranks = [2, 4, 9, 15, 17, 33, 60, 20, 7, 7, 7, 3, 3]
    matrices = [
        with_spectrum(np.concatenate([np.linspace(4, 2, r), np.full(96 - r, 0.3)]), 120, seed=r)
        for r in ranks
    ]
    widths, overflows = [], []
    pairs = zip(matrices, proxes(bregjax.nuclear(method=method), matrices, 1.0), strict=True)
    for matrix, (y, state) in pairs:
        expected = exact_prox(matrix, 1.0)
        assert distance(y, expected) <= 1e-5 * np.linalg.norm(expected)
        widths.append(int(state.width))
        overflows.append(int(state.overflows))
    # 8 columns of 16 are for those that come next, 16 of 24; then all 96 are decomposed.
    assert widths[:7] == [16, 16, 24, 24, 96, 96, 96]
    assert overflows[:7] == [0, 0, 1, 1, 2, 2, 2]
    assert widths[-1] == 16
    assert overflows[-1] == 2


def test_a_direction_outside_the_whole_basis_is_found():
    before, after = np.diag(np.r_[np.linspace(9, 4, 5), np.full(59, 0.1)]), np.zeros((64, 64))
    after[:5, :5] = before[:5, :5]
    after[63, 63] = 6.0
    regularizer = bregjax.nuclear(method="warm")
    *_, (_, state) = proxes(regularizer, [before] * 3, 1.0)
    # No column has a part in the last coordinate, so no product with the matrix will see it.
    state = state._replace(basis=state.basis.at[63].set(0), count=jnp.int32(1))
    prox = jax.jit(regularizer.prox_with_state)
    errors = []
    for _ in range(20):
        y, state = prox(jnp.asarray(after, jnp.float32), 1.0, state)
        errors.append(distance(y, exact_prox(after, 1.0)))
    assert errors[0] > 4.9
    assert errors[-1] < 1e-4
    assert state.rank == 6


@pytest.mark.parametrize("method", METHODS)
def test_the_rank_is_limited_and_scheduled(method):
    x = with_spectrum(np.r_[np.geomspace(30, 1.5, 20), np.full(40, 0.5)], 60)

    def schedule(count):
        return 2 + count

    states = proxes(bregjax.nuclear(method=method, rank=schedule), [x] * 4, 1.0)
    for rank, (y, state) in enumerate(states, start=2):
        expected = exact_prox(x, 1.0, rank)
        assert state.rank == rank
        assert distance(y, expected) <= 1e-5 * np.linalg.norm(expected)
    y = bregjax.nuclear(method=method, rank=0).prox(jnp.asarray(x), 1.0)
    assert (np.asarray(y) == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("energy", [pytest.param(0.3, marks=pytest.mark.slow), 0.99])
@pytest.mark.parametrize(
    "spectrum",
    [1 + np.geomspace(8, 0.01, 60), np.r_[np.linspace(6, 5, 30), np.full(66, 0.3)]],
    ids=["falling", "flat"],
)
def test_the_rank_is_the_smallest_with_the_energy(method, energy, spectrum):
    f = np.maximum(spectrum - 1, 0)
    rank = int(np.argmax(np.cumsum(f**2) >= energy * np.sum(f**2))) + 1
    x = with_spectrum(spectrum, len(spectrum))
    *_, (y, state) = proxes(bregjax.nuclear(method=method, energy=energy), [x] * 2, 1.0)
    assert state.rank == rank
    expected = exact_prox(x, 1.0, rank)
    # Neighbours are close to each other: errors of 1e-6 turn the last direction by much more.
    assert distance(y, expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["randomized", "warm"])
def test_vmap_and_jit_do_as_single_calls(method):
    x = jnp.asarray(
        [with_spectrum(np.geomspace(2 * r, 0.1, 50), 50, seed=r) for r in (2, 40, 5)], jnp.float32
    )
    regularizer = bregjax.nuclear(method=method)
    state = regularizer.init_state(x[0], 0)
    many, states = jax.jit(jax.vmap(regularizer.prox_with_state, in_axes=(0, None, None)))(
        x, 1.0, state
    )
    again, states = jax.jit(jax.vmap(regularizer.prox_with_state, in_axes=(0, None, 0)))(
        2 * x, 1.0, states
    )
    for i in range(3):
        one, alone = regularizer.prox_with_state(x[i], 1.0, state)
        np.testing.assert_allclose(many[i], one, atol=1e-4)
        two, alone = regularizer.prox_with_state(2 * x[i], 1.0, alone)
        np.testing.assert_allclose(again[i], two, atol=2e-4)
        assert (states.rank[i], states.width[i]) == (alone.rank, alone.width)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gram", {"rank": 5}),
        ("warm", {"energy": 0.8}),
        *(
            pytest.param(method, options, marks=pytest.mark.slow)
            for method in METHODS
            for options in ({}, {"rank": 5}, {"energy": 0.8})
            if (method, options) not in (("gram", {"rank": 5}), ("warm", {"energy": 0.8}))
        ),
    ],
    ids=str,
)
def test_derivatives_are_difference_quotients(x64, method, options):
    del x64
    rng = np.random.default_rng(3)
    x = jnp.asarray(with_spectrum(np.geomspace(8, 0.3, 50), 50))
    dx, weights = (jnp.asarray(rng.normal(size=(50, 50))) for _ in range(2))
    regularizer = bregjax.nuclear(method=method, tolerance=1e-12, **options)

    def value(t, h):
        return jnp.sum(weights * regularizer.prox(x + t * dx, 1.0 + h))

    derivatives = jax.grad(value, argnums=(0, 1))(0.0, 0.0)
    small = 1e-5
    quotients = (
        (value(small, 0.0) - value(-small, 0.0)) / (2 * small),
        (value(0.0, small) - value(0.0, -small)) / (2 * small),
    )
    np.testing.assert_allclose(derivatives, quotients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", TRUNCATED)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_convolution_kernels_and_narrow_dtypes(method, dtype):
    spectrum = np.r_[np.linspace(6, 3, 5), np.full(55, 0.4)]
    kernel = jnp.asarray(with_spectrum(spectrum, 150).reshape(5, 15, 2, 60), dtype)
    moved = jnp.moveaxis(kernel.reshape(5, 2, 15, 60), 1, 2)
    for x, row_axes in ((kernel, None), (moved, (0, 2, 1))):
        regularizer = bregjax.nuclear(method=method, row_axes=row_axes)
        y, state = regularizer.prox_with_state(x, 1.0, regularizer.init_state(x, 0))
        assert (y.shape, y.dtype, int(state.rank)) == (x.shape, dtype, 5)
        expected = bregjax.nuclear(row_axes=row_axes).prox(x, 1.0)
        assert (
            distance(y, np.asarray(expected, np.float64)) <= 1e-2 * (dtype == jnp.bfloat16) + 1e-4
        )


@pytest.mark.slow
def test_a_training_is_that_with_full_decompositions():
    """Two layers on the handwritten digits, all images in every step, from the same seed."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = images[:500].reshape(-1, 8, 8).repeat(2, 1).repeat(2, 2).reshape(-1, 256)
    images = jnp.asarray(images / 16 - 0.3, jnp.float32)
    rng = np.random.default_rng(0)
    params = {
        "first": jnp.asarray(with_spectrum(np.r_[2.0, 1.5, 1, np.zeros(117)], 256), jnp.float32),
        "second": jnp.asarray(0.2 * rng.normal(size=(120, 10)), jnp.float32),
    }

    def loss(params):
        hidden = jnp.tanh(images @ params["first"])
        logits = hidden @ params["second"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:500]).mean()

    def train(regularizer):
        tx = bregjax.linbreg(0.2, regularizer, 1.0, momentum=0.5)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = cast("Any", optax.apply_updates(params, updates))
            return (params, state), bregjax.effective_rank(params["first"], 1e-4)

        return jax.lax.scan(step, (params, tx.init(params)), length=100)

    (expected, _), ranks = jax.jit(train, static_argnums=0)(bregjax.nuclear())
    assert (ranks[0], ranks[-1]) == (3, 12)  # singular values have come
    for method in ("gram", *TRUNCATED):
        (found, state), _ = jax.jit(train, static_argnums=0)(bregjax.nuclear(method=method))
        if method in TRUNCATED:
            widths = [int(w) for w in jax.tree.leaves(optax.tree.get(state, "width"))]
            assert widths == [24, 10]  # the second layer is too thin to leave anything out
        for name, x in expected.items():
            assert distance(found[name], np.asarray(x)) <= 1e-5 * np.linalg.norm(x), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_makes_nan_and_returns(method, value):
    """LAPACK's decomposition of a matrix with one infinite entry may run for ever."""
    x = jnp.ones((4, 4)).at[1, 2].set(value)
    regularizer = bregjax.nuclear(method=method)
    assert np.isnan(regularizer.prox(x, 0.1)).all()
    assert np.isnan(regularizer.value(x))
    assert np.isnan(regularizer.subgradient(x)).all()


def test_the_state_of_exact_methods_is_plain_numbers():
    serialization = pytest.importorskip("flax.serialization")
    params = {"w": jnp.ones((4, 3))}
    state = bregjax.linbreg(0.1, bregjax.nuclear(), 1.0).init(params)
    restored = serialization.from_bytes(state, serialization.to_bytes(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_no_state_is_empty():
    """Checkpoints of many kinds cannot hold arrays without entries."""
    for method in METHODS:
        for shape in ((80, 10), (100, 100)):
            state = bregjax.nuclear(method=method).init_state(jnp.zeros(shape), 0)
            assert all(x.size for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "fast"},
            "method must be one of 'svd', 'gram', 'randomized', 'warm', got method='fast'",
        ),
        ({"rank": -1}, "rank must be a whole number, at least 0, got rank=-1"),
        ({"rank": 1.5}, "got rank=1.5"),
        ({"energy": 0.0}, "energy must be greater than 0, got energy=0.0"),
        ({"energy": 1.1}, "energy must be at most 1"),
        ({"tolerance": 0.0}, "tolerance must be greater than 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.nuclear(**arguments)


@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_a_basis_lies_on_all_devices_of_its_matrix(axes):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("d"))
    x = jax.device_put(jax.random.normal(jax.random.key(0), (48, 40)), rows)
    tx = bregjax.linbreg(0.1, bregjax.nuclear(method="warm"), 0.1)
    (state,) = bregjax.states_of(tx.init(x), bregjax.NuclearState)
    assert state.basis is not None
    assert state.basis.sharding.is_fully_replicated
    assert state.basis.sharding.device_set == x.sharding.device_set


def test_an_energy_that_is_met_exactly_needs_no_further_rank():
    x = jnp.diag(jnp.array([3.0, 3.0, 3.0, 3.0, 1.0]))
    y = bregjax.nuclear(energy=0.5).prox(x, 1.0)
    np.testing.assert_allclose(jnp.linalg.svd(y, compute_uv=False), [2, 2, 0, 0, 0], atol=1e-6)
