"""The dtype in which duals, updates and norms are kept, and adding updates in it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype`` itself, or float32 where that is narrower (bfloat16, float16)."""
    dtype = jnp.dtype(dtype)
    narrow = not jnp.issubdtype(dtype, jnp.inexact) or dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype


def add_updates(params: Any, updates: Any) -> Any:
    """`optax.apply_updates` that adds in the wider dtype, also under strict promotion."""
    return jax.tree.map(lambda x, u: (x.astype(u.dtype) + u).astype(x.dtype), params, updates)
