"""How a training is spread over the devices: by its seeds, and by the examples of each batch."""

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh, NamedSharding

SEEDS, BATCH = "seeds", "batch"
"""The axes of the mesh."""

_LEAST = 16  # a device is worth its overhead from this many images on
_MOST = 8  # cores that become devices; a container may see more cores than it may use
_FLAG = "xla_force_host_platform_device_count"


def one_per_core() -> None:
    """On the CPU, make every core a device; by default JAX has one device for all cores.

    XLA's convolutions of this size gain little from a second core. With a device for each core,
    every core computes a share of the batch instead: the Fashion-MNIST ConvNet trains 1.8 times as
    fast on two cores. For the MLP the gain is smaller than the cost of adding up the gradients.

    Call it before JAX is first used; later it does nothing. A number of devices in the environment
    (``JAX_NUM_CPU_DEVICES``, or in ``XLA_FLAGS``) takes precedence. At most eight devices are made.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ or _FLAG in os.environ.get("XLA_FLAGS", "")
    if not told and hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(RuntimeError):  # the devices exist already
            cores = len(os.sched_getaffinity(0))
            jax.config.update("jax_num_cpu_devices", min(cores, _MOST))


def mesh(seeds: int, batch_size: int) -> Mesh:
    """As many devices as can share the seeds and the batches equally.

    Args:
      seeds: networks that are trained side by side.
      batch_size: examples in a batch of each.

    Returns:
        A mesh with the axes ``SEEDS`` and ``BATCH``.
    """
    devices = jax.devices()
    shapes = [
        (over_seeds, over_batch)
        for over_seeds in _divisors(seeds)
        for over_batch in _divisors(batch_size)
        if over_seeds * over_batch <= len(devices)
        and (over_batch == 1 or batch_size // over_batch >= _LEAST)
    ]
    shape = max(shapes, key=lambda shape: (math.prod(shape), shape[0]))
    return Mesh(np.asarray(devices[: math.prod(shape)]).reshape(shape), (SEEDS, BATCH))


def place(tree: Any, mesh: Mesh, axis: str | None = None) -> Any:
    """Puts arrays on the devices: whole on each, or split along their first axis over ``axis``."""
    return jax.device_put(tree, NamedSharding(mesh, P(axis)))


def spread(function: Callable, mesh: Mesh, in_axes: tuple[int | None, ...]) -> Callable:
    """Map a function of one seed over all seeds, each on its devices.

    Args:
      function: its arguments and results are those of one seed. It runs on every device of the
        seed with the same arguments, and its results must be the same on all of them.
      mesh: see `mesh`.
      in_axes: for each argument 0 if it has a leading seed axis, else None.

    Returns:
        A function of arguments with these axes; every result has a leading seed axis.
    """

    def mapped(*args: Any) -> Any:
        seeds = {
            leaf.shape[0]
            for arg, axis in zip(args, in_axes, strict=True)
            if axis == 0
            for leaf in jax.tree.leaves(arg)
        }
        over_seeds = jax.vmap if seeds != {1} else _for_one_seed
        return over_seeds(function, in_axes)(*args)

    if mesh.size == 1:
        return mapped
    specs = tuple(P() if axis is None else P(SEEDS) for axis in in_axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=P(SEEDS), check_vma=False)


def share(tree: Any, mesh: Mesh) -> Any:
    """The rows of this device, of arrays with one row for each example; for use under `spread`."""
    parts = mesh.shape[BATCH]
    if parts == 1:
        return tree
    index = jax.lax.axis_index(BATCH)
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index * (len(x) // parts), len(x) // parts), tree
    )


def mean(tree: Any, mesh: Mesh) -> Any:
    """The mean of the devices' results over all devices of a seed; for use under `spread`."""
    return tree if mesh.shape[BATCH] == 1 else jax.lax.pmean(tree, BATCH)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _for_one_seed(function: Callable, in_axes: tuple) -> Callable:
    """`jax.vmap` over an axis of length one, without batching: conditions stay conditions."""

    def mapped(*args: Any) -> Any:
        single = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), function(*single))

    return mapped
