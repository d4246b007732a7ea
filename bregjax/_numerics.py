"""The dtype in which duals, updates and norms are kept."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype`` itself, or float32 where that is narrower (bfloat16, float16)."""
    dtype = jnp.dtype(dtype)
    narrow = not jnp.issubdtype(dtype, jnp.inexact) or dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype
