"""Work that is due at a few steps only."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def when_due(due: jax.Array, change: Callable[..., T], value: T, *args: Any) -> T:
    """``change(value, *args)`` where ``due``, else ``value``, at no cost while it is not due.

    It is `jax.lax.cond` as a loop of at most one round: under `jax.vmap` a `cond` becomes a select
    that runs both branches at every step, but a loop ends as soon as no lane asks for more.
    """

    def once(carry: tuple[jax.Array, T]) -> tuple[jax.Array, T]:
        # Without the barrier XLA moves what depends on the constant arguments alone, such as |θ|,
        # out of the loop, where it is computed at every step.
        current, constants = lax.optimization_barrier((carry[1], args))
        return jnp.zeros_like(carry[0]), change(current, *constants)

    return lax.while_loop(lambda carry: carry[0], once, (due, value))[1]
