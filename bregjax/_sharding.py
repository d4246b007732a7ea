"""Arrays on several devices.

On a mesh with explicit axes the sharding is a part of an array's type. On any other mesh, and
without one, the compiler chooses the shardings.
"""

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def is_sharded(x: jax.Array) -> bool:
    """Whether the type of ``x`` says that it is split along one of its axes."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def may_be_split(x: jax.Array) -> bool:
    """Whether ``x`` may lie on several devices, as far as is known while it is traced.

    Reshaping such an array can make the compiler gather it. Where it is whole, as on a machine with
    one device and inside of `jax.shard_map`, its entries may be laid out anew at no cost.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty:
        return jax.device_count() > 1
    if mesh.size == 1:
        return False
    return is_sharded(x) or AxisType.Auto in mesh.axis_types


def gathered(x: jax.Array) -> jax.Array:
    """``x`` whole on each device: what a matrix needs before it is folded or decomposed."""
    if not is_sharded(x):
        return x
    # With its mesh, as there need not be one in the context.
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec()))


def sharded_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x`` split over the devices as an array of its shape is."""
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if is_sharded(like) else x


def beside(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x`` whole on each of the devices on which ``like`` lies, if these are known."""
    sharding = None if isinstance(like, Tracer) else getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return x
    return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()))
