"""A training that goes on with a smaller network is the one that it would have been."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax

HIDDEN = bregjax.label_by_path({"out/*": False, "*/kernel": True}, default=False)


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        yield


X = jax.random.normal(jax.random.key(0), (40, 6))
Y = jnp.sin(X @ jnp.linspace(-1, 1, 12).reshape(6, 2))


def apply(params, x):
    for name in ("in", "middle"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


@pytest.fixture
def params():
    """Of the units of each hidden layer the last half is dead and puts out nothing."""
    keys = jax.random.split(jax.random.key(1), 3)
    sizes = {"in": (6, 16), "middle": (16, 12), "out": (12, 2)}
    params = {
        name: {"kernel": jax.random.normal(key, shape) / 3, "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, sizes.items(), strict=True)
    }
    for name in ("in", "middle"):
        half = params[name]["kernel"].shape[1] // 2
        params[name]["kernel"] = params[name]["kernel"].at[:, half:].set(0.0)
    return params


def trained(tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    gradient = jax.grad(lambda params: jnp.mean((apply(params, X) - Y) ** 2))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_frozen_supports_train_on_as_they_would_have(params):
    tx = bregjax.freeze_support(optax.adam(0.02))
    params, state = trained(tx, params, tx.init(params), 5)
    expected, expected_state = trained(tx, params, state, 15)

    shrunk = bregjax.shrink_params(apply, params, X[:4])
    assert shrunk.network["middle"]["kernel"].shape == (8, 6)
    small, small_state = trained(tx, shrunk.network, bregjax.shrink_state(tx, state, shrunk), 15)
    assert float(jnp.abs(expected["in"]["kernel"] - params["in"]["kernel"]).max()) > 0.1
    np.testing.assert_allclose(apply(small, X), apply(expected, X), rtol=1e-5, atol=1e-6)
    large = bregjax.unshrink(small, shrunk)
    assert_equal(
        [large[name]["kernel"][:6, :6] for name in ("in", "middle")],
        [expected[name]["kernel"][:6, :6] for name in ("in", "middle")],
    )
    large_state = bregjax.unshrink_state(tx, small_state, shrunk, state)
    assert_equal(large_state.inner_state[0].mu["in"], expected_state.inner_state[0].mu["in"])
    assert int(large_state.inner_state[0].count) == 20


def test_the_coarse_steps_of_multilevel(params):
    """Full steps need the whole network, coarse ones the live one: there and back, twice."""
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.1, mask=HIDDEN)
    tx = bregjax.multilevel(inner, 4, mask=HIDDEN)
    state = tx.init(params)
    expected, expected_state = trained(tx, params, state, 10)
    for _ in range(2):
        params, state = trained(tx, params, state, 1)
        shrunk = bregjax.shrink_params(apply, params, X[:4])
        assert shrunk.network["in"]["kernel"].shape < params["in"]["kernel"].shape
        small, small_state = trained(tx, shrunk.network, bregjax.shrink_state(tx, state, shrunk), 4)
        params = bregjax.unshrink(small, shrunk, before=params)
        state = bregjax.unshrink_state(tx, small_state, shrunk, state)
    assert_equal(params, expected)
    assert_equal(state, expected_state)


def test_after_a_landing(params):
    inner = bregjax.linbreg(0.1, bregjax.per_neuron(), 0.1, mask=HIDDEN)
    tx = bregjax.landing(
        inner, optax.adam(0.02), 3, count=10, groups=bregjax.per_neuron(), mask=HIDDEN
    )
    params, state = trained(tx, params, tx.init(params), 4)
    assert int(state.kept) == 10
    folded = bregjax.shrink_params(apply, params, X[:4])
    assert sum(folded.network[name]["kernel"].shape[1] for name in ("in", "middle")) == 10

    shrunk = bregjax.shrink_params(apply, params, X[:4], fold=False)
    assert shrunk.network["in"]["kernel"].shape[1] < 16
    assert not any(array.folded for array in shrunk.report.arrays)
    small, _ = trained(tx, shrunk.network, bregjax.shrink_state(tx, state, shrunk), 10)
    expected, _ = trained(tx, params, state, 10)
    np.testing.assert_allclose(apply(small, X), apply(expected, X), rtol=1e-5, atol=1e-6)


def test_a_rising_strength_goes_on_as_it_would_have(params):
    """The weights were made at the last step's λ, and the next step's takes its rise off them."""
    strength = optax.linear_schedule(1e-3, 0.1, 12)
    tx = bregjax.adabreg(0.02, bregjax.per_neuron(), strength, mask=HIDDEN)
    params, state = trained(tx, params, tx.init(params), 6)
    shrunk = bregjax.shrink_params(apply, params, X[:4])
    small = bregjax.shrink_state(tx, state, shrunk)
    assert shrunk.network["middle"]["kernel"].size < params["middle"]["kernel"].size
    expected, _ = trained(tx, params, state, 1)
    found, _ = trained(tx, shrunk.network, small, 1)
    assert_equal(bregjax.unshrink(found, shrunk, params)["in"], expected["in"])


@pytest.mark.parametrize("keep_weights", [False, True])
@pytest.mark.parametrize("regularizer", [bregjax.l1(), bregjax.per_neuron()], ids=str)
def test_weights_without_effect_go_and_none_wake_in_their_place(params, regularizer, keep_weights):
    """Or λ would fall at once, and all weights would jump."""
    inner = bregjax.adabreg(0.02, regularizer, 1e-3, keep_weights=keep_weights, mask=HIDDEN)
    tx = bregjax.steer(inner, optax.linear_schedule(0.5, 0.125, 30), exact=True)
    params, state = trained(tx, params, tx.init(params), 12)
    shrunk = bregjax.shrink_params(apply, params, X[:4], fold=False)
    small = bregjax.shrink_state(tx, state, shrunk)

    def alive(network):
        """The entries that live, or belong to a neuron that does."""
        kernels = [network[name]["kernel"] for name in ("in", "middle")]
        if regularizer == bregjax.l1():
            return sum(int(jnp.count_nonzero(x)) for x in kernels)
        return sum(len(x) * int(x.any(0).sum()) for x in kernels)

    before, after = alive(params), alive(shrunk.network)
    assert after < 0.8 * before
    assert int(state.total) == 288
    assert int(small.total) == round(288 * after / before)
    assert int(bregjax.unshrink_state(tx, small, shrunk, state).total) == 288
    _, next_state = trained(tx, shrunk.network, small, 1)
    # It would be a twentieth of it with 288; with groups it falls no further than it has to.
    least = 0.8 if regularizer == bregjax.l1() else 1.0
    assert next_state.strength_scale >= least * small.strength_scale


def test_what_dead_units_put_out_is_folded_and_the_outputs_stay(params):
    params["in"]["bias"] = params["in"]["bias"].at[8:].set(0.5)
    tx = bregjax.adabreg(0.02, bregjax.per_neuron(), 1e-3, mask=HIDDEN)
    state = tx.init(params)
    shrunk = bregjax.shrink_params(apply, params, X[:4])
    assert shrunk.report["middle/bias"].folded
    assert not shrunk.report["in/bias"].folded
    bregjax.shrink_state(tx, state, shrunk)
    large = bregjax.unshrink(shrunk.network, shrunk)
    np.testing.assert_allclose(apply(large, X), apply(params, X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="before must be None, as middle/bias took in"):
        bregjax.unshrink(shrunk.network, shrunk, before=params)
    everything = bregjax.adabreg(0.02, bregjax.per_neuron(), 1e-3, mask=lambda tree: True)
    with pytest.raises(ValueError, match="middle/bias has taken in what dead units put out"):
        bregjax.shrink_state(everything, everything.init(params), shrunk)


def test_what_would_go_wrong_in_silence(params):
    shrunk = bregjax.shrink_params(apply, params, X[:4])
    inner = bregjax.linbreg(0.1, bregjax.l1(), 0.1)
    wrong = {
        "a landing that has not landed": bregjax.landing(inner, optax.sgd(0.1), 5, count=9),
        "build it with exact=True": bregjax.steer(inner, 0.1),
        "bases of nuclear": bregjax.linbreg(0.1, bregjax.nuclear(method="warm"), 0.1),
    }
    for message, tx in wrong.items():
        with pytest.raises(ValueError, match=message):
            bregjax.shrink_state(tx, tx.init(params), shrunk)


@pytest.mark.slow
def test_landing_and_steering_in_another_currency(params):
    neurons = bregjax.per_neuron()
    keys = jax.random.split(jax.random.key(5), 2)
    for key, name in zip(keys, ("in", "middle"), strict=True):
        shape = params[name]["kernel"].shape
        params[name]["kernel"] = jax.random.normal(key, shape)
    sizes = {"in": (6, 16), "middle": (16, 12), "out": (12, 2)}
    adds = sum(n * m for n, m in sizes.values())
    tx = bregjax.linbreg(0.01, neurons, 0.1, mask=HIDDEN)
    state = tx.init(params)
    for of in ("parameters", "multiply_adds", "bytes"):
        share = bregjax.shrunk_share_params(apply, params, X[:1], of=of)

        def land(params, state, share=share, **goal):
            return bregjax.land(tx, state, params, groups=neurons, **goal)

        landed = jax.jit(
            lambda params, state, land=land, share=share: land(
                params, state, density=0.3, measure=share
            )
        )(params, state)
        a, b = (np.count_nonzero(landed[k]["kernel"].any(axis=0)) for k in ("in", "middle"))
        left = {"multiply_adds": (6 * a + a * b + b * 2) / adds}
        left["parameters"] = (6 * a + a * b + b * 2 + a + b + 2) / (adds + 30)
        left["bytes"] = left["parameters"]
        assert float(share(landed)) == pytest.approx(left[of], rel=1e-5)
        assert left[of] <= 0.3 < float(share(land(params, state, count=a + b + 1)))

    share = bregjax.shrunk_share_params(apply, params, X[:1], of="multiply_adds")
    steered = bregjax.steer(bregjax.linbreg(0.01, neurons, 0.01, mask=HIDDEN), 0.3, measure=share)
    after, _ = trained(steered, params, steered.init(params), 300)
    assert float(share(after)) == pytest.approx(0.3, abs=0.06)
    with pytest.raises(ValueError, match="measure needs density, got density=None, count=3"):
        bregjax.land(tx, state, params, count=3, measure=share)
    with pytest.raises(ValueError, match=r"of must be one of 'parameters', .* got of='flops'"):
        bregjax.shrunk_share_params(apply, params, X[:1], of="flops")  # type: ignore[arg-type]


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


def test_a_flax_loop_goes_on():
    """In training mode, with batch norm and momentum; half of the filters are dead."""
    model = Network(nnx.Rngs(0))
    model.conv.kernel[...] = model.conv.kernel[...].at[..., 4:].set(0.0)
    images = jax.random.normal(jax.random.key(1), (16, 6, 6, 1))
    tx = bregjax.freeze_support(optax.sgd(0.1, momentum=0.9))

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(images) - 1.0) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer)
    shrunk = bregjax.shrink(model, images)
    smaller, smaller_optimizer = shrunk.network, bregjax.shrink_optimizer(optimizer, shrunk)
    smaller.train()
    for _ in range(5):
        step(model, optimizer)
        step(smaller, smaller_optimizer)
    model.eval()
    smaller.eval()
    assert smaller.conv.kernel.shape == (3, 3, 1, 4)
    assert int(smaller_optimizer.step[...]) == 8
    np.testing.assert_allclose(smaller(images), model(images), rtol=1e-5, atol=1e-6)


def test_layers_on_different_devices_stay_there():
    first, second = jax.devices()[:2]
    one_place = {"in": jnp.eye(4).at[:, 2:].set(0.0), "out": jnp.ones((4, 2))}
    shrunk = bregjax.shrink_params(
        lambda params, x: jax.nn.relu(x @ params["in"]) @ params["out"], one_place, jnp.ones((1, 4))
    )
    params = jax.device_put(one_place, {"in": first, "out": second})
    tx = optax.adam(0.1)
    before = tx.init(params)
    state: Any = bregjax.shrink_state(tx, before, shrunk)
    back: Any = bregjax.unshrink_state(tx, state, shrunk, before)
    for tree, shapes in ((state, [(4, 2), (2, 2)]), (back, [(4, 4), (4, 2)])):
        mu = tree[0].mu
        assert [mu[name].devices() for name in ("in", "out")] == [{first}, {second}]
        assert [mu[name].shape for name in ("in", "out")] == shapes


@jax.numpy_dtype_promotion("standard")  # for Optax's Adam
def test_duals_stand_for_the_weights_at_the_steered_strength(params):
    """Those of 'in' lose no weights, only units: they are what they were."""
    tx = bregjax.steer(
        bregjax.adabreg(0.02, bregjax.per_neuron(), 1e-3, mask=HIDDEN),
        optax.linear_schedule(0.5, 0.125, 10),
        exact=True,
    )
    params, state = trained(tx, params, tx.init(params), 6)
    shrunk = bregjax.shrink_params(apply, params, X[:4])
    small = bregjax.shrink_state(tx, state, shrunk)
    assert float(state.strength_scale) > 10
    before, after = (optax.tree.get(x, "dual")["in"]["kernel"] for x in (state, small))
    kept = shrunk.kept["in/kernel"][1]
    assert 0 < len(kept) < 16
    np.testing.assert_allclose(after, before[:, kept], rtol=1e-5, atol=1e-6)
