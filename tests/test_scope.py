"""Who competes for living: all weights, with a floor for each layer, or those of each layer."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from optimizer_table import step_with

import bregjax
from bregjax._scope import LayerCounts
from bregjax.baselines import erdos_renyi_densities, magnitude_pruning

SCOPES = ("global", "layer", "erdos_renyi")
SHAPES = {"wide": (40, 30), "middle": (30, 10), "last": (10, 4)}
TOTAL = 1540


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam needs the standard one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def draw(seed: int, scales: dict[str, float] | None = None) -> dict[str, jax.Array]:
    """Normal weights of each layer, of a size of its own."""
    scales = scales or {}
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: scales.get(name, 1.0) * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def live(params: Any) -> dict[str, int]:
    return {name: int(jnp.count_nonzero(x)) for name, x in params.items()}


def split_exactly(k: int, shapes: Any, scope: str) -> np.ndarray:
    """The numbers of the layers before they are rounded, by halving."""
    sizes = np.array([np.prod(shape) for shape in shapes], np.float64)
    if scope == "layer":
        return k * sizes / sizes.sum()
    sums = np.array([np.sum(shape) for shape in shapes], np.float64)
    low, high = 0.0, float(np.max(sizes / sums))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(sizes, middle * sums).sum() < k else (low, middle)
    return np.minimum(sizes, low * sums)


LAYERS = st.lists(
    st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
)


@hypothesis.given(LAYERS, st.sampled_from(SCOPES[1:]), st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_number_is_split_into_whole_ones_that_add_up(shapes, scope, data):
    sizes = [int(np.prod(shape)) for shape in shapes]
    k = data.draw(st.integers(0, sum(sizes)))
    counts = np.asarray(LayerCounts(shapes).counts(jnp.uint32(k), scope))
    assert counts.sum() == k
    assert np.all(counts <= sizes)
    if k >= len(shapes):
        assert np.all(counts >= 1)
        # What others have instead of less than one is taken away, what is left over given out.
        assert np.all(np.abs(counts - split_exactly(k, shapes, scope)) <= len(shapes))


@hypothesis.given(LAYERS, st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_floors_leave_room_for_competition(shapes, data):
    total = sum(int(np.prod(shape)) for shape in shapes)
    k = data.draw(st.integers(len(shapes), total))
    floors = np.asarray(LayerCounts(shapes).floors(jnp.uint32(k)))
    assert floors.sum() <= len(shapes) + 0.1 * k
    assert len(shapes) == 1 or np.all(floors >= 1)


def test_large_numbers_are_split_exactly_too():
    shapes = [(40_000, 50_000), (50_000, 40_000), (3, 3), (1, 1)]
    for k in (2**32 - 1 - 294_967_286, 3_999_999_999, 2**24 + 1, 5):
        for scope in SCOPES[1:]:
            counts = np.asarray(LayerCounts(shapes).counts(jnp.uint32(k), scope), np.uint64)
            assert counts.sum() == k


def trained(scope: Any, target: Any, scales: dict[str, float], steps: int = 40, **kwargs: Any):
    """Parameters and their numbers after each step towards a random solution."""
    solution = draw(7, scales)
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.01, keep_weights=kwargs.pop("keep", True))
    tx = bregjax.steer(inner, target, exact=True, scope=scope, **kwargs)
    params: Any = jax.tree.map(jnp.zeros_like, solution)
    state, step, counts = tx.init(params), jax.jit(step_with(tx)), []
    for i in range(steps):
        gradient = jax.tree.map(
            lambda x, y, z: 0.3 * (x - y) + 0.1 * z, params, solution, draw(8 + i, scales)
        )
        params, state = step(params, state, gradient)
        counts.append(live(params))
    return params, state, counts


STARVED = {"last": 1e-3}
"""in the last layer nothing has as much evidence as the least of the others"""


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_count_of_the_network_is_exact_in_every_scope_and_no_layer_dies(scope, keep):
    target = optax.linear_schedule(0.6, 0.05, 29)
    _, _, counts = trained(scope, target, STARVED, keep=keep)
    totals = [sum(each.values()) for each in counts]
    wanted = [np.float32(TOTAL) * np.float32(np.asarray(target(t))) for t in range(40)]
    assert totals == np.round(wanted).tolist()
    assert all(min(each.values()) >= 1 for each in counts)


def test_layers_get_the_same_density_or_erdos_renyi_densities():
    _, _, counts = trained("layer", 0.1, STARVED)
    assert all(abs(counts[-1][name] - 0.1 * np.prod(SHAPES[name])) <= 2 for name in SHAPES)
    _, _, counts = trained("erdos_renyi", 0.1, STARVED)
    shares = erdos_renyi_densities(draw(0), 0.1)
    assert all(abs(counts[-1][name] - shares[name] * np.prod(SHAPES[name])) <= 3 for name in SHAPES)


@pytest.mark.parametrize("keep", [False, True])
def test_the_floor_feeds_only_layers_that_would_starve(keep):
    params, state, counts = trained("global", 0.1, STARVED, keep=keep)
    shares = erdos_renyi_densities(draw(0), 0.01)
    floor = shares["last"] * 40
    assert abs(counts[-1]["last"] - floor) <= 1
    # All others are at one strength, and those with the most evidence live.
    (steering,) = bregjax.states_of(state, bregjax.SteerState)
    last, middle, wide = (float(x) for x in steering.layer_scales)
    assert last < 0.05 * wide
    assert middle == wide == float(steering.strength_scale)
    dual = optax.tree.get(state, "dual")
    weights = np.concatenate([np.ravel(params[name]) for name in ("wide", "middle")])
    duals = np.concatenate([np.ravel(np.abs(dual[name])) for name in ("wide", "middle")])
    assert duals[weights != 0].min() > duals[weights == 0].max()


def test_where_no_layer_starves_the_floor_changes_nothing():
    _, state, counts = trained("global", 0.1, {})
    (steering,) = bregjax.states_of(state, bregjax.SteerState)
    assert len(set(np.asarray(steering.layer_scales).tolist())) == 1
    dual = optax.tree.get(state, "dual")
    ranked = np.sort(np.concatenate([np.ravel(np.abs(x)) for x in dual.values()]))[::-1]
    threshold = 0.01 * float(steering.strength_scale)
    assert ranked[153] > threshold > ranked[154]
    assert sum(counts[-1].values()) == 154


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_keep_live_weights_when_their_layers_strength_moves(scope):
    params, state, _ = trained(scope, 0.1, STARVED)
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.01, keep_weights=True)
    tx = bregjax.steer(inner, 0.05, exact=True, scope=scope)
    after, _ = step_with(tx)(params, state, jax.tree.map(jnp.zeros_like, params))
    assert sum(live(after).values()) == 77
    for name in SHAPES:
        both = (params[name] != 0) & (after[name] != 0)
        np.testing.assert_allclose(after[name][both], params[name][both], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_parts_of_a_partition_have_scopes_in_common(scope):
    """Masked parts find their own factors in the tree of all."""
    solution = draw(7, STARVED)
    parts: dict[Any, Any] = {
        "wide": bregjax.linbreg(0.1, bregjax.per_neuron(), 0.01, keep_weights=True),
        "rest": bregjax.adabreg(0.01, bregjax.l1(), 0.02, keep_weights=True),
    }
    labels = {"wide": "wide", "middle": "rest", "last": "rest"}
    tx = bregjax.steer(optax.partition(parts, labels), 0.2, exact=True, scope=scope)
    params: Any = jax.tree.map(jnp.zeros_like, solution)
    state, step = tx.init(params), jax.jit(step_with(tx))
    for i in range(20):
        gradient = jax.tree.map(lambda x, y, z: x - y + 0.1 * z, params, solution, draw(i))
        params, state = step(params, state, gradient)
    counts = live(params)
    assert counts["wide"] % 40 == 0
    assert 308 <= sum(counts.values()) <= 308 + 40
    assert min(counts.values()) >= 1


@pytest.mark.parametrize("regularizer", [bregjax.l1(), bregjax.per_neuron()])
@pytest.mark.parametrize("scope", SCOPES)
def test_landing_has_the_same_scopes(scope: Any, regularizer):
    groups = regularizer if regularizer.has_groups else bregjax.l1()
    tx = bregjax.linbreg(0.1, regularizer, 0.001)
    params: Any = draw(0, STARVED)
    state, step = tx.init(params), jax.jit(step_with(tx))
    for i in range(5):
        params, state = step(params, state, draw(i + 1, STARVED))
    land = jax.jit(
        lambda state, params: bregjax.land(
            tx, state, params, density=0.25, groups=groups, scope=scope
        )
    )
    landed = land(state, params)
    sizes = {name: bregjax.live_groups(jnp.ones(SHAPES[name]), groups).size for name in SHAPES}
    counts = {name: int(bregjax.live_groups(landed[name], groups).sum()) for name in SHAPES}
    assert sum(counts.values()) == round(0.25 * sum(sizes.values()))
    assert min(counts.values()) >= 1
    if scope == "layer":
        assert all(abs(counts[name] - 0.25 * sizes[name]) <= 1 for name in SHAPES)
    if scope == "global":
        assert counts["last"] <= 4  # a tenth of what erdos_renyi would give it
    if not regularizer.has_groups:  # those with the most evidence of each layer
        for name, dual in optax.tree.get(state, "dual").items():
            chosen = np.asarray(landed[name]) != 0
            assert np.abs(dual)[chosen].min() >= np.abs(dual)[~chosen].max(initial=0)


def test_a_layer_without_evidence_does_not_land_on_it():
    tx = bregjax.linbreg(0.1, bregjax.l1(), 1.0)
    params = {"some": jnp.zeros((4, 4)), "none": jnp.zeros((4, 4))}
    gradient = {"some": jnp.arange(16.0).reshape(4, 4), "none": jnp.zeros((4, 4))}
    _, state = step_with(tx)(params, tx.init(params), gradient)
    landed = bregjax.land(tx, state, params, count=6)
    assert live(landed) == {"none": 0, "some": 6}


def test_a_layer_that_only_the_floor_keeps_alive_is_named():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.01, keep_weights=True)
    said = {}
    cases: Any = (
        ("fed", "global", STARVED),
        ("well", "global", {}),
        ("erdos_renyi", "erdos_renyi", STARVED),
    )
    for name, scope, scales in cases:
        params, state, _ = trained(scope, 0.1, scales)
        tx = bregjax.steer(inner, 0.1, exact=True, scope=scope)
        said[name] = [x for x in bregjax.diagnose(tx, state, params) if "starve" in x]
    assert said["well"] == said["erdos_renyi"] == []
    assert len(said["fed"]) == 1
    assert "last (" in said["fed"][0]
    assert "wide" not in said["fed"][0]


def test_scopes_are_those_of_magnitude_pruning():
    params = draw(0)
    pruned = magnitude_pruning(optax.sgd(0.0), 0.3, scope="layer")
    updates, _ = pruned.update(jax.tree.map(jnp.zeros_like, params), pruned.init(params), params)
    expected = live(optax.apply_updates(params, updates))
    _, _, counts = trained("layer", 0.3, {})
    assert all(abs(counts[-1][name] - expected[name]) <= 1 for name in SHAPES)


def test_what_scopes_cannot_be_raises():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 1.0)
    with pytest.raises(ValueError, match=r"scope must be one of.*got scope='network'"):
        bregjax.steer(inner, 0.1, exact=True, scope="network")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs exact=True, got scope='layer'"):
        bregjax.steer(inner, 0.1, scope="layer")
    with pytest.raises(ValueError, match="scope must be one of"):
        bregjax.adabreg_to_density(0.1, 10, scope="all")  # type: ignore[arg-type]
    params = draw(0)
    with pytest.raises(ValueError, match="scope must be one of"):
        bregjax.land(inner, inner.init(params), params, count=3, scope="all")  # type: ignore[arg-type]
