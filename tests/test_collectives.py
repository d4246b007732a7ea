"""What is sent between devices, and how a step grows with the number of parameters' arrays."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bregjax
from bregjax._regularizers._norms import group_norms
from bregjax._top_k import Pool, top_k

ADABREG = bregjax.adabreg(1e-3, bregjax.l1(), strength=0.1)
PER_NEURON = bregjax.adabreg(1e-3, bregjax.per_neuron(), strength=0.1)
STEPS: dict[str, Any] = {
    "l1": ADABREG,
    "per_neuron": PER_NEURON,
    "sparse_group": bregjax.linbreg(0.1, bregjax.sparse_group(bregjax.per_neuron()), 0.1),
    "per_input_channel": bregjax.linbreg(0.1, bregjax.per_input_channel(), 0.1),
    "landing": bregjax.landing(ADABREG, optax.adam(1e-3), 100, density=0.1),
    "landing groups": bregjax.landing(
        PER_NEURON, optax.adam(1e-3), 100, density=0.1, groups=bregjax.per_neuron()
    ),
    "to_density": bregjax.adabreg_to_density(0.1, 1000),
    "exact groups": bregjax.steer(PER_NEURON, 0.1, exact=True),
    "to_density groups": bregjax.adabreg_to_density(0.1, 1000, None, bregjax.per_neuron()),
    "magnitude_pruning": bregjax.baselines.magnitude_pruning(
        optax.adam(1e-3), optax.linear_schedule(1.0, 0.1, 10)
    ),
}
SPLIT = [PartitionSpec("d", None), PartitionSpec(None, "d"), PartitionSpec("d", None)]


def sent(tx: Any, axes: AxisType) -> list[tuple[str, int]]:
    """Each collective of a step over eight devices, with its largest array's number of axes."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))
    params = {
        f"w{i}": jax.device_put(jnp.ones((64 + 64 * i, 64 + 64 * i)), NamedSharding(mesh, spec))
        for i, spec in enumerate(SPLIT)
    }
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        step = jax.jit(lambda gradients, *rest: tx.update(gradients, *rest))
        program = str(step.lower(params, state, params).compile().as_text())
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program)
    return [
        (kind, max(len(shape.split(",")) for shape in re.findall(r"\[(.*?)\]", shapes)))
        for shapes, kind in found
    ]


@jax.numpy_dtype_promotion("standard")  # Optax's Adam needs it
@pytest.mark.parametrize(
    "axes",
    [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit],
    ids=["Auto", "Explicit"],
)
@pytest.mark.parametrize("name", STEPS)
def test_devices_send_each_other_sums_and_nothing_of_a_parameters_shape(name, axes):
    collectives = sent(STEPS[name], axes)
    assert {kind for kind, _ in collectives} <= {"all-reduce"}
    assert all(ndim < 2 for _, ndim in collectives)
    if name in ("l1", "per_neuron", "sparse_group", "per_input_channel"):
        assert len(collectives) <= len(SPLIT)  # the norms of a leaf's groups, in one or in several


@pytest.mark.parametrize("axes", [(0,), (0, 1), (1,)])
def test_norms_and_counts_are_the_same_where_an_array_is_known_to_be_whole(axes):
    # There the rows are summed in rounds, and all entries are read as one array.
    x = jax.random.normal(jax.random.key(0), (480, 12, 20))
    mesh = jax.make_mesh((1,), ("d",))

    def read(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (largest,) = top_k([[jnp.round(x)], [x]], 100, [x > 0]).masks
        kth = Pool([jnp.abs(x), jnp.abs(x[0])]).kth_largest(jnp.uint32(100))
        return group_norms(x, axes), kth, largest

    whole = jax.shard_map(
        read, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    norms, *found = jax.jit(whole)(x)
    expected_norms, *expected = jax.jit(read)(x)
    assert jnp.allclose(norms, expected_norms, rtol=1e-6, atol=0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert str(jax.make_jaxpr(whole)(x)) != str(jax.make_jaxpr(read)(x))


def operations(tx: Any, leaves: int) -> int:
    """The number of operations of a step that is traced for so many arrays of parameters."""
    params = {f"w{i:04d}": jax.ShapeDtypeStruct((8, 8), jnp.float32) for i in range(leaves)}
    state = jax.eval_shape(tx.init, params)

    def count(jaxpr: Any) -> int:
        inner = jax.tree.leaves(
            [list(equation.params.values()) for equation in jaxpr.eqns],
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        )
        parts = [x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in inner]
        return len(jaxpr.eqns) + sum(count(x) for x in parts if isinstance(x, core.Jaxpr))

    return count(jax.make_jaxpr(tx.update)(params, state, params).jaxpr)


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize(("name", "at_most"), [("landing", 6), ("to_density", 6)])
def test_a_step_grows_in_proportion_to_the_number_of_arrays(name, at_most):
    tx = STEPS[name]
    few, more, many = (operations(tx, leaves) for leaves in (10, 30, 100))
    assert many <= at_most * operations(optax.adam(1e-3), 100)
    assert (many - more) / 70 == pytest.approx((more - few) / 20, rel=0.02)
