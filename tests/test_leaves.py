"""Names, kinds, masks and labels, for Flax NNX, Linen and plain trees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bregjax


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(2, name="out")(x)


@pytest.fixture(scope="module")
def state() -> nnx.State:
    return nnx.state(Net(nnx.Rngs(0)), nnx.Param)


@pytest.fixture(scope="module")
def linen() -> dict:
    return dict(LinenNet().init(jax.random.key(0), jnp.ones((1, 5, 5, 1)))["params"])


KINDS = {
    "conv/bias": "other",
    "conv/kernel": "conv",
    "embed/embedding": "embedding",
    "layers/0/bias": "other",
    "layers/0/kernel": "dense",
    "layers/1/bias": "other",
    "layers/1/kernel": "dense",
    "norm/bias": "other",
    "norm/scale": "other",
}


def by_name(tree) -> dict:
    """The leaves of an NNX tree or dict under the names that a reader would give them."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", "")) for k in path if hasattr(k, "key")): leaf
        for path, leaf in pairs
    }


def forms(state: nnx.State) -> list:
    """A state of variables, as `init` sees it, and plain arrays, as `update` does."""
    pure = nnx.as_pure(state)
    plain = jax.tree.map(jnp.asarray, nnx.as_pure(state))
    variables = jax.tree_util.tree_leaves_with_path(state)
    assert all(str(path[-1]) == ".value" for path, _ in variables)
    assert not any(".value" in jax.tree_util.keystr(p) for p in dict(_paths(pure)))
    return [state, pure, plain]


def _paths(tree) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize("form", [0, 1, 2])
def test_kinds_of_nnx_leaves(state, form):
    tree = forms(state)[form]
    labels = bregjax.label_by_kind(tree)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    assert by_name(labels) == KINDS


@pytest.mark.parametrize("form", [0, 1, 2])
def test_weight_mask_of_nnx_leaves(state, form):
    tree = forms(state)[form]
    mask = bregjax.weight_mask(tree)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    assert by_name(mask) == {name: kind != "other" for name, kind in KINDS.items()}


@pytest.mark.parametrize("form", [0, 1, 2])
def test_paths_of_nnx_leaves(state, form):
    rules = {"layers/1/*": "last", "*/kernel": "kernel", "embed*": "table"}
    labels = bregjax.label_by_path(rules, default="rest")(forms(state)[form])
    assert by_name(labels) == {
        "conv/bias": "rest",
        "conv/kernel": "kernel",
        "embed/embedding": "table",
        "layers/0/bias": "rest",
        "layers/0/kernel": "kernel",
        "layers/1/bias": "last",
        "layers/1/kernel": "last",
        "norm/bias": "rest",
        "norm/scale": "rest",
    }


def test_linen_parameters(linen):
    labels = bregjax.label_by_kind(linen)
    assert labels["conv"] == {"bias": "other", "kernel": "conv"}
    assert labels["out"] == {"bias": "other", "kernel": "dense"}
    assert labels["norm"] == {"bias": "other", "scale": "other"}
    mask = bregjax.weight_mask(linen)
    assert mask["conv"] == mask["out"] == {"bias": False, "kernel": True}
    paths = bregjax.label_by_path({"conv/kernel": 1, "*": 2})(linen)
    assert paths["conv"] == {"bias": 2, "kernel": 1}


def test_kinds_of_plain_trees():
    tree = [jnp.ones(3), (jnp.ones((2, 2)), jnp.ones((2, 2, 2))), {"value": jnp.ones((2, 2))}]
    assert bregjax.label_by_kind(tree) == ["other", ("dense", "conv"), {"value": "dense"}]
    assert bregjax.weight_mask(tree) == [False, (True, True), {"value": True}]
    labels = bregjax.label_by_path({"0": "a", "1/*": "b", "2/value": "c"})(tree)
    assert labels == ["a", ("b", "b"), {"value": "c"}]


def test_an_embedding_is_a_leaf_of_that_name_with_two_dimensions():
    tree = {"embedding": jnp.ones((3, 2)), "embedding_net": {"kernel": jnp.ones((3, 2))}}
    labels = bregjax.label_by_kind(tree)
    assert labels == {"embedding": "embedding", "embedding_net": {"kernel": "dense"}}
    assert bregjax.label_by_kind({"embedding": jnp.ones(3)}) == {"embedding": "other"}


def test_patterns_are_case_sensitive_and_whole():
    tree = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "dense_0": {"kernel": jnp.ones((2, 2))}}
    labels = bregjax.label_by_path({"Dense*": "a"}, default="b")(tree)
    assert labels == {"Dense_0": {"kernel": "a"}, "dense_0": {"kernel": "b"}}
    with pytest.raises(ValueError, match="matches none"):
        bregjax.label_by_path({"kernel": "a"}, default="b")(tree)


def test_first_matching_pattern_counts():
    tree = {"a": jnp.ones(2), "ab": jnp.ones(2)}
    assert bregjax.label_by_path({"ab": 1, "a*": 2})(tree) == {"a": 2, "ab": 1}


def test_unmatched_pattern_raises(linen):
    message = r"'cnov/\*' matches none of the leaves .*conv/kernel"
    with pytest.raises(ValueError, match=message):
        bregjax.label_by_path({"*/kernel": 1, "cnov/*": 2}, default=0)(linen)


def test_unmatched_leaf_raises_without_default(linen):
    with pytest.raises(ValueError, match=r"no pattern of \['\*/kernel'\] matches .*'conv/bias'"):
        bregjax.label_by_path({"*/kernel": 1})(linen)
    false = bregjax.label_by_path({"*/kernel": True}, default=False)(linen)
    assert false["conv"] == {"bias": False, "kernel": True}


@jax.numpy_dtype_promotion("standard")  # as Optax's schedules need
def test_a_mask_that_is_a_callable_tree_is_used_and_not_called():
    """Such as a tree of booleans that was made of an Equinox module with a ``__call__``."""
    params = eqx.filter(eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)), eqx.is_array)
    mask = jax.tree.map(lambda x: x.shape == (5, 4), params)
    assert callable(mask)
    gradient = jax.tree.map(jnp.ones_like, params)
    l1 = bregjax.l1()
    for tx in (
        bregjax.linbreg(0.1, l1, 1.0, mask=mask),
        bregjax.adabreg(0.1, l1, 1.0, mask=mask),
        bregjax.prox_sgd(0.1, l1, 1.0, mask=mask),
        bregjax.adabreg_to_density(0.5, 10, mask=mask),
        bregjax.to_density(0.5, 10, mask=mask),
    ):
        updates, state = tx.update(gradient, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        if bregjax.states_of(state, bregjax.MirrorState):
            landed = bregjax.land(tx, state, params, count=7, mask=mask)
            assert int(jnp.count_nonzero(landed.layers[0].weight)) == 7
    key = jax.random.key(1)
    for sparse in (
        bregjax.sparsify(key, params, 0.25, mask=mask),
        bregjax.sparse_start(key, params, 0.25, mask=mask),
    ):
        assert int(jnp.count_nonzero(sparse.layers[0].weight)) == 5
        assert jnp.all(sparse.layers[1].weight != 0)
        assert float(bregjax.density(sparse, mask=mask)) == 0.25
        assert "layers/1/weight" not in str(bregjax.sparsity_report(sparse, mask=mask))


def test_labels_serve_optax_partition_through_the_nnx_optimizer():
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    tx = optax.partition(
        {"conv": optax.sgd(1.0), "rest": optax.set_to_zero()},
        bregjax.label_by_path({"conv/*": "conv"}, default="rest"),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    ones = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, ones)
    after = nnx.state(model, nnx.Param)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert by_name(moved) == {name: name.startswith("conv/") for name in KINDS}
