"""Kernels as matrices: how they are folded, and which singular values count as zero.

The nuclear norm, the counts of ranks and `factorize` all use the matrices and the tolerance of this
module, so they agree on the rank of a kernel.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bregjax._sharding import gathered, sharded_as

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""The product of matrices, without the shortcuts that GPUs and TPUs take by default."""


def fold(
    x: jax.Array, row_axes: tuple[int, ...] | None = None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Flattens an array to a matrix, such as a Conv kernel (kh, kw, in, out) to (kh·kw·in, out).

    Args:
      x: an array of two or more dimensions.
      row_axes: the axes that make the rows, the first one running slowest; the others make the
        columns, in their order. None stands for all axes but the last.

    Returns:
        The matrix, and the function that folds such a matrix back to the shape of ``x``.

    Raises:
        ValueError: if ``x`` has fewer dimensions, or an axis is out of range or named twice.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.ones((3, 3, 16, 32))
        >>> matrix, unfold = fold(kernel)
        >>> print(matrix.shape, unfold(matrix).shape, fold(kernel, (0, 2))[0].shape)
        (144, 32) (3, 3, 16, 32) (48, 96)
    """
    if x.ndim < 2:
        raise ValueError(
            "a regularizer of matrices needs arrays of two or more dimensions, got shape"
            f" {x.shape}. Leave such parameters out with mask=…."
        )
    named = tuple(range(x.ndim - 1)) if row_axes is None else row_axes
    if any(not -x.ndim <= a < x.ndim for a in named):
        raise ValueError(f"row_axes={row_axes} is out of range for shape {x.shape}.")
    rows = tuple(a % x.ndim for a in named)
    if len(set(rows)) != len(rows):
        raise ValueError(f"row_axes={row_axes} names an axis twice in {x.ndim} dimensions.")
    order = rows + tuple(a for a in range(x.ndim) if a not in rows)
    permuted_shape = [x.shape[a] for a in order]
    sizes = math.prod(permuted_shape[: len(rows)]), math.prod(permuted_shape[len(rows) :])
    matrix = gathered(x).transpose(order).reshape(sizes)

    def unfold(matrix: jax.Array) -> jax.Array:
        back = [order.index(a) for a in range(x.ndim)]
        return sharded_as(matrix.reshape(permuted_shape).transpose(back), x)

    return matrix, unfold


def svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The thin singular value decomposition; NaN if an entry of the matrix is not finite.

    For such a matrix LAPACK's routine may never return.
    """
    finite = jnp.all(jnp.isfinite(matrix))
    u, s, vt = (
        jnp.where(finite, x, jnp.nan)
        for x in jnp.linalg.svd(jnp.where(finite, matrix, 0), full_matrices=False)
    )
    return u, s, vt


def singular_values(matrix: jax.Array) -> jax.Array:
    """The singular values in falling order; NaN if an entry of the matrix is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    return jnp.where(
        finite, jnp.linalg.svd(jnp.where(finite, matrix, 0), compute_uv=False), jnp.nan
    )


def rank_tolerance(matrix: jax.Array, singular_values: jax.Array) -> jax.Array:
    r"""The largest singular value of a matrix that counts as zero, because it is rounding error.

    .. math:: \max(m, n)\,\epsilon\,\sigma_1

    for m rows and n columns, where ε is that of the dtype of ``matrix``. The errors of a matrix
    that was stored in a narrower dtype are larger.
    """
    return jnp.max(singular_values, initial=0) * max(matrix.shape) * jnp.finfo(matrix.dtype).eps
