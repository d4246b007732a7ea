"""Arguments out of range raise when the transformation is built; unknown values pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax

L1 = bregjax.l1()
FACTORIES = {
    "linbreg": lambda learning_rate=0.1, regularizer=L1, strength=1.0, **kwargs: bregjax.linbreg(
        learning_rate, regularizer, strength, **kwargs
    ),
    "adabreg": lambda learning_rate=0.1, regularizer=L1, strength=1.0, **kwargs: bregjax.adabreg(
        learning_rate, regularizer, strength, **kwargs
    ),
    "prox_sgd": lambda learning_rate=0.1, regularizer=L1, strength=1.0, **kwargs: bregjax.prox_sgd(
        learning_rate, regularizer, strength, **kwargs
    ),
    "mirror_step": lambda regularizer=L1, strength=1.0, **kwargs: bregjax.mirror_step(
        regularizer, strength, **kwargs
    ),
    "bregman_step": lambda regularizer=L1, strength=1.0, **kwargs: bregjax.bregman_step(
        regularizer, strength, **kwargs
    ),
    "prox_step": lambda regularizer=L1, strength=1.0, **kwargs: bregjax.prox_step(
        regularizer, strength, **kwargs
    ),
}
ARGUMENTS = {
    "linbreg": ["learning_rate", "strength", "delta", "momentum"],
    "adabreg": ["learning_rate", "strength", "delta", "b1", "b2", "eps"],
    "prox_sgd": ["learning_rate", "strength", "momentum"],
    "mirror_step": ["strength", "delta"],
    "bregman_step": ["strength", "delta"],
    "prox_step": ["strength", "step_size"],
}
PAIRS = [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments]
# The edge of each range, and whether it belongs to it.
EDGES = {
    "delta": [(0.0, False)],
    **{n: [(0.0, True), (1.0, False)] for n in ("momentum", "b1", "b2")},
}


@pytest.mark.parametrize(("name", "argument"), PAIRS)
@pytest.mark.parametrize("value", [-1.0, -1, float("nan"), np.float32(-0.5), "large", True])
def test_a_bad_value_is_named(name, argument, value):
    with pytest.raises(ValueError, match=argument) as info:
        FACTORIES[name](**{argument: value})
    assert f"{argument}={value!r}" in str(info.value)


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_edges_of_the_ranges(name, argument):
    for value, allowed in EDGES.get(argument, [(0.0, True), (1e6, True)]):
        if allowed:
            FACTORIES[name](**{argument: value})
            continue
        with pytest.raises(ValueError, match=f"{argument}={value!r}"):
            FACTORIES[name](**{argument: value})


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_arrays_and_traced_values_pass(name, argument):
    params = {"w": jnp.ones((2, 2))}

    def init(value):
        return FACTORIES[name](**{argument: value}).init(params)

    expected = jax.tree.structure(init(0.5))
    for value in (jnp.float32(0.5), np.array(0.5, np.float32)):
        assert jax.tree.structure(init(value)) == expected
    # Even a negative one: its value is unknown while tracing.
    for value in (jnp.float32(0.5), jnp.float32(-0.5)):
        assert jax.tree.structure(jax.jit(init)(value)) == expected


@pytest.mark.parametrize(
    ("name", "argument"),
    [pair for pair in PAIRS if pair[1] in ("learning_rate", "strength", "step_size")],
)
def test_schedules_pass(name, argument):
    params = {"w": jnp.ones((2, 2))}
    tx = FACTORIES[name](**{argument: optax.constant_schedule(0.5)})
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        updates, _ = tx.update(params, tx.init(params), params)
        constant = FACTORIES[name](**{argument: 0.5})
        expected, _ = constant.update(params, constant.init(params), params)
    np.testing.assert_array_equal(updates["w"], expected["w"])


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("value", [None, 0.5, "l1", lambda x: x])
def test_what_is_no_regularizer_is_a_type_error(name, value):
    with pytest.raises(TypeError, match="regularizer=") as info:
        FACTORIES[name](regularizer=value)
    assert repr(value) in str(info.value)


def test_a_constructor_instead_of_its_result_gets_a_hint():
    with pytest.raises(TypeError, match="Call the constructor"):
        bregjax.mirror_step(bregjax.l1, 1.0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["linbreg", "prox_sgd"])
def test_nesterov_needs_a_momentum(name):
    with pytest.raises(ValueError, match="momentum=None"):
        FACTORIES[name](nesterov=True)


@pytest.mark.parametrize("name", FACTORIES)
def test_missing_params_raise(name):
    params = {"w": jnp.ones((2, 2))}
    tx = FACTORIES[name]()
    with (
        jax.numpy_dtype_promotion("standard"),  # for Optax's Adam
        pytest.raises(ValueError, match="params=None"),
    ):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("name", ["mirror_step", "bregman_step", "prox_step"])
def test_different_shapes_raise_and_show_both(name):
    params = {"v": jnp.ones((1, 3)), "w": jnp.ones((2, 3))}
    tx = FACTORIES[name]()
    state = tx.init(params)
    message = r"params\['w'\] has \(2, 3\), its update \(1, 3\)"
    with pytest.raises(ValueError, match=message):
        tx.update({"v": jnp.ones((1, 3)), "w": jnp.ones((1, 3))}, state, params)
    if name != "prox_step":
        other = jax.tree.map(lambda x: x[:1], params)
        with pytest.raises(ValueError, match=r"a dual has shape \(1, 3\), its parameter \(2, 3\)"):
            tx.update(params, tx.init(other), params)


@pytest.mark.parametrize("name", ["mirror_step", "bregman_step", "prox_step"])
def test_numbers_are_parameters_too(name):
    tx = FACTORIES[name]()
    updates, state = tx.update({"w": 0.25}, tx.init({"w": 1.0}), {"w": 1.0})
    arrays = {"w": jnp.float32(1.0)}
    expected, _ = tx.update({"w": jnp.float32(0.25)}, tx.init(arrays), arrays)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    assert jnp.shape(updates["w"]) == ()
    del state


@pytest.mark.parametrize("name", ["mirror_step", "bregman_step", "prox_step"])
def test_different_structures_raise_and_name_what_differs(name):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    tx = FACTORIES[name]()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"same structure: updates\['b'\] is missing\.$"):
        tx.update({"a": params["a"]}, state, params)
    with pytest.raises(ValueError, match=r"updates\['c'\] is too much\.$"):
        tx.update(params | {"c": params["a"]}, state, params)
    with pytest.raises(ValueError, match=r"updates is a list of other containers\.$"):
        tx.update(list(params.values()), tx.init(tuple(params.values())), tuple(params.values()))


@pytest.mark.parametrize("name", ["linbreg", "adabreg", "mirror_step", "bregman_step"])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_parameters_of_other_dtypes_raise_and_are_named(name, dtype):
    params = {"table": {"w": jnp.ones((2, 2), dtype)}}
    with pytest.raises(ValueError, match="mask=") as info:
        FACTORIES[name]().init(params)
    assert "['table']['w']" in str(info.value)
    assert dtype in str(info.value)


@pytest.mark.parametrize("name", ["prox_step", "prox_sgd"])
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_the_prox_step_alone_refuses_other_dtypes_too(name, dtype):
    params = {"table": {"w": jnp.ones((2, 2), dtype)}}
    with pytest.raises(ValueError, match="mask=") as info:
        FACTORIES[name]().init(params)
    assert "['table']['w']" in str(info.value)


def test_integer_parameters_pass_where_the_mask_leaves_them_out():
    params = {"w": jnp.ones((2, 2)), "steps": jnp.array([3])}
    tx = bregjax.linbreg(0.1, L1, 1.0)
    assert isinstance(optax.tree.get(tx.init(params), "dual")["steps"], optax.MaskedNode)


def test_vectors_need_a_mask_for_regularizers_of_matrices():
    params = {"b": jnp.ones(3)}
    bregjax.linbreg(0.1, bregjax.nuclear(), 1.0).init(params)
    with pytest.raises(ValueError, match="two or more dimensions"):
        bregjax.linbreg(0.1, bregjax.nuclear(), 1.0, mask={"b": True}).init(params)
    with pytest.raises(ValueError, match="out of range"):
        bregjax.linbreg(0.1, bregjax.group_l2(axis=1), 1.0, mask={"b": True}).init(params)


def _wrappers():
    """Those with a state of their own, then chains."""
    inner = bregjax.linbreg(0.1, L1, 1.0, keep_weights=True)
    sgd, key = optax.sgd(0.1), jax.random.key(0)
    return {
        "steer": bregjax.steer(inner, 0.5),
        "exact": bregjax.steer(inner, 0.5, exact=True),
        "to_density": bregjax.adabreg_to_density(0.5, 10),
        "to_density, groups": bregjax.adabreg_to_density(0.5, 10, None, bregjax.per_neuron()),
        "landing": bregjax.landing(inner, sgd, 5, count=2),
        "multilevel": bregjax.multilevel(inner, 2),
        "freeze_support": bregjax.freeze_support(sgd),
        "pruning": bregjax.baselines.magnitude_pruning(sgd, 0.5),
        "rigl": bregjax.baselines.rigl(sgd, every=2, stop=9),
        "set": bregjax.baselines.set_training(sgd, key=key, every=2, stop=9),
        "adabreg": bregjax.adabreg(0.1, L1, 1.0),
        "linbreg": inner,
        "prox_sgd": bregjax.prox_sgd(0.1, L1, 1.0, momentum=0.9),
    }


@pytest.mark.parametrize("name", _wrappers())
@jax.numpy_dtype_promotion("standard")  # for Optax's Adam
def test_updates_that_do_not_fit_are_named_before_anything_is_done_with_them(name):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 2))}
    tx = _wrappers()[name]
    state = tx.init(params)
    turned = params | {"a": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"params\['a'\] has \(2, 3\), its update \(3, 2\)"):
        tx.update(turned, state, params)
    others: list[Any] = [{"a": params["a"]}, params | {"b": None}]
    for other in others:
        with pytest.raises(ValueError, match="same structure"):
            tx.update(other, state, params)


@pytest.mark.parametrize("name", list(_wrappers())[:8])
def test_a_state_of_another_optimizer_is_named(name):
    params = {"a": jnp.ones((2, 3))}
    tx = _wrappers()[name]
    with pytest.raises(
        TypeError, match=r"state must be a (\w+State|tuple).*, as init returns it.*got a dict"
    ):
        tx.update(params, params, tx.init(params))
    with pytest.raises(TypeError, match=r"state must be a (\w+State|tuple).*got a tuple"):
        tx.update(params, optax.adam(1e-3).init(params), params)


def test_steps_that_are_collected_inside_are_refused():
    params = {"a": jnp.ones((2, 3))}
    inner = bregjax.linbreg(0.1, L1, 1.0, keep_weights=True)
    several = optax.MultiSteps(inner, 4).gradient_transformation()
    for tx in (
        bregjax.steer(several, 0.5, exact=True),
        bregjax.steer(several, 0.5),
        bregjax.landing(several, optax.sgd(0.1), 5, count=2),
    ):
        with pytest.raises(
            ValueError, match=r"inner has .* put optax\.MultiSteps around the whole"
        ):
            tx.init(params)
    inside = r"optimizer has a prox_step inside optax\.MultiSteps.* pass what is inside"
    with pytest.raises(ValueError, match=inside):
        bregjax.waking_strength(several, params, 10, 0.5)
    with pytest.raises(ValueError, match=inside):
        bregjax.diagnose(several, several.init(params), params)
    with pytest.raises(ValueError, match=inside):
        bregjax.land(several, several.init(params), params, count=2)
    around = optax.MultiSteps(bregjax.steer(inner, 0.5, exact=True), 4)  # the right order
    around.init(params)
    with pytest.raises(TypeError, match=r"Call its method gradient_transformation\(\)"):
        bregjax.freeze_support(around)  # type: ignore[arg-type]


def test_errors_show_kinds_and_shapes_and_not_whole_trees():
    deep: Any = {
        f"layer{i}": {"kernel": jnp.ones((30, 20)), "bias": jnp.ones(20)} for i in range(6)
    }
    model: Any = nnx.Sequential(*(nnx.Linear(30, 30, rngs=nnx.Rngs(0)) for _ in range(6)))
    tx = bregjax.linbreg(0.1, bregjax.l1(), 1.0)
    state = tx.init(deep)
    other = tx.init({"kernel": jnp.ones((3, 3))})
    calls = {
        "params": lambda: bregjax.live_groups(deep, deep),
        "path": lambda: bregjax.save_sparse(deep, "file.npz"),
        "model": lambda: bregjax.factorize(deep, rank=2),
        "shrink": lambda: bregjax.shrink(deep, jnp.ones((1, 30))),
        "key": lambda: bregjax.sparse_start(deep, deep),
        "state": lambda: bregjax.diagnose(tx, other, deep),
        "params of another network": lambda: bregjax.land(tx, state, {"w": jnp.ones((2, 2))}),
        "outputs": lambda: bregjax.diagnose(tx, state, deep, deep),
        "mask": lambda: bregjax.linbreg(0.1, bregjax.l1(), 1.0, mask=deep).init(deep),
        "network": lambda: bregjax.sparsity_report(model, mask=deep),
    }
    for name, call in calls.items():
        with pytest.raises((ValueError, TypeError)) as info:
            call()
        assert len(str(info.value)) < 600, (name, str(info.value))


@pytest.mark.parametrize("nothing", [{}, [], None, nnx.State({})], ids=repr)
def test_no_parameters_at_all_are_refused(nothing):
    for name in ("linbreg", "adabreg", "mirror_step", "bregman_step"):
        tx = FACTORIES[name]()
        with pytest.raises(ValueError, match="params"):
            tx.update(nothing, tx.init(nothing), nothing)
    key = jax.random.key(0)
    calls = {
        "sparsify": lambda: bregjax.sparsify(key, nothing, 0.5),
        "sparse_start": lambda: bregjax.sparse_start(key, nothing, 0.5),
        "save_sparse": lambda: bregjax.save_sparse("never-written.npz", nothing),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="params must have at least one array, got params="):
            call()


@jax.numpy_dtype_promotion("standard")
def test_a_part_of_a_partition_may_have_none():
    parts: dict[Any, Any] = {
        "a": bregjax.linbreg(0.1, L1, 1.0),
        "b": bregjax.adabreg(0.1, L1, 1.0),
    }
    tx = optax.partition(parts, {"w": "a"})
    params = {"w": jnp.ones((2, 2))}
    updates: Any
    updates, _ = tx.update(params, tx.init(params), params)
    assert jnp.all(updates["w"] != 0)


@jax.numpy_dtype_promotion("standard")
def test_one_flat_vector_is_not_trained_densely_without_a_word():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    tx = optax.flatten(bregjax.adabreg(0.1, L1, 1.0))
    with pytest.raises(ValueError, match=r"one array of shape \(9,\).*mask=lambda params: True"):
        tx.init(params)
    tx = optax.flatten(bregjax.adabreg(0.1, L1, 1.0, mask=lambda params: True))
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
