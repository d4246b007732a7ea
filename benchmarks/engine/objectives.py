"""The loss functions of the trainings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Objective = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""From outputs and targets to two arrays (n,): the loss of each image, and 1 where it was
classified correctly, 0 where not, NaN where there are no classes."""


def classification(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of logits (n, classes) with labels (n,), in nats, and whether they agree."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (jnp.argmax(logits, axis=-1) == labels).astype(losses.dtype)


def smoothed_classification(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`classification` with label smoothing 0.1: a tenth of the target is spread evenly."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    losses = optax.softmax_cross_entropy(logits, targets)
    return losses, (jnp.argmax(logits, axis=-1) == labels).astype(losses.dtype)


def next_token(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy of logits (n, length, vocabulary) with tokens (n, length), in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean(axis=-1)
    return losses, jnp.full_like(losses, jnp.nan)


def reconstruction(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean squared error per pixel of images (n, ...)."""
    losses = jnp.mean(jnp.square(images - targets), axis=tuple(range(1, images.ndim)))
    return losses, jnp.full_like(losses, jnp.nan)
