"""Work that is due only at a few steps."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def when_due(due: jax.Array, change: Callable[..., T], value: T, *args: Any) -> T:
    """``change(value, *args)`` if ``due``, else ``value``, which then costs nothing.

    It is `jax.lax.cond` written as a loop of at most one round. Under `jax.vmap` a `cond` becomes a
    select that runs both branches at every step, whereas a loop runs only while some lane needs it.
    """

    def once(carry: tuple[jax.Array, T]) -> tuple[jax.Array, T]:
        # Without the barrier XLA moves work that depends only on the constant arguments, such as
        # |θ|, out of the loop, and does it at every step.
        current, constants = lax.optimization_barrier((carry[1], args))
        return jnp.zeros_like(carry[0]), change(current, *constants)

    return lax.while_loop(lambda carry: carry[0], once, (due, value))[1]
