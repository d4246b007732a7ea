import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from flax import nnx
from kinds import one_of_each_kind

import bregjax
from bregjax.baselines import (
    add_penalty,
    cubic_density_schedule,
    dynamic_sparsity,
    erdos_renyi_densities,
    erdos_renyi_sparsify,
    lasso,
    magnitude_pruning,
    rigl,
    set_training,
)

RATE, MOMENTUM = 0.1, 0.9


@pytest.fixture(autouse=True)
def promotion():
    """Optax's schedules need the standard one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SHAPES = {"dense": (12, 10), "conv": (3, 3, 2, 5), "bias": (10,)}
WEIGHTS = ("dense", "conv")


def draw(seed: int, *, density: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name in WEIGHTS:
        tree[name] *= rng.random(SHAPES[name]) < density
    return tree


def gradient(params, noise):
    """Of ½‖θ − 1‖² and some noise; plain arithmetic, for NumPy and JAX alike."""
    return {name: params[name] - 1 + noise[name] for name in SHAPES}


@functools.cache
def noises(steps: int) -> dict[str, np.ndarray]:
    drawn = [draw(100 + t) for t in range(steps)]
    return {name: np.stack([tree[name] for tree in drawn]) for name in SHAPES}


def run(tx: Any, params, steps: int) -> tuple[Any, Any]:
    """All parameters and states on the way, in one scan."""

    def step(carry, noise):
        params, state = carry
        updates, state = tx.update(gradient(params, noise), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (params, tx.init(params)), noises(steps))[1]


def largest(scores: np.ndarray, k: int, among: np.ndarray) -> np.ndarray:
    """The k largest of those allowed, by a stable sort."""
    order = np.argsort(np.where(among, -np.abs(scores), np.inf), axis=None, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    return mask.reshape(scores.shape)


def sgd():
    return optax.sgd(RATE, MOMENTUM)


def one_shot(step: int, density: float, **options):
    schedule = optax.piecewise_constant_schedule(1.0, {step: density})
    return magnitude_pruning(sgd(), schedule, **options)


OPTIMIZERS: dict[str, Any] = {
    "lasso": lambda: lasso(RATE, 0.3, momentum=MOMENTUM),
    "one-shot": lambda: one_shot(4, 0.2),
    "gradual": lambda: magnitude_pruning(sgd(), cubic_density_schedule(0.1, 2, 9, every=3)),
    "layers": lambda: magnitude_pruning(optax.adam(RATE), 0.2, scope="layer"),
    "SET": lambda: set_training(sgd(), key=jax.random.key(0), every=3, stop=10),
    "RigL": lambda: rigl(optax.adamw(RATE), every=3, stop=10),
}


# ---- lasso


def test_lasso_follows_a_numpy_loop_and_leaves_biases_alone():
    strength = optax.linear_schedule(0.2, 0.6, 5)
    params, trace = draw(0, density=0.5), dict.fromkeys(SHAPES, 0.0)
    trajectory, _ = run(lasso(RATE, strength, momentum=MOMENTUM), params, 8)
    for t in range(8):
        grads = gradient(params, {name: noises(8)[name][t] for name in SHAPES})
        for name in SHAPES:
            penalty = (0.2 + 0.4 * min(t, 5) / 5) * np.sign(params[name])
            trace[name] = MOMENTUM * trace[name] + grads[name] + penalty * (name in WEIGHTS)
            params[name] = params[name] - RATE * trace[name]
            np.testing.assert_allclose(trajectory[name][t], params[name], rtol=1e-4, atol=1e-5)


def test_lasso_goes_to_the_soft_threshold_of_a_quadratic():
    target: Any = jnp.array([[3.0, 0.4, -0.2, -2.0, 1.0]])
    strength, rate = 0.5, 1e-3
    tx: Any = lasso(rate, strength)

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        updates, state = tx.update(x - target, state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.ones_like(target)
    (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=10_000)
    np.testing.assert_allclose(x, [[2.5, 0, 0, -1.5, 0.5]], atol=2 * rate)


def test_penalty_may_be_of_groups():
    x = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    tx: Any = add_penalty(bregjax.per_neuron(), 0.5)
    penalized, _ = tx.update(jnp.ones((2, 2)), tx.init(x), x)
    gain = 0.5 * math.sqrt(2)
    np.testing.assert_allclose(penalized, [[1 + gain * 0.6, 1], [1 + gain * 0.8, 1]], rtol=1e-6)


# ---- magnitude pruning


def test_cubic_schedule_is_the_closed_form_on_its_grid_and_constant_elsewhere():
    schedule: Any = cubic_density_schedule(0.1, 100, 500, initial=0.9, every=100)
    for t, density in [(0, 0.9), (100, 0.9), (500, 0.1), (10_000, 0.1)]:
        assert schedule(t) == pytest.approx(density, abs=1e-6)
    for t in (200, 300, 400):
        sparsity = 0.9 + (0.1 - 0.9) * (1 - (t - 100) / (4 * 100)) ** 3
        assert 1 - schedule(t) == pytest.approx(sparsity, abs=1e-6)
        assert schedule(t + 99) == schedule(t)
    # An interval that Δt does not divide ends at its end.
    schedule = cubic_density_schedule(0.1, 0, 10, every=4)
    assert schedule(9) == schedule(8) > 0.1
    assert schedule(10) == pytest.approx(0.1)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_gradual_pruning_follows_a_numpy_loop(scope):
    steps, final, start, stop, every = 14, 0.1, 2, 11, 3
    schedule = cubic_density_schedule(final, start, stop, every=every)
    params, trace = draw(0), dict.fromkeys(SHAPES, 0.0)
    masks = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    trajectory, states = run(magnitude_pruning(sgd(), schedule, scope=scope), params, steps)
    for t in range(steps):
        grads = gradient(params, {name: noises(steps)[name][t] for name in SHAPES})
        if t in range(start, stop + 1, every):
            density = 1 - ((1 - final) - (1 - final) * (1 - (t - start) / (stop - start)) ** 3)
            for group in [WEIGHTS] if scope == "global" else [[name] for name in WEIGHTS]:
                flat, live = (
                    np.concatenate([tree[name].ravel() for name in group])
                    for tree in (params, masks)
                )
                flat = largest(flat, round(density * flat.size), live)
                for name in group:
                    size = params[name].size
                    masks[name], flat = flat[:size].reshape(SHAPES[name]), flat[size:]
        for name in SHAPES:
            trace[name] = masks[name] * (MOMENTUM * trace[name] + grads[name])
            params[name] = masks[name] * (params[name] - RATE * trace[name])
            np.testing.assert_array_equal(states.masks[name][t], masks[name])
            np.testing.assert_array_equal(trajectory[name][t] != 0, masks[name])
            np.testing.assert_allclose(trajectory[name][t], params[name], rtol=1e-4, atol=1e-5)
    assert sum(masks[name].sum() for name in WEIGHTS) == 21  # a tenth of 210


def test_fine_tuning_after_pruning_once_keeps_the_mask():
    trajectory, states = run(one_shot(4, 0.2), draw(0), 12)
    live = np.concatenate([states.masks[name].reshape(12, -1) for name in WEIGHTS], axis=1)
    np.testing.assert_array_equal(live.sum(axis=1), [210] * 4 + [42] * 8)
    np.testing.assert_array_equal(live[4:], np.broadcast_to(live[4], (8, 210)))
    weights = np.concatenate([trajectory[name].reshape(12, -1) for name in WEIGHTS], axis=1)
    assert (weights[4:][~live[4:]] == 0).all()
    plain, _ = run(sgd(), draw(0), 12)
    np.testing.assert_allclose(trajectory["bias"], plain["bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trajectory["dense"][:4], plain["dense"][:4], rtol=1e-5, atol=1e-6)


def test_a_rising_density_brings_nothing_back_and_every_layer_keeps_a_weight():
    schedule = optax.join_schedules([lambda _: 0.001, lambda _: 1.0], [3])
    trajectory, _ = run(magnitude_pruning(sgd(), schedule, scope="layer"), draw(0), 6)
    for name in WEIGHTS:
        assert (np.count_nonzero(trajectory[name].reshape(6, -1), axis=1) == 1).all()


def test_pruned_bfloat16_weights_are_exactly_zero():
    params = jax.random.normal(jax.random.key(0), (40, 40), jnp.bfloat16)
    tx: Any = magnitude_pruning(optax.sgd(0.1), 0.25)
    updates, _ = tx.update(params, tx.init(params), params)
    pruned: Any = optax.apply_updates(params, updates)
    assert pruned.dtype == jnp.bfloat16
    assert np.count_nonzero(pruned) == 400


# ---- dynamic sparse training


def numpy_rigl(params, steps, every, stop, alpha):
    """Algorithm 1 of Evci et al., with momentum, one layer after the other."""
    masks = {name: params[name] != 0 for name in WEIGHTS} | {"bias": np.ones(10, bool)}
    trace = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for t in range(steps):
        grads = gradient(params, {name: noises(steps)[name][t] for name in SHAPES})
        if 0 < t < stop and t % every == 0:
            for name in WEIGHTS:
                live = masks[name].sum()
                moved = round(alpha / 2 * (1 + math.cos(t * math.pi / stop)) * live)
                kept = largest(params[name], live - moved, masks[name])
                masks[name] = kept | largest(grads[name], moved, ~kept)
                params[name] = params[name] * masks[name]
                trace[name] = trace[name] * masks[name]
        else:
            for name in SHAPES:
                trace[name] = MOMENTUM * trace[name] + grads[name] * masks[name]
                params[name] = params[name] - RATE * trace[name]
        yield t, params, masks, trace


def test_rigl_follows_a_numpy_loop():
    steps, every, stop = 20, 4, 15
    params = draw(0, density=0.3)
    trajectory, states = run(rigl(sgd(), every=every, stop=stop), params, steps)
    moved = 0
    before = {name: params[name] != 0 for name in WEIGHTS}
    for t, expected, masks, trace in numpy_rigl(params, steps, every, stop, 0.3):
        for name in SHAPES:
            np.testing.assert_array_equal(states.masks[name][t], masks[name])
            assert (np.asarray(trajectory[name][t])[~masks[name]] == 0).all()
            np.testing.assert_allclose(trajectory[name][t], expected[name], rtol=1e-4, atol=1e-5)
            momentum = states.inner_state[0].trace[name][t]
            np.testing.assert_allclose(momentum, trace[name], rtol=1e-4, atol=1e-5)
        moved += sum((masks[name] & ~before[name]).sum() for name in WEIGHTS)
        before = {name: masks[name].copy() for name in WEIGHTS}
    assert moved >= 15


def test_set_drops_the_smallest_and_grows_anywhere():
    steps, every, stop = 24, 2, 21
    params = draw(0, density=0.3)
    tx: Any = set_training(sgd(), key=jax.random.key(1), every=every, stop=stop)
    trajectory, states = run(tx, params, steps)
    grown = []
    for name in WEIGHTS:
        weights, live = params[name], params[name] != 0
        moved = round(0.3 * live.sum())
        for t in range(steps):
            after = np.asarray(states.masks[name][t])
            if 0 < t < stop and t % every == 0:
                kept = largest(weights, live.sum() - moved, live)
                assert (after[kept]).all()
                np.testing.assert_array_equal(trajectory[name][t], weights * after)
                grown.append(np.flatnonzero(after & ~kept))
            else:
                np.testing.assert_array_equal(after, live)
            assert after.sum() == live.sum()
            weights, live = np.asarray(trajectory[name][t]), after
            assert (weights[~live] == 0).all()
    assert len({tuple(places) for places in grown}) == len(grown)


def test_random_growth_reaches_all_dead_weights_alike_and_differs_among_networks():
    kernels = jnp.zeros((300, 40, 10)).at[:, :10].set(1.0)
    kernels += jax.random.uniform(jax.random.key(3), kernels.shape) * (kernels != 0)
    tx: Any = set_training(
        optax.sgd(0.0), key=jax.random.key(0), every=1, stop=9, drop_fraction=0.5
    )

    def grown(kernel):
        def step(state, _):
            return tx.update(jnp.zeros_like(kernel), state, kernel)[1], None

        return jax.lax.scan(step, tx.init(kernel), length=2)[0].masks

    masks = jax.jit(jax.vmap(grown))(kernels)
    assert (masks.sum(axis=(1, 2)) == 100).all()
    # 50 weights fall on 350 places: 300 networks give each of them 300/7 ± 6.
    hits = np.asarray(masks[:, 10:].sum(axis=0))
    assert hits.mean() == pytest.approx(300 / 7, rel=0.02)
    assert 4.5 < hits.std() < 7.6


def test_a_live_weight_may_be_zero_and_stays_live():
    # No gradient: what grows stays at zero, and is the next to be dropped.
    params: Any = jnp.asarray(draw(0, density=0.3)["dense"])
    tx: Any = rigl(sgd(), every=1, stop=100)
    state = tx.init(params)
    live = int(state.masks.sum())
    for _ in range(4):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.masks.sum()) == live
    assert np.count_nonzero(params) < live


def test_momentum_of_a_weight_that_grows_starts_at_zero():
    params: Any = jnp.array([[4.0, 3.0, 0.1, 0.0]])
    tx: Any = rigl(optax.adam(1e-3), every=2, stop=100, drop_fraction=0.4)
    state = tx.init(params)
    for grads in ([[1.0, 1, 1, 9]], [[1.0, 1, 1, 9]], [[1.0, 1, 1, 9]]):
        updates, state = tx.update(jnp.array(grads), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(state.masks, [[True, True, False, True]])
    assert params[0, 3] == 0
    moments = state.inner_state[0]
    assert (moments.mu != 0).tolist() == (moments.nu != 0).tolist() == [[True, True, False, False]]


# ---- layer-wise densities

LENET = {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "fc1": (256, 120), "fc2": (84, 10)}


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.4, 0.9, 1.0])
def test_erdos_renyi_densities_solve_their_equation(density, kernel):
    params = {name: jnp.zeros(shape) for name, shape in LENET.items()} | {"bias": jnp.zeros(3)}
    densities = erdos_renyi_densities(params, density, kernel=kernel)
    assert densities.pop("bias") == 1
    sizes = {name: math.prod(shape) for name, shape in LENET.items()}
    counted = {name: shape if kernel else shape[-2:] for name, shape in LENET.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in counted.items()}
    total = density * sum(sizes.values())

    def excess(scale: float) -> float:
        return sum(min(1, scale * raw[name]) * sizes[name] for name in LENET) - total

    scale: Any = scipy.optimize.brentq(excess, 0, 1e4, xtol=1e-12) if density < 1 else 1e4
    for name in LENET:
        assert densities[name] == pytest.approx(min(1, scale * raw[name]), rel=1e-6)
    if density == 0.4 and kernel:
        assert densities["conv1"] == 1 > densities["conv2"]


def test_erdos_renyi_sparsify_keeps_exact_counts_and_rescales():
    key = jax.random.key(0)
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in LENET.items()}
    params["bias"] = jnp.ones(3)
    sparse = erdos_renyi_sparsify(key, params, 0.1)
    densities = erdos_renyi_densities(params, 0.1)
    for name in LENET:
        live = np.asarray(sparse[name] != 0)
        assert live.sum() == round(densities[name] * live.size)
        gain = math.sqrt(live.size / live.sum())
        np.testing.assert_allclose(sparse[name][live], params[name][live] * gain, rtol=1e-5)
    live = sum(np.count_nonzero(sparse[name]) for name in LENET)
    assert abs(live - 0.1 * sum(params[name].size for name in LENET)) <= 2
    np.testing.assert_array_equal(sparse["bias"], params["bias"])


# ---- all of them


@one_of_each_kind(OPTIMIZERS, ("RigL", "gradual", "lasso"))
def test_jit_scan_and_vmap_agree_with_single_steps_and_stay_finite(name):
    tx: Any = OPTIMIZERS[name]()
    starts = [draw(seed, density=0.4 if name in ("SET", "RigL") else 1.0) for seed in (0, 1)]
    whole = jax.jit(lambda params: run(tx, params, 12))
    alone = [whole(params) for params in starts]
    together = jax.jit(jax.vmap(whole))(jax.tree.map(lambda *x: np.stack(x), *starts))
    as_numbers = functools.partial(
        jax.tree.map,
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
    )
    together = as_numbers(together)
    for index, one in enumerate(as_numbers(alone)):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b[index], rtol=1e-5, atol=1e-6)

    with jax.disable_jit():
        params: Any = jax.tree.map(jnp.asarray, starts[0])
        state = tx.init(params)
        for t in range(4):
            grads = gradient(params, {name: noises(12)[name][t] for name in SHAPES})
            updates, state = tx.update(grads, state, params, value=jnp.float32(1))
            params = optax.apply_updates(params, updates)
    for leaf in SHAPES:
        np.testing.assert_allclose(params[leaf], alone[0][0][leaf][3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_and_state_can_be_donated_and_nnx_optimizers_take_them(name):
    tx: Any = OPTIMIZERS[name]()
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @functools.partial(nnx.jit, donate_argnums=(0, 1))
    def step(model, optimizer):
        loss = nnx.grad(lambda model: jnp.mean(model(jnp.ones((2, 6))) ** 2))
        optimizer.update(model, loss(model))

    for _ in range(5):
        step(model, optimizer)
    if name == "layers":
        assert np.count_nonzero(model.kernel[...]) == round(0.2 * 24)
    assert np.isfinite(model.kernel[...]).all()


def test_the_inner_optimizer_gets_extra_arguments_and_masks_choose_the_leaves():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    only_conv = bregjax.label_by_path({"conv": True}, default=False)
    tx: Any = magnitude_pruning(optax.chain(optax.sgd(RATE), plateau), 0.5, mask=only_conv)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(4):
        _, state = update(params, state, params, value=1.0)
    assert state.inner_state[1].scale < 1
    assert state.masks["dense"].all()
    assert state.masks["conv"].sum() == 45


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("strength", lambda: lasso(0.1, -1.0)),
        ("density", lambda: magnitude_pruning(sgd(), 0.0)),
        ("density", lambda: magnitude_pruning(sgd(), 1.5)),
        ("scope", lambda: magnitude_pruning(sgd(), 0.5, scope="network")),  # pyright: ignore
        ("final", lambda: cubic_density_schedule(0.0, 0, 10)),
        ("initial", lambda: cubic_density_schedule(0.1, 0, 10, initial=2.0)),
        ("start", lambda: cubic_density_schedule(0.1, -1, 10)),
        ("stop", lambda: cubic_density_schedule(0.1, 10, 10)),
        ("every", lambda: cubic_density_schedule(0.1, 0, 10, every=0)),
        ("every", lambda: rigl(sgd(), every=0, stop=10)),
        ("every", lambda: dynamic_sparsity(sgd(), every=1.5, stop=10)),  # pyright: ignore
        ("stop", lambda: rigl(sgd(), every=1, stop=0)),
        ("drop_fraction", lambda: rigl(sgd(), every=1, stop=9, drop_fraction=0.0)),
        ("drop_fraction", lambda: dynamic_sparsity(sgd(), every=1, stop=9, drop_fraction=1.1)),
        ("grow", lambda: dynamic_sparsity(sgd(), every=1, stop=9, grow="loss")),  # pyright: ignore
        ("key", lambda: dynamic_sparsity(sgd(), every=1, stop=9, grow="random")),
        ("density", lambda: erdos_renyi_densities({"k": jnp.ones((2, 2))}, 0.0)),
    ],
)
def test_a_wrong_argument_is_named(argument, build):
    with pytest.raises(ValueError, match=rf"{argument}=|^{argument} must"):
        build()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_missing_params_are_asked_for(name):
    tx: Any = OPTIMIZERS[name]()
    params = jax.tree.map(jnp.asarray, draw(0))
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


def test_where_no_leaf_is_a_kernel_pruning_leaves_all_as_it_is():
    tx = magnitude_pruning(sgd(), 0.5)
    params: Any = {"bias": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update({"bias": jnp.zeros(3)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["bias"], np.ones(3))


def test_random_growth_of_a_part_without_leaves_does_nothing():
    nothing = set_training(sgd(), key=jax.random.key(0), every=1, stop=9)
    tx: Any = optax.partition({"a": sgd(), "b": nothing}, "a")
    params: Any = {"kernel": jnp.ones((3, 2))}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
    np.testing.assert_array_equal(jnp.sign(updates["kernel"]), -np.ones((3, 2)))


def test_the_support_moves_under_strict_promotion():
    tx: Any = dynamic_sparsity(sgd(), every=1, stop=9, drop_fraction=0.5)
    params: Any = {"kernel": jnp.array([[2.0, 0.1, 0.0, 0.0]])}
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(params)
        for _ in range(2):
            gradient = {"kernel": jnp.array([[0.0, 0.1, 0.0, -3.0]])}
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["kernel"] != 0, [[True, False, False, False]])
    np.testing.assert_array_equal(state.masks["kernel"], [[True, False, False, True]])


def test_the_density_last_pruned_to_does_not_rise():
    schedule = optax.join_schedules([lambda _: 0.5, lambda _: 0.8], [2])
    _, states = run(magnitude_pruning(sgd(), schedule), draw(0), 4)
    np.testing.assert_allclose(states.density, 0.5)


def test_the_support_stays_from_stop_on_where_a_change_would_be_due():
    tx: Any = set_training(sgd(), key=jax.random.key(1), every=2, stop=6)
    _, states = run(tx, draw(0, density=0.3), 9)
    for name in WEIGHTS:
        masks = np.asarray(states.masks[name])
        assert (masks[4] != masks[3]).any()
        assert (masks[5:] == masks[4]).all()


def test_layers_of_one_shape_are_thinned_out_differently():
    params = {name: jnp.ones((12, 10)) for name in "ab"}
    sparse = erdos_renyi_sparsify(jax.random.key(0), params, 0.5)
    assert np.any(sparse["a"] != sparse["b"])
