"""The start that cannot be dead, the optimizer that is told a density, and what went wrong."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

import bregjax

KEY = jax.random.key(0)


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        return self.out(x.reshape(len(x), -1))


def digits() -> tuple[jax.Array, jax.Array]:
    bunch: Any = load_digits()
    return jnp.asarray(bunch.images[..., None] / 16, jnp.float32), jnp.asarray(bunch.target)


def trained(optimizer, start, steps: int, seed: int):
    """A network after so many steps on batches of real digits, and its optimizer."""
    images, labels = digits()
    model = ConvNet(nnx.Rngs(seed))
    params = start(jax.random.key(seed), nnx.state(model, nnx.Param))
    nnx.update(model, params)
    training = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, training, chosen):
        def loss(model):
            logits = model(images[chosen])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

        training.update(model, nnx.grad(loss)(model))

    for batch in np.random.default_rng(seed).integers(0, 1400, (steps, 64)):
        step(model, training, batch)
    accuracy = jnp.mean(model(images[1400:]).argmax(-1) == labels[1400:])
    return model, training, float(accuracy)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_biases_are_uniform_up_to_one_over_the_root_of_the_fan_in(dtype):
    params = {
        "dense": {"kernel": jnp.ones((25, 4000), dtype), "bias": jnp.zeros(4000, dtype)},
        "conv": {"weight": jnp.ones((3000, 4, 2, 2), dtype), "bias": jnp.zeros(3000, dtype)},
        "haiku": {"w": jnp.ones((4, 2000), dtype), "b": jnp.zeros(2000, dtype)},
        "norm": {"weight": jnp.ones(100, dtype), "bias": jnp.zeros(100, dtype)},
    }
    drawn = bregjax.positive_biases(KEY, params, scale=3.0)
    for layer, name, bound in (
        ("dense", "bias", 0.6),
        ("conv", "bias", 0.75),
        ("haiku", "b", 1.5),
        ("norm", "bias", 0.3),
    ):
        bias = drawn[layer].pop(name)
        assert bias.dtype == dtype
        bias = np.asarray(bias, np.float64)
        assert bias.min() >= 0
        assert bias.max() <= bound * (1 + float(jnp.finfo(dtype).eps))
        # The mean of n uniform numbers deviates by bound/√(12 n).
        assert abs(bias.mean() - bound / 2) < 4 * bound / np.sqrt(12 * bias.size)
        np.testing.assert_array_equal(
            jax.tree.leaves(drawn[layer])[0], jax.tree.leaves(params[layer])[-1]
        )


def test_positive_biases_stay_and_others_are_drawn():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.array([2.0, 0.0, -1.0])}
    bias = bregjax.positive_biases(KEY, params)["bias"]
    assert bias[0] == 2
    assert jnp.all((bias[1:] > 0) & (bias[1:] <= 0.5))


@pytest.mark.parametrize("groups", [None, bregjax.per_neuron(), bregjax.per_kernel()])
def test_a_sparse_start_has_the_weights_of_sparsify_and_no_unit_asleep(groups):
    params = nnx.state(ConvNet(nnx.Rngs(0)), nnx.Param)
    start = jax.jit(lambda key: bregjax.sparse_start(key, params, 0.25, groups=groups))
    sparse = start(KEY)
    expected = bregjax.sparsify(jax.random.split(KEY)[0], params, 0.25, groups=groups)
    for name in ("conv1", "conv2", "out"):
        np.testing.assert_array_equal(
            sparse[name]["kernel"].get_value() != 0, expected[name]["kernel"].get_value() != 0
        )
    assert [layer.asleep for layer in bregjax.sparsity_report(sparse, ranks=False).layers] == [
        0,
        0,
        0,
    ]


def test_the_start_of_linen_parameters():
    params = nn.Dense(4).init(KEY, jnp.ones((1, 8)))["params"]
    sparse = bregjax.sparse_start(KEY, params, 0.25)
    assert jnp.sum(sparse["kernel"] != 0) == 8
    assert jnp.all(sparse["bias"] > 0)


def test_the_report_counts_the_units_that_a_relu_lets_never_wake():
    kernel = jnp.zeros((3, 4)).at[0, 0].set(1.0)
    bias = jnp.array([0.0, 0.0, -1.0, 0.5])
    report = bregjax.sparsity_report({"a": {"kernel": kernel, "bias": bias}, "b": {"w": kernel}})
    assert [layer.asleep for layer in report.layers] == [2, None]


@pytest.mark.parametrize(
    ("density", "begin"),
    [(0.03, {}), (0.1, {"initial_density": 0.5}), (0.7, {"initial_density": 0.7}), (1.0, {})],
)
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_the_density_is_exact_and_on_its_ramp_after_every_step(density, begin):
    tx = bregjax.adabreg_to_density(density, steps=20, **begin)
    params: Any = {"kernel": jax.random.normal(KEY, (20, 10)), "bias": jnp.zeros(10)}
    state = tx.init(params)
    first = begin.get("initial_density", 1.0)
    for step in range(25):
        gradient = jax.tree.map(lambda x, s=step: jnp.sin(7.0 * x + s) + 0.1, params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        expected = density + (first - density) * (1 - min(step / 16, 1)) ** 3
        assert int((params["kernel"] != 0).sum()) == round(200 * expected), step


@pytest.mark.parametrize(
    "regularizer", [bregjax.l1(), bregjax.batched(bregjax.l1()), bregjax.per_neuron()], ids=str
)
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_what_dies_has_shrunk_and_single_weights_feel_a_part_of_that(regularizer):
    """The gradients are zero, so that all that changes is λ."""
    grouped = regularizer == bregjax.per_neuron()
    tx = bregjax.adabreg_to_density(0.1, 400, regularizer=regularizer)
    kernel = jax.random.normal(KEY, (30, 40) if grouped else (12, 10))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.zeros_like(kernel), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, history = jax.lax.scan(step, (kernel, tx.init(kernel)), length=400)
    history = np.stack([kernel, *np.asarray(history)])
    dies = (history[1:] == 0) & (history[:-1] != 0)
    assert dies.sum() == round(0.9 * kernel.size)
    if not grouped:
        # In the first half all live weights shrink by as much as each other, then none does.
        shrunk = np.where(history != 0, np.abs(kernel) - np.abs(history), np.nan)
        least, most = np.nanmin(shrunk[1:], axis=(1, 2)), np.nanmax(shrunk[1:], axis=(1, 2))
        np.testing.assert_allclose(least, most, rtol=0, atol=5e-5)
        assert np.all(np.diff(most[:200]) > -5e-5)
        np.testing.assert_allclose(most[201:], most[200], rtol=0, atol=5e-5)
        assert most[200] > 0.1
        return
    left = np.linalg.norm(history, axis=1) / np.linalg.norm(kernel, axis=0)
    dies = dies[:, 0]
    # At the first death λ rises from about zero.
    first = np.flatnonzero(dies.any(axis=1))[0]
    assert left[first + 1 : -1][dies[first + 1 :]].max() < 0.1


@pytest.mark.parametrize(
    ("steps", "groups", "rate"),
    [
        (50, None, 0.02),
        (400, None, 0.015),
        (1000, None, 8.5e-3),
        (8000, None, 4.25e-3),
        (50, bregjax.per_neuron(), 0.02),
        (2500, bregjax.per_neuron(), 0.01),
    ],
)
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_the_default_rate_rises_to_what_suits_the_number_of_steps(steps, groups, rate):
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    tx = bregjax.adabreg_to_density(1.0, steps, regularizer=groups)
    sizes, state, update = [], tx.init(params), jax.jit(tx.update)
    warmup = round((0.1 if groups else 0.3) * steps)
    for _ in range(warmup + 10):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append(float(jnp.max(jnp.abs(updates["bias"]))))
        params = optax.apply_updates(params, updates)
    # With a constant gradient each of Adam's steps has the size of its rate.
    assert max(sizes) == pytest.approx(rate, rel=1e-3)
    assert np.argmax(sizes) == pytest.approx(warmup, abs=2)


def test_arguments_of_adabreg_to_density():
    with pytest.raises(ValueError, match=r"density must be .*got density=5"):
        bregjax.adabreg_to_density(5, 100)
    with pytest.raises(ValueError, match=r"steps must be .*got steps=0"):
        bregjax.adabreg_to_density(0.05, 0)
    with pytest.raises(TypeError, match="regularizer must be"):
        bregjax.adabreg_to_density(0.05, 9, None, bregjax.l1)  # pyright: ignore[reportArgumentType]
    for regularizer in (bregjax.nuclear(), bregjax.soft_bernoulli(0.1), bregjax.none()):
        with pytest.raises(ValueError, match="regularizer must put entries or groups to sleep"):
            bregjax.adabreg_to_density(0.05, 9, regularizer=regularizer)
    with pytest.raises(ValueError, match="mask marks no leaf of params"):
        bregjax.adabreg_to_density(0.05, 9).init({"bias": jnp.ones(3)})


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@jax.numpy_dtype_promotion("standard")
def test_a_small_conv_net_learns_with_the_advice_and_says_why_it_does_not_without(seed):
    steps = 200
    tx = bregjax.adabreg_to_density(0.1, steps)
    model, training, accuracy = trained(tx, lambda key, params: params, steps, seed)
    assert accuracy > 0.85
    images, _ = digits()
    params = nnx.state(model, nnx.Param)
    assert bregjax.density(params) == pytest.approx(0.1, abs=1e-3)
    assert bregjax.diagnose(tx, training.opt_state, params, model(images)) == []

    tx = bregjax.adabreg(5e-3, bregjax.l1(), 1.0)
    start = functools.partial(bregjax.sparsify, density=0.01)
    model, training, accuracy = trained(tx, start, steps, seed)
    assert accuracy < 0.5
    params = nnx.state(model, nnx.Param)
    said = " ".join(bregjax.diagnose(tx, training.opt_state, params, model(images)))
    assert "sleep for ever" in said


def after_one_step(tx, gradient=None):
    params = {"a": {"kernel": jnp.zeros((4, 3)).at[0, 0].set(1.0)}, "b": jnp.ones((2, 2))}
    state = tx.init(params)
    gradient = jax.tree.map(jnp.ones_like, params) if gradient is None else gradient
    updates, state = jax.jit(tx.update)(gradient, state, params)
    return state, optax.apply_updates(params, updates)


def says(tx, *words: str, outputs=None, gradient=None) -> None:
    state, params = after_one_step(tx, gradient)
    said = bregjax.diagnose(tx, state, params, outputs)
    assert len(said) == len(words), said
    for sentence, word in zip(said, words, strict=True):
        assert word in sentence


def test_what_is_well_gives_no_sentence():
    says(bregjax.linbreg(0.1, bregjax.l1(), 0.15))
    says(bregjax.linbreg(0.1, bregjax.l1(), 0.15), outputs=jnp.eye(3))


def test_nothing_near_waking():
    says(bregjax.linbreg(0.1, bregjax.l1(), 2.0), "has 5 % of the evidence")
    says(bregjax.linbreg(0.1, bregjax.per_neuron(), 2.0), "has 5 % of the evidence")


@jax.numpy_dtype_promotion("standard")  # for Optax's Adam
def test_everything_is_awake():
    says(bregjax.linbreg(0.1, bregjax.l1(), 1e-3), "100 % of the weights are awake")
    tx, params = bregjax.adabreg_to_density(1.0, 10), jnp.ones((3, 4))  # as it was asked for
    assert bregjax.diagnose(tx, tx.init(params), params) == []


def test_what_a_compaction_took_out_is_no_longer_awake():
    params = {"in": jnp.eye(4).at[:, 1:].set(0.0), "out": jnp.ones((4, 2))}
    tx = bregjax.adabreg_to_density(0.5, 1, regularizer=bregjax.per_neuron())
    state = tx.init(params)
    shrunk = bregjax.shrink_params(lambda p, x: x @ p["in"] @ p["out"], params, jnp.ones((1, 4)))
    state = bregjax.shrink_state(tx, state, shrunk)
    assert "awake" not in " ".join(bregjax.diagnose(tx, state, shrunk.network))


@pytest.mark.parametrize(
    ("around", "words"),
    [
        (lambda tx: optax.apply_if_finite(tx, 5), ["near waking"]),
        (lambda tx: bregjax.landing(tx, optax.sgd(0.1), 2, count=3), ["near waking"]),
        (lambda tx: bregjax.landing(tx, optax.sgd(0.1), 1, count=3), []),
    ],
)
def test_groups_behind_a_branch(around, words):
    says(around(bregjax.linbreg(0.1, bregjax.per_neuron(), 2.0)), *words)


def test_a_dead_layer():
    tx = bregjax.linbreg(1.0, bregjax.l1(), 3.0)
    gradient = {"a": {"kernel": 0.5 * jnp.ones((4, 3))}, "b": 2 * jnp.ones((2, 2))}
    says(tx, "No weight of b lives", gradient=gradient)


def test_units_that_no_gradient_has_reached():
    gradient = {"a": {"kernel": jnp.ones((4, 3)).at[:, 1].set(0)}, "b": jnp.ones((2, 2))}
    says(bregjax.linbreg(0.1, bregjax.l1(), 0.15), "1 of 3 in a/kernel", gradient=gradient)


def test_the_units_of_equinox_are_rows():
    tx = bregjax.linbreg(0.1, bregjax.l1(), 0.15)
    params = {"weight": jnp.zeros((3, 4)).at[0, 0].set(1.0), "bias": jnp.ones(3)}
    for silent, words in ((np.s_[:, 1], ""), (np.s_[1], "1 of 3 in weight")):
        state = tx.init(params)
        gradient = {"weight": jnp.ones((3, 4)).at[silent].set(0), "bias": jnp.zeros(3)}
        updates, state = tx.update(gradient, state, params)
        said = " ".join(bregjax.diagnose(tx, state, optax.apply_updates(params, updates)))
        assert words in said
        assert bool(words) == ("sleep for ever" in said)


def test_numbers_that_are_not_finite():
    gradient = {"a": {"kernel": jnp.ones((4, 3)).at[0, 0].set(jnp.nan)}, "b": jnp.ones((2, 2))}
    says(bregjax.linbreg(0.1, bregjax.l1(), 0.15), "a/kernel is not finite", gradient=gradient)


def test_steering_off_its_target():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.15, keep_weights=True)
    says(bregjax.steer(inner, 0.05), "aimed at 5 % and had 31 %")
    gradient = {"a": {"kernel": jnp.zeros((4, 3))}, "b": jnp.ones((2, 2))}
    says(
        bregjax.steer(inner, 0.9, exact=True),
        "2 of 3 in a/kernel",
        "aimed at 90 % and had 31 %",
        gradient=gradient,
    )


def test_dead_classes_and_dead_networks():
    tx = bregjax.linbreg(0.1, bregjax.l1(), 0.15)
    says(tx, "The network is dead", outputs=jnp.ones((5, 3)))
    logits = jnp.ones((5, 2, 3)).at[0, 0, 1].set(2.0)
    says(tx, "2 of 3 outputs are the same for every example: 0, 2.", outputs=logits)
    state, params = after_one_step(tx)
    for wrong in (jnp.ones(()), jnp.ones((0, 3)), jnp.ones(5, jnp.complex64)):
        with pytest.raises(ValueError, match=r"outputs must have .* shape \("):
            bregjax.diagnose(tx, state, params, wrong)


@pytest.mark.parametrize(
    ("steps", "ramp", "said"),
    [
        (400, 5, "the ramp ended too early"),
        (400, 150, "the ramp ended too early"),
        (400, 320, ""),
        (400, 600, ""),
        (100, 80, "Train for more steps"),  # the ramp of adabreg_to_density
    ],
)
def test_a_ramp_that_ends_too_early(steps, ramp, said):
    target = optax.polynomial_schedule(1.0, 0.5, power=3, transition_steps=ramp)
    tx = bregjax.steer(
        bregjax.linbreg(0.1, bregjax.l1(), 1e-3, keep_weights=True), target, exact=True
    )
    params: Any = jax.random.normal(KEY, (6, 5))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(jnp.sin(step + params), state, params)
        params = optax.apply_updates(params, updates)
    words = " ".join(bregjax.diagnose(tx, state, params))
    assert said in words
    assert f"since step {ramp} of 400" in words or steps < 400 or not said
    assert said or "steps" not in words


def test_diagnosis_of_low_rank_and_of_what_has_no_dual():
    says(bregjax.linbreg(0.1, bregjax.nuclear(), 1e-3), "100 % of the weights are awake")
    tx = optax.sgd(0.1)
    state, params = after_one_step(tx)
    with pytest.raises(ValueError, match="state has no dual of params"):
        bregjax.diagnose(tx, state, params)


@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_the_default_rate_falls_to_zero_with_the_last_step():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    tx = bregjax.adabreg_to_density(1.0, 50)
    sizes, state, update = [], tx.init(params), jax.jit(tx.update)
    for _ in range(53):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append(float(jnp.max(jnp.abs(updates["bias"]))))
        params = optax.apply_updates(params, updates)
    falling = 0.01 * (1 + np.cos(np.pi * np.arange(36) / 35))
    np.testing.assert_allclose(sizes[15:], [*falling, 0, 0], rtol=0, atol=1e-6)


def test_a_ramp_that_still_falls_has_not_ended():
    target = optax.polynomial_schedule(1.0, 0.5, power=3, transition_steps=600)
    tx = bregjax.steer(
        bregjax.linbreg(0.1, bregjax.l1(), 1e-3, keep_weights=True), target, exact=True
    )
    params: Any = jax.random.normal(KEY, (6, 5))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(20):
        updates, state = update(jnp.sin(step + params), state, params)
        params = optax.apply_updates(params, updates)
    assert "the ramp ended too early" not in " ".join(bregjax.diagnose(tx, state, params))


@pytest.mark.parametrize("keep_weights", [None, False, True])
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_groups_keep_their_weights_if_that_is_asked_for(keep_weights):
    regularizer = bregjax.per_neuron()
    tx = bregjax.adabreg_to_density(
        0.5, 10, regularizer=regularizer, keep_weights=keep_weights, mask=lambda params: True
    )
    before = jnp.ones((3, 4)) * jnp.arange(1.0, 5.0)
    params: Any = before
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(10):
        updates, state = update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(bregjax.live_groups(params, regularizer), [0, 0, 1, 1])
    assert np.allclose(params[:, 2:], before[:, 2:], rtol=1e-5) == bool(keep_weights)


@pytest.mark.parametrize(
    ("regularizer", "decay"),
    [(bregjax.l1(), np.exp(-1 / 2.5)), (bregjax.per_neuron(), np.exp(-1 / 2.5))],
)
@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_evidence_is_forgotten_by_default_in_a_twentieth_of_the_steps(regularizer, decay):
    duals = []
    for given in (None, decay):
        tx = bregjax.adabreg_to_density(0.5, 50, 0.1, regularizer, evidence_decay=given)
        params: Any = jax.random.normal(KEY, (6, 8))
        state, update = tx.init(params), jax.jit(tx.update)
        for i in range(5):
            gradient = jax.random.normal(jax.random.key(i), (6, 8))
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        duals.append(optax.tree.get(state, "dual"))
    np.testing.assert_allclose(duals[0], duals[1], rtol=1e-6)
    assert 1 <= np.abs(duals[0]).max() < 50


@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_in_the_second_half_the_strength_no_longer_changes_live_groups():
    """Two sleeping neurons collect evidence until one takes the place of the weaker live one."""
    regularizer = bregjax.per_neuron()
    tx = bregjax.adabreg_to_density(
        0.5, 100, 1.0, regularizer=regularizer, mask=lambda params: True
    )
    params: Any = jnp.ones((3, 4)) * jnp.array([1.0, 2.0, 5.0, 50.0])
    state, update = tx.init(params), jax.jit(tx.update)
    nothing = jnp.zeros_like(params)
    for _ in range(51):
        updates, state = update(nothing, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(bregjax.live_groups(params, regularizer), [0, 0, 1, 1])
    before, strength = params, optax.tree.get(state, "strength_scale")
    assert np.all(before[:, 3] < 50 - 1)  # before, λ did
    for _ in range(49):
        updates, state = update(nothing.at[:, :2].set(-1.0), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(jnp.count_nonzero(params, 0), [0, 3, 0, 3])
    assert optax.tree.get(state, "strength_scale") > 1.2 * strength
    np.testing.assert_allclose(params[:, 3], before[:, 3], rtol=1e-5)


def test_layers_of_one_shape_draw_different_biases():
    params = {name: {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)} for name in ("a", "b")}
    drawn = bregjax.positive_biases(KEY, params)
    assert not np.any(drawn["a"]["bias"] == drawn["b"]["bias"])
