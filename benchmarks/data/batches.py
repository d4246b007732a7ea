"""The order in which a training sees its examples; it depends only on the seed."""

import functools

import jax
import jax.numpy as jnp


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


@functools.partial(jax.jit, static_argnums=(1, 2))
def epoch_orders(keys: jax.Array, n: int, batch_size: int) -> jax.Array:
    """The orders of several seeds, by the key of each: (seeds, n // batch_size, batch_size)."""
    return jax.vmap(lambda key: epoch_order(key, n, batch_size))(keys)
