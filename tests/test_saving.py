"""Every state is saved and restored bit for bit, from one mesh to another."""

import pickle
from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from sharded import TRANSFORMATIONS, draw, each_kind, make_mesh, placement, steps


def by_orbax(state: Any, like: Any, folder: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)


def by_flax(state: Any, like: Any, _: Any) -> Any:
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(state))


def by_pickle(state: Any, _: Any, __: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


WAYS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "orbax": by_orbax,
    "flax": by_flax,
    "pickle": by_pickle,
}


def abstract_state(name: str, mesh: Mesh) -> Any:
    """The shapes, dtypes and places of a state, without its numbers."""
    with jax.set_mesh(mesh):
        params = jax.device_put(draw(0), placement(mesh))
        state = jax.eval_shape(TRANSFORMATIONS[name].init, params)

    def there(x: Any) -> jax.ShapeDtypeStruct:
        spec = jax.P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(there, state)


@each_kind
def test_states_are_restored_bit_for_bit_on_another_mesh(name, tmp_path):
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, gradient = jax.device_put((draw(0), draw(1)), (placement(mesh),) * 2)
        init = jax.jit(TRANSFORMATIONS[name].init)
        _, state = steps(TRANSFORMATIONS[name], params, init(params), gradient)
    other = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    like = abstract_state(name, other)
    for way in WAYS.values():
        restored = way(state, like, tmp_path)
        assert jax.tree.structure(restored) == jax.tree.structure(like)
        leaves = zip(*map(jax.tree.leaves, (restored, state, like)), strict=True)
        for got, saved, wanted in leaves:
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            assert np.asarray(got).tobytes() == np.asarray(saved).tobytes()
            if way is by_orbax:
                assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)
