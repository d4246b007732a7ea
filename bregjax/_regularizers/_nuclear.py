"""The nuclear norm: it switches singular values on and off."""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from bregjax._numerics import wide_dtype, widened
from bregjax._regularizers._base import Regularizer
from bregjax._regularizers._matrices import fold, matmul, rank_tolerance, singular_values, svd
from bregjax._regularizers._spectral import (
    NuclearState,
    Shrinkage,
    basis_widths,
    draw_basis,
    shrink_by_gram,
    shrink_by_svd,
    shrink_leading,
)
from bregjax._sharding import beside
from bregjax._validation import check_axes, check_choice, check_schedule, check_whole, known_number

Method = Literal["svd", "gram", "randomized", "warm"]


def _derivative(
    dx: jax.Array, u: jax.Array, s: jax.Array, vt: jax.Array, f: jax.Array, slope: jax.Array
) -> jax.Array:
    """The derivative of X ↦ U·diag(f(σ))·Vᵀ along ``dx``; it is finite for equal singular values.

    In the singular basis it multiplies the symmetric part by (fᵢ−fⱼ)/(σᵢ−σⱼ), the skew part by
    (fᵢ+fⱼ)/(σᵢ+σⱼ), and the part outside the basis by fᵢ/σᵢ.
    """

    def ratio(a: jax.Array, b: jax.Array, otherwise: jax.Array) -> jax.Array:
        return jnp.where(b == 0, otherwise, a / jnp.where(b == 0, 1, b))

    zero = jnp.zeros_like(s)
    left, right = matmul(u.T, dx), matmul(dx, vt.T)
    inside = matmul(left, vt.T)
    plus = ratio(f[:, None] + f, s[:, None] + s, zero)
    minus = ratio(f[:, None] - f, s[:, None] - s, slope)
    core = minus * (inside + inside.T) / 2 + plus * (inside - inside.T) / 2
    outside = ratio(f, s, zero)
    rows = matmul((right - matmul(u, inside)) * outside, vt)
    columns = matmul(u * outside, left - matmul(inside, vt))
    return matmul(u, matmul(core, vt)) + rows + columns


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shrink(
    how: "_Nuclear", matrix: jax.Array, step: jax.Array, limit: jax.Array, state: Any
) -> tuple[jax.Array, Any]:
    """U·diag(f(σ))·Vᵀ and the next state."""
    return how.shrink(matrix, step, limit, state)


@_shrink.defjvp
def _(how: "_Nuclear", primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    matrix, step, limit, _ = primals
    dx, dstep, _, _ = tangents
    u, s, vt = svd(matrix)
    f = Shrinkage(step, limit, how.energy)(s)
    live = (f > 0).astype(s.dtype)
    change = _derivative(dx, u, s, vt, f, live) - dstep * matmul(u * live, vt)
    shrunk, state = _shrink(how, *primals)
    return (shrunk, state), (change, jax.tree.map(_no_tangent, state))


def _no_tangent(x: jax.Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@jax.custom_jvp
def _polar(matrix: jax.Array) -> jax.Array:
    """U·Vᵀ over the singular values that are not rounding error."""
    u, s, vt = svd(matrix)
    return matmul(u * (s > rank_tolerance(matrix, s)).astype(s.dtype), vt)


@_polar.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (matrix,), (dx,) = primals, tangents
    u, s, vt = svd(matrix)
    live = (s > rank_tolerance(matrix, s)).astype(s.dtype)
    return matmul(u * live, vt), _derivative(dx, u, s, vt, live, jnp.zeros_like(s))


@dataclasses.dataclass(frozen=True)
class _Nuclear(Regularizer):
    row_axes: tuple[int, ...] | None
    method: Method
    rank: int | optax.Schedule | None
    energy: float
    tolerance: float

    def value(self, x: jax.Array) -> jax.Array:
        matrix, _ = fold(widened(x), self.row_axes)
        return jnp.sum(singular_values(matrix)).astype(x.dtype)

    def subgradient(self, x: jax.Array) -> jax.Array:
        matrix, unfold = fold(widened(x), self.row_axes)
        return unfold(_polar(matrix)).astype(x.dtype)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return self.prox_with_state(x, step, self.init_state(x, 0))[0]

    def evidence(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError(
            "nuclear() puts singular values to sleep, not entries: it cannot be landed on a number"
            " of entries, nor steered with exact=True."
        )

    def init_state(self, x: jax.Array, index: int) -> NuclearState:
        matrix, _ = fold(x, self.row_axes)
        columns, dtype = min(matrix.shape), wide_dtype(x.dtype)
        widths = basis_widths(columns)
        basis = None
        if self.method == "warm":
            width = widths[-1] if widths else 1
            # The matrix is decomposed on each device, so each of them needs the whole basis.
            basis = beside(draw_basis(jax.random.key(index), columns, width, dtype), x)
        truncated = self.method in ("randomized", "warm")
        return NuclearState(
            rank=jnp.zeros([], jnp.int32),
            rank_limit=jnp.asarray(columns, jnp.int32),
            count=jnp.zeros([], jnp.int32),
            basis=basis,
            width=jnp.asarray(widths[0] if widths and truncated else columns, jnp.int32),
            error=jnp.zeros([], dtype),
            settled=jnp.ones([], bool),
            rounds=jnp.zeros([], jnp.int32),
            overflows=jnp.zeros([], jnp.int32),
            seed=jnp.asarray(index, jnp.int32) if truncated else None,
        )

    def prox_with_state(
        self, x: jax.Array, step: ArrayLike, state: NuclearState
    ) -> tuple[jax.Array, NuclearState]:
        matrix, unfold = fold(widened(x), self.row_axes)
        wide = matrix.shape[0] < matrix.shape[1]
        limit = state.rank_limit
        if self.rank is not None:
            rank = self.rank(state.count) if callable(self.rank) else self.rank
            limit = jnp.minimum(limit, jnp.asarray(rank, jnp.int32))
        step = jnp.asarray(step, matrix.dtype)
        shrunk, state = _shrink(self, matrix.T if wide else matrix, step, limit, state)
        state = state._replace(count=jnp.asarray(optax.safe_increment(state.count)))
        return unfold(shrunk.T if wide else shrunk).astype(x.dtype), state

    def shrink(
        self, matrix: jax.Array, step: jax.Array, limit: jax.Array, state: NuclearState
    ) -> tuple[jax.Array, NuclearState]:
        """The prox of a tall matrix."""
        if self.method in ("svd", "gram"):
            exact = shrink_by_svd if self.method == "svd" else shrink_by_gram
            shrunk = exact(matrix, Shrinkage(step, limit, self.energy))
            return shrunk.matrix, state._replace(rank=shrunk.rank)

        # Under vmap one matrix after the other: in a batch each would go through every branch.
        @jax.custom_batching.sequential_vmap
        def truncated(
            matrix: jax.Array, step: jax.Array, limit: jax.Array, state: NuclearState
        ) -> tuple[jax.Array, NuclearState]:
            shrinkage = Shrinkage(step, limit, self.energy)
            return shrink_leading(matrix, shrinkage, state, self.tolerance)

        return truncated(matrix, step, limit, state)


def nuclear(
    *,
    row_axes: int | tuple[int, ...] | None = None,
    method: Method = "svd",
    rank: int | optax.Schedule | None = None,
    energy: float = 1.0,
    tolerance: float = 2e-5,
) -> Regularizer:
    r"""The nuclear norm, :math:`J(X) = \sum_i \sigma_i(X)`, for matrices of low rank.

    .. math:: \operatorname{prox}_{sJ}(X) = U \operatorname{diag}(\max(\sigma_i - s,\, 0))\, V^\top,
        \qquad X = U \operatorname{diag}(\sigma)\, V^\top

    The subgradient is :math:`U_r V_r^\top` over the singular values that are not rounding error.
    ``method`` says how the prox is computed:

    ================  ==========================================================================
    ``"svd"``         a full singular value decomposition at every step
    ``"gram"``        the eigenvalues of the smaller of :math:`X^\top X` and :math:`X X^\top`:
                      faster; a singular value σ has the error
                      :math:`\epsilon\sigma_1^2/\sigma`, ε = 1e-7 in float32, 2e-16 in float64
    ``"randomized"``  only the live singular values, by subspace iteration from a random basis
    ``"warm"``        the same from the basis of the previous step, which has hardly changed: one or
                      two rounds suffice
    ================  ==========================================================================

    The last two iterate until the bound on their error, :math:`(\sum_i \|X^\top u_i - \sigma_i
    v_i\|^2)^{1/2}` over the live singular values, or the same with :math:`X v_i - \sigma_i u_i`, is
    below ``tolerance`` or rounding. Then they go on for up to four rounds until none of the next
    directions in the basis could be live. The error is smaller than the bound: about a tenth where
    the other singular values are far below the threshold, about a third where they are next to it.

    The basis has eight columns more than there are live singular values, so it contains the next
    directions before their singular values become live. If it becomes too small, it is made larger
    within the same step. If an eighth (of 64) to a third (of many) of the singular values are live,
    the decomposition is a full one. Every 16 steps one column is drawn anew, so that a direction
    outside the basis is found too, if not at once. With ``rank`` or ``energy`` the bound does not
    hold: a cut between two singular values that are close to each other amplifies errors.
    `NuclearState` reports all this.

    Derivatives cost a full decomposition, whatever the method. A direct call of ``prox`` has no
    state: it starts from a random basis, and with a schedule's first rank.

    Args:
      row_axes: the axes that make the rows of the matrix; the others make its columns. The default
        is all but the last: ``(kh·kw·in, out)`` for a Conv kernel. ``(-2, -1)`` gives the authors'
        ``(out·in, kh·kw)``.
      method: ``"svd"``, ``"gram"``, ``"randomized"`` or ``"warm"``.
      rank: how many singular values may live at most, the largest: a number or a schedule of the
        step. The prox is then that of J on the matrices of at most this rank, which are not a
        convex set. `grow_rank_on_plateau` sets a further limit.
      energy: keep only the first singular values that have this share of :math:`\sum_i f_i^2`,
        with :math:`f_i = \max(\sigma_i - s, 0)`; in (0, 1].
      tolerance: for the last two methods: the largest bound on the error, relative to the norm of
        the result. Values below about 1e-6 gain nothing in float32.

    Returns:
        A `Regularizer` for arrays of two or more dimensions, with a `NuclearState` for each.

    Raises:
        ValueError: if ``row_axes`` is not a tuple of distinct integers, the method is unknown, or
          another argument out of range; when applied, if the array has fewer than two dimensions
          or an axis is out of range.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> x = jnp.diag(jnp.array([3.0, 0.2]))
        >>> print(bregjax.nuclear().prox(x, 1.0))
        [[2. 0.]
         [0. 0.]]

    Notes:
        On a CPU, JAX uses the decompositions of SciPy's LAPACK, which is mostly OpenBLAS. Its
        threads get in the way of XLA's: set ``OPENBLAS_NUM_THREADS=1`` in the environment before
        Python starts. The truncated methods square the norms of residuals: in float32 their bound
        is not exact for matrices smaller than about 1e-12 or larger than 1e18.

    References:
        Cai, Candès, Shen, `A Singular Value Thresholding Algorithm for Matrix Completion
        <https://arxiv.org/abs/0810.3286>`_, SIAM J. Optim. 20, 2010, Theorem 2.1. Halko,
        Martinsson, Tropp, `Finding Structure with Randomness <https://arxiv.org/abs/0909.4061>`_,
        SIAM Review 53, 2011, Algorithm 4.4.
    """
    check_choice("method", method, get_args(Method))
    if callable(rank) and not isinstance(rank, type):
        check_schedule("rank", rank, at_least=0)
    elif rank is not None:
        check_whole("rank", rank)
    energy = known_number("energy", energy, above=0, at_most=1)
    tolerance = known_number("tolerance", tolerance, above=0)
    rows = None if row_axes is None else check_axes("row_axes", row_axes)
    return _Nuclear(rows, method, rank, energy, tolerance)
