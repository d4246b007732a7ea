"""The nuclear norm, whose units are singular values."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bregjax._numerics import wide_dtype
from bregjax._regularizers._base import Regularizer
from bregjax._regularizers._group import check_axes


def fold(
    x: jax.Array, row_axes: tuple[int, ...] | None = None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Flattens ``x`` to a matrix whose rows run over ``row_axes`` (None: all axes but the last).

    Returns the matrix and the function that folds such a matrix back.
    """
    if x.ndim < 2:
        raise ValueError(
            f"a matrix needs an array of two or more dimensions, got shape {x.shape}."
            " Leave such parameters out with mask=…."
        )
    named = tuple(range(x.ndim - 1)) if row_axes is None else row_axes
    if any(not -x.ndim <= a < x.ndim for a in named):
        raise ValueError(f"row_axes={row_axes} is out of range for shape {x.shape}.")
    rows = tuple(a % x.ndim for a in named)
    if len(set(rows)) != len(rows):
        raise ValueError(f"row_axes={row_axes} names an axis twice in {x.ndim} dimensions.")
    order = rows + tuple(a for a in range(x.ndim) if a not in rows)
    permuted_shape = [x.shape[a] for a in order]
    matrix = x.transpose(order).reshape(math.prod(permuted_shape[: len(rows)]), -1)

    def unfold(matrix: jax.Array) -> jax.Array:
        return matrix.reshape(permuted_shape).transpose([order.index(a) for a in range(x.ndim)])

    return matrix, unfold


def rank_tolerance(matrix: jax.Array, singular_values: jax.Array) -> jax.Array:
    """Below this a singular value counts as rounding error: max(m, n)·ε·σ₁."""
    return jnp.max(singular_values) * max(matrix.shape) * jnp.finfo(matrix.dtype).eps


_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _derivative(
    dx: jax.Array, u: jax.Array, s: jax.Array, vt: jax.Array, f: jax.Array, slope: jax.Array
) -> jax.Array:
    """The derivative of X ↦ U·diag(f(σ))·Vᵀ along ``dx``, finite where singular values meet.

    In the singular basis it multiplies the symmetric part by (fᵢ−fⱼ)/(σᵢ−σⱼ), the skew part by
    (fᵢ+fⱼ)/(σᵢ+σⱼ), and what lies outside the basis by fᵢ/σᵢ.
    """

    def ratio(a: jax.Array, b: jax.Array, otherwise: jax.Array) -> jax.Array:
        return jnp.where(b == 0, otherwise, a / jnp.where(b == 0, 1, b))

    zero = jnp.zeros_like(s)
    left, right = _matmul(u.T, dx), _matmul(dx, vt.T)
    inside = _matmul(left, vt.T)
    plus = ratio(f[:, None] + f, s[:, None] + s, zero)
    minus = ratio(f[:, None] - f, s[:, None] - s, slope)
    core = minus * (inside + inside.T) / 2 + plus * (inside - inside.T) / 2
    outside = ratio(f, s, zero)
    rows = _matmul((right - _matmul(u, inside)) * outside, vt)
    columns = _matmul(u * outside, left - _matmul(inside, vt))
    return _matmul(u, _matmul(core, vt)) + rows + columns


@jax.custom_jvp
def _shrink(matrix: jax.Array, step: jax.Array) -> jax.Array:
    """U·diag(max(σ − step, 0))·Vᵀ."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return _matmul(u * jnp.maximum(s - step, 0), vt)


@_shrink.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (matrix, step), (dx, dstep) = primals, tangents
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    f, live = jnp.maximum(s - step, 0), (s > step).astype(s.dtype)
    change = _derivative(dx, u, s, vt, f, live) - dstep * _matmul(u * live, vt)
    return _matmul(u * f, vt), change


@jax.custom_jvp
def _polar(matrix: jax.Array) -> jax.Array:
    """U·Vᵀ over the singular values that are not rounding error."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return _matmul(u * (s > rank_tolerance(matrix, s)).astype(s.dtype), vt)


@_polar.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (matrix,), (dx,) = primals, tangents
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    live = (s > rank_tolerance(matrix, s)).astype(s.dtype)
    return _matmul(u * live, vt), _derivative(dx, u, s, vt, live, jnp.zeros_like(s))


@dataclasses.dataclass(frozen=True)
class _Nuclear(Regularizer):
    row_axes: tuple[int, ...] | None

    def value(self, x: jax.Array) -> jax.Array:
        matrix, _ = fold(x.astype(wide_dtype(x.dtype)), self.row_axes)
        return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False)).astype(x.dtype)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        matrix, unfold = fold(x.astype(wide_dtype(x.dtype)), self.row_axes)
        return unfold(_shrink(matrix, jnp.asarray(step, matrix.dtype))).astype(x.dtype)

    def subgradient(self, x: jax.Array) -> jax.Array:
        matrix, unfold = fold(x.astype(wide_dtype(x.dtype)), self.row_axes)
        return unfold(_polar(matrix)).astype(x.dtype)


def nuclear(*, row_axes: int | tuple[int, ...] | None = None) -> Regularizer:
    r"""The nuclear norm, :math:`J(X) = \sum_i \sigma_i(X)`, for matrices of low rank.

    .. math:: \operatorname{prox}_{sJ}(X) = U \operatorname{diag}(\max(\sigma_i - s,\, 0))\, V^\top,
        \qquad X = U \operatorname{diag}(\sigma)\, V^\top

    The subgradient is :math:`U_r V_r^\top` over the singular values that are not rounding error.
    Every call computes a full singular value decomposition.

    Args:
      row_axes: the axes that make the rows of the matrix; the others make its columns. The default
        is all but the last: ``(kh·kw·in, out)`` for a Conv kernel. ``(-2, -1)`` gives the authors'
        ``(out·in, kh·kw)``.

    Returns:
        A `Regularizer` for arrays of two or more dimensions.

    Raises:
        ValueError: if ``row_axes`` is no tuple of distinct integers; when applied, if the array
          has fewer than two dimensions or an axis is out of range.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> x = jnp.diag(jnp.array([3.0, 0.2]))
        >>> print(bregjax.nuclear().prox(x, 1.0))
        [[2. 0.]
         [0. 0.]]

    References:
        Cai, Candès, Shen, `A Singular Value Thresholding Algorithm for Matrix Completion
        <https://arxiv.org/abs/0810.3286>`_, SIAM J. Optim. 20, 2010, Theorem 2.1.
    """
    return _Nuclear(None if row_axes is None else check_axes("row_axes", row_axes))
