"""Stacked layers, attention, and the layouts and names of Equinox and Haiku."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from bregjax import batched

LAYERS, STEPS = 4, 6
BLOCKS = bregjax.label_by_path({"blocks/*": True}, default=False)


def stack_of_kernels(seed: int, shape: tuple[int, ...] = (5, 3)) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (LAYERS, *shape))


@pytest.mark.parametrize(
    ("inner", "axis"),
    [
        (bregjax.l1(), 1),
        (bregjax.nonneg_l1(), 2),
        (bregjax.per_neuron(), 0),
        (bregjax.per_neuron(), 1),
        (bregjax.per_neuron(), 2),
        (bregjax.per_input_channel(), 1),
        (bregjax.sparse_group(bregjax.per_neuron()), 2),
        (bregjax.nuclear(), 1),
        (bregjax.nuclear(method="gram"), 2),
        (bregjax.nuclear(method="warm"), 1),
    ],
    ids=str,
)
def test_batched_is_the_regularizer_of_each_layer(inner, axis):
    x = stack_of_kernels(0)
    many, stacked = batched(inner, axis), jnp.moveaxis(x, 0, axis)
    total = sum(inner.value(kernel) for kernel in x)
    np.testing.assert_allclose(many.value(stacked), total, rtol=1e-6)
    for one, all_at_once in (
        ([inner.prox(kernel, 0.7) for kernel in x], many.prox(stacked, 0.7)),
        ([inner.subgradient(kernel) for kernel in x], many.subgradient(stacked)),
    ):
        expected = jnp.moveaxis(jnp.stack(one), 0, axis)
        np.testing.assert_allclose(all_at_once, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", [bregjax.l1(), bregjax.per_neuron()], ids=str)
def test_evidence_of_batched_is_that_of_each_layer(inner):
    x = stack_of_kernels(1)
    expected = jnp.stack([inner.evidence(kernel) for kernel in x])
    np.testing.assert_allclose(batched(inner).evidence(x), expected, rtol=1e-6)


def test_batched_takes_a_step_for_each_group():
    x, inner = stack_of_kernels(2), bregjax.per_neuron()
    steps = jnp.linspace(0.1, 1, LAYERS * 3).reshape(LAYERS, 1, 3)
    expected = jnp.stack([inner.prox(kernel, s) for kernel, s in zip(x, steps, strict=True)])
    np.testing.assert_allclose(batched(inner).prox(x, steps), expected, rtol=1e-6)
    shared = jnp.full((1, 1, 3), 0.3)
    np.testing.assert_allclose(
        batched(inner).prox(x, shared), batched(inner).prox(x, 0.3), rtol=1e-6
    )


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "0"])
def test_a_wrong_axis_is_named(wrong):
    with pytest.raises(ValueError, match="axis must be a whole number"):
        batched(bregjax.l1(), wrong)


def test_an_axis_that_an_array_lacks_is_named():
    with pytest.raises(ValueError, match="axis=2 is out of range for an array of 2 dimensions"):
        bregjax.live_groups(jnp.ones((2, 3)), batched(bregjax.l1(), 2))
    with pytest.raises(TypeError, match="regularizer must be a bregjax"):
        batched("l1")  # type: ignore[arg-type]


def trained(tx: optax.GradientTransformation, params: Any) -> Any:
    """After some steps with the same random gradients for stacked and for separate layers."""
    state = tx.init(params)
    for seed in range(STEPS):
        grads = [stack_of_kernels(10 + seed)[layer] for layer in range(LAYERS)]
        stacked = isinstance(params, dict) and "blocks" in params
        tree = {"blocks": {"kernel": jnp.stack(grads)}} if stacked else grads
        updates, state = tx.update(tree, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "inner",
    [
        bregjax.per_neuron(),
        bregjax.sparse_group(bregjax.per_neuron()),
        bregjax.nuclear(),
        bregjax.nuclear(method="warm"),
    ],
    ids=str,
)
def test_stacked_layers_train_as_separate_ones(inner):
    kernels = list(stack_of_kernels(3))
    separate, _ = trained(bregjax.linbreg(0.3, inner, 0.8), kernels)
    stacked, _ = trained(
        bregjax.linbreg(0.3, batched(inner), 0.8), {"blocks": {"kernel": jnp.stack(kernels)}}
    )
    expected = jnp.stack(separate)
    assert jnp.sum(expected != 0) > 0
    np.testing.assert_allclose(stacked["blocks"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_stacked_layers_land_as_separate_ones():
    tx = bregjax.linbreg(0.3, bregjax.per_neuron(), 0.4)
    stacked_tx = bregjax.linbreg(0.3, batched(bregjax.per_neuron()), 0.4)
    kernels = list(stack_of_kernels(4))
    params, state = trained(tx, kernels)
    stacked, stacked_state = trained(stacked_tx, {"blocks": {"kernel": jnp.stack(kernels)}})
    landed = bregjax.land(tx, state, params, density=0.5)
    stacked_landed = bregjax.land(stacked_tx, stacked_state, stacked, density=0.5)
    np.testing.assert_allclose(stacked_landed["blocks"]["kernel"], jnp.stack(landed), rtol=1e-5)
    assert bregjax.density(landed) == 0.5


def test_no_layer_of_a_stack_starts_without_its_share():
    params = {
        "blocks": {"kernel": stack_of_kernels(5, (10, 10)), "bias": jnp.zeros((LAYERS, 10))},
        "out": {"kernel": jnp.ones((10, 10)), "bias": jnp.zeros(10)},
    }
    start = bregjax.sparse_start(
        jax.random.key(0), params, 0.2, groups=bregjax.per_neuron(), stacked=BLOCKS
    )
    alive = bregjax.live_groups(start["blocks"]["kernel"], batched(bregjax.per_neuron()))
    np.testing.assert_array_equal(alive.sum(-1), LAYERS * [2])
    assert len({tuple(map(bool, row)) for row in alive}) > 1
    assert int(bregjax.live_groups(start["out"]["kernel"], bregjax.per_neuron()).sum()) == 2
    assert bool(jnp.all(start["blocks"]["bias"] > 0))
    assert float(start["blocks"]["bias"].max()) <= 1 / np.sqrt(10)


def test_report_and_ranks_of_stacked_layers_are_the_sums_over_them():
    kernels = stack_of_kernels(6, (5, 3)).at[0].set(0).at[1, :, 1].set(0).at[2, 0].set(0)
    bias = jnp.ones((LAYERS, 3)).at[0, 0].set(0.0)
    separate = {str(i): {"kernel": kernels[i], "bias": bias[i]} for i in range(LAYERS)}
    stacked = {"blocks": {"kernel": kernels, "bias": bias}}
    rows = bregjax.sparsity_report(separate).layers
    (row,) = bregjax.sparsity_report(stacked, stacked=BLOCKS).layers
    assert row.kind == "dense"
    assert row.kernels is None
    for field in ("weights", "outputs", "inputs", "rank"):
        pairs = [getattr(layer, field) for layer in rows]
        assert getattr(row, field) == tuple(map(sum, zip(*pairs, strict=True))), field
    assert row.asleep == sum(layer.asleep or 0 for layer in rows) == 1
    np.testing.assert_allclose(
        bregjax.relative_rank(stacked, stacked=BLOCKS), bregjax.relative_rank(separate)
    )


@pytest.fixture(scope="module")
def attention() -> nnx.State:
    layer = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=nnx.Rngs(0))
    return nnx.state(layer, nnx.Param)


def test_biases_of_attention_are_no_weights(attention):
    marks = nnx.to_pure_dict(bregjax.weight_mask(attention))
    for role in ("query", "key", "value", "out"):
        assert marks[role] == {"bias": False, "kernel": True}
    kinds = set(jax.tree.leaves(bregjax.label_by_kind(attention)))
    assert kinds == {"attention", "other"}


def test_report_knows_the_axes_of_attention(attention):
    tree = nnx.to_pure_dict(attention)
    tree["query"]["kernel"] = tree["query"]["kernel"].at[:, 1].set(0)  # (6, 2, 4): one head
    tree["query"]["bias"] = tree["query"]["bias"] - 1
    tree["out"]["kernel"] = tree["out"]["kernel"].at[0, 2].set(0)  # (2, 4, 6): one of its inputs
    rows = {row.name: row for row in bregjax.sparsity_report(tree).layers}
    query, out = rows["query/kernel"], rows["out/kernel"]
    assert (query.kind, query.outputs, query.inputs, query.asleep) == (
        "attention",
        (4, 8),
        (6, 6),
        4,
    )
    assert (out.kind, out.outputs, out.inputs, out.asleep) == ("attention", (6, 6), (7, 8), 0)
    assert query.rank == (4, 6)
    assert out.rank == (6, 6)
    assert query.kernels is None


def test_names_and_layouts_of_equinox():
    conv = jnp.ones((4, 3, 5, 5)).at[1].set(0).at[:, 2].set(0)  # (out, in, kh, kw)
    tree = {
        "conv": {"weight": conv, "bias": jnp.zeros((4, 1, 1))},
        "linear": {"weight": jnp.ones((2, 7)).at[1].set(0), "bias": jnp.zeros(2)},
    }
    assert bregjax.weight_mask(tree) == {
        "conv": {"weight": True, "bias": False},
        "linear": {"weight": True, "bias": False},
    }
    report = bregjax.sparsity_report(tree)
    first, second = report.layers
    assert (first.outputs, first.inputs, first.kernels) == ((3, 4), (2, 3), (6, 12))
    assert first.asleep == 1
    assert (second.outputs, second.inputs, second.asleep) == ((1, 2), (7, 7), 1)
    biases = bregjax.positive_biases(jax.random.key(0), tree)["conv"]["bias"]
    assert bool(jnp.all((biases > 0) & (biases <= 1 / np.sqrt(75))))


def test_names_of_haiku():
    tree = {
        "linear": {"w": jnp.ones((7, 2)), "b": jnp.zeros(2)},
        "stack": {"w": jnp.ones((3, 7, 2)), "b": jnp.zeros((3, 2))},
        "norm": {"scale": jnp.ones((3, 2)), "offset": jnp.zeros((3, 2))},
        "embed": {"embeddings": jnp.ones((9, 2))},
        "lora": {"a": jnp.ones((7, 2)), "b": jnp.ones((2, 7))},
    }
    kinds = bregjax.label_by_kind(tree)
    assert kinds["linear"] == {"w": "dense", "b": "other"}
    assert kinds["stack"]["b"] == "other"
    assert set(kinds["norm"].values()) == {"other"}
    assert kinds["embed"] == {"embeddings": "embedding"}
    assert kinds["lora"] == {"a": "dense", "b": "dense"}


def test_layers_of_different_stacks_draw_different_numbers():
    random = batched(bregjax.soft_bernoulli(0.5, key=3))
    first, second = (
        random.init_state(jnp.ones((n, 5, 3)), index) for index, n in enumerate((6, 4))
    )
    keys = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in (first, second)])
    assert len(np.unique(keys, axis=0)) == 6 + 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_live_groups_of_batched_are_those_of_each_layer(axis):
    x, inner = stack_of_kernels(3).at[1, :, 2].set(0).at[2, :, 0].set(0), bregjax.per_neuron()
    alive = bregjax.live_groups(jnp.moveaxis(x, 0, axis), batched(inner, axis))
    expected = np.stack([bregjax.live_groups(kernel, inner) for kernel in x])
    np.testing.assert_array_equal(alive, expected.T if axis == 2 else expected)
