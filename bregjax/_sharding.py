"""Arrays on a mesh with explicit axes, where the sharding is a part of an array's type.

On any other mesh, and without one, the compiler chooses the shardings and nothing is done here.
"""

import jax
from jax.sharding import PartitionSpec


def is_sharded(x: jax.Array) -> bool:
    """Whether the type of ``x`` says that it is split along one of its axes."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def gathered(x: jax.Array) -> jax.Array:
    """``x`` whole on each device: what a matrix needs before it is folded or decomposed."""
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim)) if is_sharded(x) else x


def sharded_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x`` split over the devices as an array of its shape is."""
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if is_sharded(like) else x
