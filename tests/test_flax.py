"""Flax NNX, Linen and plain trees take the same steps with the same optimizer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from kinds import one_of_each_kind

import bregjax

# Flax and Optax's Adam mix integers and floats, which strict promotion forbids.
pytestmark = pytest.mark.usefixtures("x64", "standard_promotion")
STEPS = 5
F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs, **F64)
        self.norm = nnx.BatchNorm(4, rngs=rngs, **F64)
        self.linear = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.linear(x.mean(axis=(1, 2)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3), name="conv", **F64)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm", **F64)(x))
        return nn.Dense(3, name="linear", **F64)(x.mean(axis=(1, 2)))


def batch() -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 2), jnp.float64)
    return x, jnp.arange(16) % 3


def loss_of(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def initial_model() -> NNXNet:
    """Sparse in its kernels, the same each time."""
    model = NNXNet(nnx.Rngs(0))
    params, statistics = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    nnx.update(model, bregjax.sparsify(jax.random.key(1), params, 0.5))
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float64), statistics))
    return model


def initial_params() -> dict:
    return nnx.to_pure_dict(nnx.state(initial_model(), nnx.Param))


def linen_loss(params: Any) -> jax.Array:
    x, y = batch()
    logits, _ = LinenNet().apply({"params": params, **STATISTICS}, x, mutable=["batch_stats"])
    return loss_of(logits, y)


linen_gradient = jax.jit(jax.grad(linen_loss))
STATISTICS = {"batch_stats": {"norm": {"mean": np.zeros(4), "var": np.ones(4)}}}
by_path = bregjax.label_by_path({"*/kernel": True}, default=False)
by_kind = bregjax.label_by_kind
OPTIMIZERS = {
    "linbreg": bregjax.linbreg(0.5, bregjax.l1(), 0.05, momentum=0.5),
    "mask_by_path": bregjax.linbreg(0.5, bregjax.per_neuron(), 0.02, mask=by_path),
    "mask_one_layer": bregjax.prox_sgd(
        0.5,
        bregjax.l1(),
        0.1,
        mask=bregjax.label_by_path({"conv/kernel": True}, default=False),
    ),
    "adabreg": bregjax.adabreg(0.05, bregjax.l1(), 0.1),
    "soft_bernoulli": bregjax.linbreg(0.5, bregjax.soft_bernoulli(0.1), 0.05),
    "nuclear": bregjax.linbreg(0.5, bregjax.nuclear(), 0.05),
    "nuclear, warm": bregjax.adabreg(0.05, bregjax.nuclear(method="warm"), 0.05),
    "partition": optax.partition(
        {
            "conv": bregjax.adabreg(0.05, bregjax.per_kernel(), 0.1),
            "dense": bregjax.linbreg(0.5, bregjax.l1(), 0.05),
            "other": optax.sgd(0.1, momentum=0.9),
        },
        by_kind,
    ),
    "partition_by_path": optax.partition(
        {
            "sparse": bregjax.linbreg(0.5, bregjax.l1(), 0.05),
            "frozen": optax.set_to_zero(),
            # A bias in front of batch norm has no gradient but rounding, which a small ε blows up.
            "plain": optax.adam(0.05, eps=1e-6),
        },
        bregjax.label_by_path({"linear/kernel": "sparse", "norm/*": "frozen"}, default="plain"),
    ),
}


def train_nnx(tx: optax.GradientTransformation) -> dict:
    model = initial_model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        grads = nnx.grad(lambda model: loss_of(model(x), y))(model)
        optimizer.update(model, grads)

    for _ in range(STEPS):
        step(model, optimizer, *batch())
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def train_linen(tx: optax.GradientTransformation) -> Any:
    state = TrainState.create(apply_fn=LinenNet().apply, params=initial_params(), tx=tx)
    for _ in range(STEPS):
        state = state.apply_gradients(grads=linen_gradient(state.params))
    return state.params


def train_plain(tx: optax.GradientTransformation) -> Any:
    params = initial_params()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(STEPS):
        updates, state = update(linen_gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


@one_of_each_kind(OPTIMIZERS, ("linbreg", "mask_by_path", "soft_bernoulli", "partition_by_path"))
def test_nnx_linen_and_plain_trees_agree(name):
    tx = OPTIMIZERS[name]
    start, plain = initial_params(), train_plain(tx)
    for trained in (train_nnx(tx), train_linen(tx)):
        assert jax.tree.structure(trained) == jax.tree.structure(plain)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(plain), strict=True
        ):
            where = jax.tree_util.keystr(path)
            # The norm behind takes this bias out: its gradient is rounding, which Adam scales up.
            atol = 1e-9 if where == "['conv']['bias']" else 1e-10
            np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=where)
            np.testing.assert_array_equal(x == 0, y == 0, err_msg=where)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), plain, start)
    assert moved["linear"]["bias"]
    assert moved["norm"]["scale"] == (name != "partition_by_path")
    crossed = jax.tree.map(lambda x, y: bool(jnp.any((x == 0) != (y == 0))), plain, start)
    assert crossed["linear"]["kernel"] or crossed["conv"]["kernel"]


def test_nnx_biases_and_norms_have_no_dual():
    model = initial_model()
    optimizer = nnx.Optimizer(model, OPTIMIZERS["linbreg"], wrt=nnx.Param)
    duals = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(optimizer))
        if "dual" in jax.tree_util.keystr(path)
    }
    assert len(duals) == 2
    assert all("kernel" in name for name in duals)


def test_nnx_masks_and_labels_see_variables_and_arrays_alike():
    """`init` of nnx.Optimizer passes variables, `update` arrays."""
    state = nnx.state(initial_model(), nnx.Param)
    arrays = nnx.to_pure_dict(state)
    for function in (bregjax.weight_mask, by_kind, by_path):
        assert jax.tree.leaves(function(state)) == jax.tree.leaves(function(arrays))
    assert sorted(jax.tree.leaves(by_kind(state))) == ["conv", "dense"] + 4 * ["other"]
    assert jax.tree.leaves(bregjax.weight_mask(state)) == jax.tree.leaves(by_path(state))


def test_nnx_injected_strength_changes_inside_jit():
    model = initial_model()
    tx = optax.inject_hyperparams(bregjax.linbreg)(0.1, bregjax.l1(), 0.05)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        grads = nnx.grad(lambda model: loss_of(model(x), y))(model)
        optimizer.update(model, grads)

    step(model, optimizer, *batch())
    assert bregjax.density(nnx.state(model, nnx.Param)) > 0
    hyperparams = optax.tree.get(optimizer.opt_state, "hyperparams")
    hyperparams["strength"][...] = 1e3
    step(model, optimizer, *batch())
    assert bregjax.density(nnx.state(model, nnx.Param)) == 0
