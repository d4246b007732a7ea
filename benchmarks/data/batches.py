"""The batches of an epoch, in an order that depends only on the seed."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.data.datasets import Split

Batch = tuple[jax.Array, jax.Array]
"""Inputs and targets, one row an example."""


def epoch_order(key: jax.Array, n: int, batch_size: int) -> jax.Array:
    """The order of an epoch: which of ``n`` examples are in which batch.

    It is a random permutation, cut into full batches. Other examples are left over in each epoch.

    Args:
      key: the random key of the epoch.
      n: number of examples.
      batch_size: examples in a batch.

    Returns:
        Indices of shape (n // batch_size, batch_size), int32.
    """
    steps = n // batch_size
    order = jax.random.permutation(key, n)[: steps * batch_size]
    return order.reshape(steps, batch_size).astype(jnp.int32)


class Batches:
    """Training examples, all of them on the device, and the orders in which several seeds see them.

    An epoch is cut into pieces of several steps, so that a program can scan over a piece::

        def program(data, piece):  # jitted and mapped over the seeds, ``data`` for all the same
            def step(state, item):
                inputs, targets = batches.batch(data, item)
                ...
            return jax.lax.scan(step, state, piece)

        for piece in batches.pieces(keys, size):
            state = program(batches.data, piece)

    Args:
      split: the examples.
      batch_size: examples in a batch.
    """

    def __init__(self, split: Split, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got batch_size={batch_size}.")
        self.batch_size = batch_size
        self.steps = len(split) // batch_size
        self.data: Batch = jax.device_put((split.inputs, split.targets))

    def pieces(self, keys: jax.Array, size: int, skip: int = 0) -> Iterator[jax.Array]:
        """The pieces of an epoch.

        Args:
          keys: (seeds,), one key of the epoch for each seed; each seed has its own order.
          size: steps in a piece; the last one may have fewer.
          skip: how many pieces are left out at the beginning.

        Yields:
            Indices of examples (seeds, steps, batch_size).
        """
        orders = _epoch_orders(keys, len(self.data[1]), self.batch_size)
        for start in range(skip * size, self.steps, size):
            yield orders[:, start : start + size]

    def batch(self, data: Batch, item: jax.Array) -> Batch:
        """The examples of one step of one seed; called within the jitted step."""
        inputs, targets = data
        return inputs[item], targets[item]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _epoch_orders(keys: jax.Array, n: int, batch_size: int) -> jax.Array:
    return jax.vmap(lambda key: epoch_order(key, n, batch_size))(keys)
