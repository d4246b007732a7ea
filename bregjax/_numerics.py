"""Small numerical helpers: the dtype of duals and updates, units of scale, values of schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype`` itself, or float32 where that is narrower (bfloat16, float16)."""
    dtype = jnp.dtype(dtype)
    narrow = not jnp.issubdtype(dtype, jnp.inexact) or dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype


def widened(x: ArrayLike) -> jax.Array:
    """``x`` as an array of its `wide_dtype`: unchanged where it is at least as wide as float32."""
    return jnp.asarray(x, wide_dtype(jnp.asarray(x).dtype))


def add_widened(x: ArrayLike, update: jax.Array) -> jax.Array:
    """``x + update`` in the `wide_dtype` of ``x``, whatever the dtype of the update."""
    wide = widened(x)
    return wide + jnp.asarray(update, wide.dtype)


def power_of_two_near(x: jax.Array) -> jax.Array:
    """A unit 2ᵏ in which x is about 1, so that squares of x/2ᵏ neither overflow nor vanish.

    For zero, infinity and NaN it is 1. It stays some orders of magnitude within the range of the
    dtype, so that products with 1/2ᵏ are exact. This matters because XLA's CPU backend turns
    quotients into such products, and its 1/x is zero for the largest numbers x.
    """
    most = 2.0 ** (3 * jnp.finfo(x.dtype).maxexp // 4)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), bits.dtype)
    exponent = bits & infinity  # with a mantissa of zero: 2ᵏ⁻¹ for |x| in [2ᵏ⁻¹, 2ᵏ)
    unit = jnp.clip(2 * jax.lax.bitcast_convert_type(exponent, x.dtype), 1 / most, most)
    return jnp.where((bits == 0) | (exponent == infinity), 1, unit)


def add_updates(params: Any, updates: Any) -> Any:
    """`optax.apply_updates` that adds in the wider dtype, also under strict promotion."""
    return jax.tree.map(lambda x, u: (x.astype(u.dtype) + u).astype(x.dtype), params, updates)


def key_from(data: jax.Array, like: jax.Array) -> jax.Array:
    """The PRNG key that has these data, of the kind of the key ``like``.

    States hold the data, because serialization does not know typed keys.
    """
    typed = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like) if typed else None)


def value_at(value: optax.ScalarOrSchedule, count: Any) -> ArrayLike:
    """A schedule's value at step ``count``; anything else as it is."""
    return value(count) if callable(value) else value
