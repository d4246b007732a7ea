"""As many weights as asked for, to the weight: those with most evidence."""

import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from optimizer_table import assert_close, assert_equal, step_with

import bregjax

L1, STRENGTH, DELTA = bregjax.l1(), 0.7, 0.5
DRAW = np.random.default_rng(0)


def given_dual(tx: Any, dual: Any, dtype: Any = None) -> tuple[Any, Any]:
    """Parameters and state after a step from zero that collects just this evidence."""
    start = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype if dtype is None else dtype), dual)
    gradient = jax.tree.map(lambda v: -v, dual)
    return step_with(tx)(start, tx.init(start), gradient)


def soft(x: np.ndarray, s: Any) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - s, 0)


def largest(evidence: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest entries above zero, by a stable sort."""
    order = np.argsort(-evidence, axis=None, kind="stable")[:count]
    mask = np.zeros(evidence.size, bool)
    mask[order] = True
    return mask.reshape(evidence.shape) & (evidence > 0)


def threshold(evidence: np.ndarray, strength: Any, count: int) -> Any:
    """The strength nearest to the present one at which ``count`` exceed it."""
    ranked = np.sort(evidence, axis=None)[::-1]
    now = np.sum(evidence > strength)
    if now > count:
        return ranked[count]
    return ranked[count - 1] if now < count else strength


@functools.cache
def landed_on(count: int) -> Any:
    tx = bregjax.linbreg(1.0, L1, STRENGTH, delta=DELTA)

    @jax.jit
    def land(dual: Any) -> Any:
        params, state = given_dual(tx, dual)
        return bregjax.land(tx, state, params, count=count)

    return land


SIZE = 12
# Halves have gaps between them, ties at all and many of them, and zeros of both signs.
EVIDENCE = st.floats(-4, 4, width=16) | st.integers(-3, 3).map(lambda k: k / 2)


@hypothesis.given(st.lists(EVIDENCE, min_size=SIZE, max_size=SIZE), st.integers(0, SIZE))
def test_those_with_most_evidence_stay_and_are_read_off_the_dual(values, count):
    dual = np.array(values, np.float32).reshape(3, 4)
    evidence = np.abs(dual)
    landed = np.asarray(landed_on(count)(dual))
    np.testing.assert_array_equal(landed != 0, largest(evidence, count))
    assert np.count_nonzero(landed) == min(count, np.count_nonzero(evidence))
    if count <= np.count_nonzero(evidence):
        expected = DELTA * soft(dual, threshold(evidence, STRENGTH, count)) * (landed != 0)
        np.testing.assert_allclose(landed, expected, rtol=0, atol=2e-6)


GROUPS: dict[str, Any] = {
    "per_neuron": (bregjax.per_neuron(), (5, 9), (0,)),
    "per_kernel": (bregjax.per_kernel(), (3, 3, 3, 4), (0, 1)),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("density", [0.0, 1 / 3, 0.75, 1.0])
def test_groups_are_landed_whole_in_a_batch(name, density):
    groups, shape, axes = GROUPS[name]
    sizes = np.linspace(0.3, 2, 20).reshape(-1, *(1,) * len(shape))
    duals = (sizes * DRAW.normal(size=(20, *shape))).astype(np.float32)
    tx = bregjax.linbreg(1.0, groups, STRENGTH, delta=DELTA)

    @jax.jit
    @jax.vmap
    def land(dual: Any) -> Any:
        params, state = given_dual(tx, dual)
        return bregjax.land(tx, state, params, density=density, groups=groups)

    lives_before = []
    for dual, landed in zip(duals, np.asarray(land(duals)), strict=True):
        n = np.prod([shape[a] for a in axes])
        evidence = np.linalg.norm(dual.reshape(n, -1), axis=0) / np.sqrt(n)
        count = round(density * evidence.size)
        live = largest(evidence, count)
        rows = landed.reshape(n, -1)
        np.testing.assert_array_equal(rows != 0, np.broadcast_to(live, rows.shape))
        shrink = np.maximum(1 - threshold(evidence, STRENGTH, count) / evidence, 0)
        expected = DELTA * dual.reshape(n, -1) * shrink
        np.testing.assert_allclose(rows, expected, rtol=0, atol=2e-6)
        lives_before.append(np.sum(evidence > STRENGTH))
    assert density in (0, 1) or min(lives_before) < count < max(lives_before)


@pytest.mark.parametrize("regularizer", [L1, bregjax.per_neuron()], ids=["l1", "per_neuron"])
@pytest.mark.parametrize("groups", [None, bregjax.per_neuron()], ids=["entries", "neurons"])
@pytest.mark.parametrize("jit", [False, True])
def test_without_a_strength_the_largest_stay_as_they_are(regularizer, groups, jit):
    dual = DRAW.normal(size=(6, 8)).astype(np.float32)
    tx = bregjax.linbreg(1.0, regularizer, 0.0, delta=DELTA)
    params, state = given_dual(tx, dual)

    def land(state: Any, params: Any) -> Any:
        return bregjax.land(tx, state, params, count=3, groups=groups)

    landed = np.asarray((jax.jit(land) if jit else land)(state, params))
    sizes = np.abs(dual) if groups is None else np.linalg.norm(dual, axis=0)
    expected = DELTA * dual * largest(sizes, 3)
    np.testing.assert_allclose(landed, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("groups", [bregjax.per_neuron(), bregjax.per_input_channel()])
def test_large_groups_are_counted_to_the_group(groups):
    # Norms of so many entries are rounded in several places.
    dual = np.random.default_rng(0).normal(size=(3000, 400)).astype(np.float32)
    tx = bregjax.linbreg(1.0, groups, 0.5)
    params, state = given_dual(tx, dual)
    for count in (17, 399):
        landed = jax.jit(lambda *a, n=count: bregjax.land(tx, *a, count=n, groups=groups))
        assert bregjax.live_groups(landed(state, params), groups).sum() == count


def test_entries_of_sparse_groups_and_of_regularizers_from_outside_are_landed():
    class Clipped(bregjax.Regularizer):  # three methods, as a user writes them
        def value(self, x):
            return jnp.sum(jnp.abs(x))

        def prox(self, x, step):
            return jnp.where(jnp.abs(x) > 2 * jnp.asarray(step, x.dtype), x, 0)

        def subgradient(self, x):
            return jnp.sign(x)

    dual = jnp.asarray(DRAW.normal(size=(20, 10)), jnp.float32)
    for regularizer in (bregjax.sparse_group(bregjax.per_neuron()), Clipped()):
        tx = bregjax.linbreg(1.0, regularizer, 0.3)
        params, state = given_dual(tx, dual)
        for count in (3, 50, 180):
            landed = bregjax.land(tx, state, params, count=count)
            assert np.count_nonzero(landed) == count
            # Those that stay are the last to be alive as the strength rises.
            rising = np.linspace(0, 6, 400, dtype=np.float32)
            lives = [np.asarray(regularizer.prox(dual, 0.3 * s) != 0) for s in rising]
            lasts = np.sum(lives, axis=0)
            stay = np.asarray(landed) != 0
            assert lasts[stay].min() >= lasts[~stay].max()


SHAPES = {"conv": (3, 3, 2, 4), "dense": (6, 5), "bias": (5,)}


def zeros(dtype: Any = jnp.float32) -> Any:
    return {name: jnp.zeros(shape, dtype) for name, shape in SHAPES.items()}


def noise(t: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(t)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def trained(tx: Any, params: Any) -> tuple[Any, Any]:
    """Parameters and state after some random gradients."""
    state, step = tx.init(params), jax.jit(step_with(tx))
    for t in range(3):
        params, state = step(params, state, noise(t, params["bias"].dtype))
    return params, state


def dual_of(state: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The dual variable of the parameter of this shape."""
    duals = optax.tree.get_all_with_path(state, "dual")
    (dual,) = (x for _, tree in duals for x in jax.tree.leaves(tree) if x.shape == shape)
    return np.asarray(dual)


def partition() -> Any:
    parts: dict[Any, Any] = {
        "conv": bregjax.linbreg(0.5, L1, 0.2, momentum=0.5),
        "dense": bregjax.adabreg(0.5, L1, 1.0, delta=DELTA),
        "other": optax.sgd(0.5),
    }
    return optax.partition(parts, bregjax.label_by_kind)


@pytest.mark.parametrize("count", [1, 60, 80, 102])  # with 40 no weight of dense would live
def test_the_parts_of_a_partition_are_ranked_by_evidence_to_strength(count):
    tx = partition()
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        params, state = trained(tx, zeros())
        landed = jax.jit(lambda *args: bregjax.land(tx, *args, count=count))(state, params)
    conv, dense = (dual_of(state, params[name].shape) for name in ("conv", "dense"))
    ratios = np.concatenate([np.abs(conv).ravel() / 0.2, np.abs(dense).ravel()])
    live = np.concatenate([np.ravel(landed[name]) != 0 for name in ("conv", "dense")])
    np.testing.assert_array_equal(live, largest(ratios, count))
    scale = threshold(ratios, 1.0, count)
    expected = np.concatenate([soft(conv, 0.2 * scale).ravel(), DELTA * soft(dense, scale).ravel()])
    actual = np.concatenate([np.ravel(landed[name]) for name in ("conv", "dense")])
    np.testing.assert_allclose(actual, expected * live, rtol=0, atol=2e-6)
    assert_equal(landed["bias"], params["bias"])
    assert np.all(params["bias"] != 0)


@pytest.mark.parametrize("count", [0, 7, 40, 102])
def test_bfloat16_weights_are_counted_as_stored(count):
    tx = bregjax.linbreg(0.5, L1, 0.3)
    params, state = trained(tx, zeros(jnp.bfloat16))
    landed = jax.jit(lambda *args: bregjax.land(tx, *args, count=count))(state, params)
    assert {x.dtype for x in jax.tree.leaves(landed)} == {jnp.dtype("bfloat16")}
    assert bregjax.density(landed) * 102 == pytest.approx(count)
    assert_equal(landed["bias"], params["bias"])


@pytest.mark.parametrize("rounded", [jnp.float16, jnp.float32])
def test_small_weights_are_ranked_although_their_squares_are_zero(rounded):
    # In float16 squares below 2e-8 are none, in float32 those below 1e-45.
    unit, base = (1e-4, 1.0) if rounded == jnp.float16 else (1e-21, 0.0)
    dual = base + unit * jnp.array([[1.0, 4.0, 2.0, 3.0]])
    tx = bregjax.linbreg(1.0, L1, base + 0.5 * unit)
    params, state = given_dual(tx, dual, rounded)
    landed = bregjax.land(tx, state, params, count=2)
    np.testing.assert_array_equal(landed != 0, [[False, True, False, True]])


def test_a_count_that_is_right_changes_nothing():
    tx = bregjax.linbreg(0.5, L1, 0.3)
    params, state = trained(tx, zeros())
    count = round(float(bregjax.density(params)) * 102)
    assert 0 < count < 102
    landed = bregjax.land(tx, state, params, count=count)
    assert_close(landed, params, tolerance=1e-6)
    assert_equal(bregjax.land(tx, state, params, density=count / 102), landed)


def test_the_mask_says_what_is_counted_and_the_rest_stays():
    tx = bregjax.linbreg(0.5, L1, 0.3)
    params, state = trained(tx, zeros())
    mask = {"conv": True, "dense": False, "bias": True}  # the bias has no dual
    landed = bregjax.land(tx, state, params, density=0.25, mask=mask)
    assert np.count_nonzero(landed["conv"]) == 18
    for name in ("dense", "bias"):
        assert_equal(landed[name], params[name])


def test_land_sees_through_steer_and_hands_on_extra_arguments():
    seen = []

    def watch(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        seen.append(extra_args.get("value"))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), watch)
    tx: Any = optax.chain(spy, bregjax.steer(bregjax.linbreg(0.5, L1, 0.3), 0.5))
    params, state = trained(tx, zeros())
    dual = np.abs(dual_of(state, (6, 5)))
    mask = {"conv": False, "dense": True, "bias": False}
    seen.clear()
    landed = bregjax.land(tx, state, params, count=11, mask=mask, value=2.0)
    np.testing.assert_array_equal(landed["dense"] != 0, largest(dual, 11))
    assert set(seen) == {2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got density=None, count=None"),
        ({"density": 0.5, "count": 3}, r"got density=0\.5, count=3"),
        ({"density": 1.5}, r"density=1\.5"),
        ({"density": -0.1}, r"density=-0\.1"),
        ({"count": -1}, "count=-1"),
        ({"count": 2.0}, r"count=2\.0"),
        ({"count": 4}, r"only 3 .*count=4"),
        ({"count": 5}, "count=5"),
        ({"density": 1.0}, r"only 3 .*density=1\.0"),
        ({"count": 1, "mask": [False]}, "mask marks no leaf"),
    ],
)
def test_what_cannot_be_landed_on_raises(arguments, message):
    tx = bregjax.linbreg(1.0, L1, 1.0)
    params, state = given_dual(tx, [jnp.array([[2.0, -0.5, 0.0, 1.5]])])
    with pytest.raises(ValueError, match=message):
        bregjax.land(tx, state, params, **arguments)


def test_an_optimizer_without_a_dual_and_groups_that_are_none_raise():
    tx, params = bregjax.prox_sgd(0.1, L1, 1.0), jnp.ones((2, 2))
    with pytest.raises(ValueError, match="no dual"):
        bregjax.land(tx, tx.init(params), params, count=1)
    tx = bregjax.linbreg(0.1, L1, 1.0)
    with pytest.raises(TypeError, match="groups="):
        bregjax.land(tx, tx.init(params), params, count=1, groups=0.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("groups", [None, bregjax.per_neuron(), bregjax.per_kernel()])
def test_arrays_without_entries_are_landed_on_as_they_are(groups):
    params = {"empty": jnp.zeros((0, 3)), "w": jnp.array([[3.0, 1.0], [2.0, 1.0]])}
    tx = bregjax.linbreg(0.1, bregjax.l1(), 0.1)
    landed = bregjax.land(tx, tx.init(params), params, count=1, groups=groups)
    assert landed["empty"].shape == (0, 3)
    assert bregjax.live_groups(landed["w"], groups or bregjax.l1()).sum() == 1


# ---- landing

STEP, LATER = 4, 4


INNER: dict[str, Any] = {
    "linbreg": lambda: bregjax.linbreg(0.5, L1, 0.3, momentum=0.5),
    "steer": lambda: bregjax.steer(bregjax.linbreg(0.5, L1, 0.3), 0.4),
}


@pytest.mark.parametrize("name", INNER)
def test_landing_is_training_then_land_then_tuning_on_the_support(name):
    inner, tuner = INNER[name](), optax.sgd(optax.linear_schedule(0.3, 0.1, 3), momentum=0.9)
    tx: Any = bregjax.landing(inner, tuner, STEP, count=30)
    step = jax.jit(step_with(tx))
    by_hand, frozen = jax.jit(step_with(inner)), bregjax.freeze_support(tuner)
    params = expected = zeros()
    with jax.numpy_dtype_promotion("standard"):  # for the schedule of the tuner
        state, inner_state = tx.init(params), inner.init(params)
        for t in range(STEP):
            params, state = step(params, state, noise(t))
            expected, inner_state = by_hand(expected, inner_state, noise(t))
            assert_equal(params, expected)
            assert_equal(state.inner_state, inner_state)
        assert count_of(params) != 30
        # Whatever the gradient, even where it is infinite.
        nothing = jax.tree.map(lambda x: x * jnp.inf, noise(STEP))
        params, state = step(params, state, nothing)
        # Compiled together with the rest, the strength may be rounded otherwise.
        assert_close(params, bregjax.land(inner, inner_state, expected, count=30), tolerance=1e-6)
        assert count_of(params) == 30
        assert_equal(state.inner_state, inner_state)
        support, expected = jax.tree.map(lambda x: x != 0, params), params
        tuning_state = frozen.init(expected)
        for t in range(STEP + 1, STEP + 1 + LATER):
            params, state = step(params, state, noise(t))
            expected, tuning_state = step_with(frozen)(expected, tuning_state, noise(t))
            assert_close(params, expected, tolerance=1e-6)
            assert_close(state.tuning_state, tuning_state, tolerance=1e-6)
            assert_equal(jax.tree.map(lambda x: x != 0, params), support)
    assert int(state.count) == STEP + 1 + LATER


def count_of(params: Any) -> int:
    return sum(int(np.count_nonzero(params[name])) for name in ("conv", "dense"))


@pytest.mark.parametrize(("count", "kept"), [(3, 3), (9, 5)])
def test_the_state_tells_how_many_were_wanted_and_kept(count, kept):
    # Five of the twelve entries have met a gradient.
    gradient = jnp.zeros((3, 4)).at[:, 1].set(1.0).at[0, :3].set(-2.0)
    tx: Any = bregjax.landing(bregjax.linbreg(0.1, L1, 1.0), optax.sgd(0.1), 2, count=count)
    params = jnp.zeros((3, 4))
    state, step = tx.init(params), jax.jit(step_with(tx))
    for _ in range(2):
        params, state = step(params, state, gradient)
        assert (int(state.wanted), int(state.kept)) == (0, 0)
    for _ in range(3):
        params, state = step(params, state, gradient)
        assert (int(state.wanted), int(state.kept)) == (count, kept)
        assert np.count_nonzero(params) == kept


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_a_bad_step_is_named(value):
    with pytest.raises(ValueError, match=f"step={value!r}"):
        bregjax.landing(optax.sgd(0.1), optax.sgd(0.1), value, count=1)


def test_landing_needs_the_parameters():
    tx: Any = bregjax.landing(bregjax.linbreg(0.1, L1, 1.0), optax.sgd(0.1), 1, count=1)
    params = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="params=None"):
        tx.update(params, tx.init(params))


def test_of_mixed_regularizers_only_the_weakest_unit_is_cut():
    # Kernels of four entries wake as a whole; dense entries one by one.
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 5)), jnp.float32)
    dense = jnp.asarray(np.random.default_rng(1).normal(size=(6, 7)), jnp.float32)
    params = {"conv": jnp.zeros_like(kernel), "dense": jnp.zeros_like(dense)}
    tx = optax.partition(
        {
            "conv": bregjax.linbreg(1.0, bregjax.per_kernel(), 0.5),
            "dense": bregjax.linbreg(1.0, bregjax.l1(), 1.0),
        },
        bregjax.label_by_kind,
    )
    _, state = tx.update({"conv": -kernel, "dense": -dense}, tx.init(params), params)
    # The strength at which each entry wakes.
    norms = np.sqrt(np.sum(np.asarray(kernel) ** 2, axis=(0, 1), keepdims=True))
    wakes = np.broadcast_to(norms / (2 * 0.5), kernel.shape)
    evidence = np.concatenate([wakes.ravel(), np.abs(dense).ravel() / 1.0])
    for count in (1, 7, 20, 41, 60):
        landed = bregjax.land(tx, state, params, count=count)
        live = np.concatenate([np.asarray(landed[n]).ravel() != 0 for n in ("conv", "dense")])
        assert live.sum() == count
        weakest = evidence[live].min()
        assert live[evidence > weakest * (1 + 1e-6)].all()


def test_landing_checks_its_arguments_when_it_is_built():
    with pytest.raises(ValueError, match="give either density or count"):
        bregjax.landing(bregjax.linbreg(0.1, bregjax.l1(), 1.0), optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match="density must be at most 1, got density=2"):
        bregjax.landing(bregjax.linbreg(0.1, bregjax.l1(), 1.0), optax.sgd(0.1), 3, density=2)


@jax.numpy_dtype_promotion("standard")  # Optax's Adam needs it
def test_the_state_of_an_nnx_optimizer_and_nnx_parameters_in_variables_or_not():
    model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    tx = bregjax.adabreg(0.1, bregjax.l1(), 0.5)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = nnx.grad(lambda m: jnp.sum(m(jnp.ones((3, 8))) ** 2))
    for _ in range(4):
        optimizer.update(model, gradient(model))
    params = nnx.state(model, nnx.Param)
    expected = bregjax.land(tx, nnx.as_pure(optimizer.opt_state), nnx.as_pure(params), density=0.25)
    assert np.count_nonzero(expected["kernel"]) == 32
    for state in (optimizer.opt_state, nnx.as_pure(optimizer.opt_state)):
        for given in (params, nnx.as_pure(params)):
            landed = bregjax.land(tx, state, given, density=0.25)
            assert jax.tree.structure(landed) == jax.tree.structure(given)
            np.testing.assert_array_equal(nnx.as_pure(landed)["kernel"], expected["kernel"])
    nnx.update(model, bregjax.land(tx, optimizer.opt_state, params, density=0.25))
    assert np.count_nonzero(model.kernel[...]) == 32


@pytest.mark.parametrize("pure", [False, True])
def test_landing_takes_the_variables_of_nnx(pure):
    params: Any = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    params = nnx.as_pure(params) if pure else params
    tx = bregjax.landing(bregjax.linbreg(0.1, bregjax.l1(), 0.1), optax.sgd(0.1), 1, count=3)
    state = tx.init(params)
    for _ in range(3):
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert np.count_nonzero(nnx.as_pure(params)["kernel"]) == 3


def test_what_dies_is_zero_whatever_it_was_and_what_is_not_landed_stays_the_same():
    tx = bregjax.linbreg(0.1, bregjax.l1(), 0.5)
    params = {"w": jnp.array([[2.0, 1.0, 0.0, 0.5]]), "b": np.array([-0.0, 1 / 3])}
    gradient = {"w": jnp.array([[0.0, jnp.nan, 0.0, 0.0]]), "b": jnp.zeros(2)}
    updates: Any
    updates, state = tx.update(gradient, tx.init(params), params)
    broken = params | {"w": params["w"] + updates["w"]}
    assert jnp.isnan(broken["w"][0, 1])
    landed = bregjax.land(tx, state, broken, count=1)
    np.testing.assert_array_equal(landed["w"] != 0, [[True, False, False, False]])
    assert landed["b"] is params["b"]


def test_the_tuner_keeps_the_count_of_all_leaves_that_are_landed():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.3, mask={"w": True})
    tx: Any = bregjax.landing(inner, optax.sgd(0.5), 20, count=2)
    params = {"w": jnp.zeros(4)}  # a vector, which the default mask would leave out
    state = tx.init(params)
    for _ in range(40):
        gradient = {"w": params["w"] - jnp.array([3.0, 1.0, 2.0, 0.5])}
        params, state = step_with(tx)(params, state, gradient)
    np.testing.assert_allclose(params["w"], [3.0, 0.0, 2.0, 0.0], atol=1e-4)


def test_a_measure_that_nothing_fits_is_an_error():
    tx = bregjax.linbreg(1.0, L1, STRENGTH)
    params, state = given_dual(tx, {"w": jnp.array([[3.0, 2.0, 1.0]])})

    def share(params):
        return 0.2 + 0.8 * bregjax.density(params)

    assert (
        int(jnp.count_nonzero(bregjax.land(tx, state, params, density=0.5, measure=share)["w"]))
        == 1
    )
    with pytest.raises(ValueError, match="density is below the measure"):
        bregjax.land(tx, state, params, density=0.3, measure=share)


def test_where_all_fit_a_measure_all_stay():
    tx = bregjax.linbreg(1.0, L1, STRENGTH)
    params, state = given_dual(tx, {"w": jnp.array([[3.0, 2.0, 0.1]])})
    assert int(jnp.count_nonzero(params["w"])) == 2
    landed: Any = bregjax.land(tx, state, params, density=1.0, measure=bregjax.density)
    assert int(jnp.count_nonzero(landed["w"])) == 3
