"""Shrinking the singular values of a matrix: exactly, or the leading ones by subspace iteration.

All functions take tall matrices, with at least as many rows as columns.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bregjax._numerics import power_of_two_near
from bregjax._regularizers._matrices import matmul, svd


@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """From singular values, in falling order, to f(σ): max(σ − step, 0) or, for the last ones, 0.

    A singular value is live if it is one of the first ``limit`` and above ``step``.
    """

    step: jax.Array
    limit: jax.Array
    """how many may live"""
    energy: float
    """keep the first live ones that make up this share of Σ f²"""

    def live(self, s: jax.Array) -> jax.Array:
        """Which are live."""
        return (s > self.step) & (jnp.arange(len(s), dtype=jnp.int32) < self.limit)

    def uncertain(self, s: jax.Array, distances: jax.Array) -> jax.Array:
        """Which of the first sleeping ones would be live if they were larger by ``distances``."""
        live = self.live(s)
        count, place = _count(live), jnp.arange(len(s), dtype=jnp.int32)
        smallest = jnp.min(jnp.where(live, s, jnp.inf), initial=jnp.inf)
        cutoff = jnp.where(count < self.limit, self.step, smallest)
        return (place >= count) & (place < count + _WATCHED) & (s + distances > cutoff)

    def __call__(self, s: jax.Array) -> jax.Array:
        """f(σ)."""
        f = jnp.where(self.live(s), s - self.step, 0)
        if self.energy == 1:
            return f
        largest = jnp.max(f, initial=0)
        squares = jnp.square(f / jnp.where(largest > 0, largest, 1))
        before = jnp.cumsum(squares) - squares
        return jnp.where(before < self.energy * jnp.sum(squares), f, 0)


_ROOM = 8  # columns of a basis beyond the live ones, for directions that may become live next
_WATCHED = 4  # how many of those columns may keep the iteration going
_REFRESHED_EVERY = 16  # calls
_MAX_ROUNDS = 30
_MAX_ROUNDS_TO_SETTLE = 4
_MIN_ROUNDS_FROM_RANDOM = 3  # a random basis has only a little of each direction at first


class Shrunk(NamedTuple):
    """A matrix after its singular values have been shrunk."""

    matrix: jax.Array
    rank: jax.Array
    """shape (), int32"""


def shrink_by_svd(matrix: jax.Array, shrinkage: Shrinkage) -> Shrunk:
    """By a full singular value decomposition."""
    return _shrink_right(matrix, *_decompose(matrix), shrinkage)


def _decompose(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Singular values in falling order, and right singular vectors, of a tall matrix.

    For X = Q·R they are those of R. A prox does not need Q, so for a matrix at least twice as tall
    as wide this takes about half the time.
    """
    rows, columns = matrix.shape
    if rows >= 2 * columns:
        matrix = jnp.linalg.qr(matrix, mode="r")
    _, s, vt = svd(matrix)
    return s, vt.T


def shrink_by_gram(matrix: jax.Array, shrinkage: Shrinkage) -> Shrunk:
    """By the eigenvalues of XᵀX, the squares of the singular values.

    Squaring costs accuracy: a singular value σ has the error ε·σ₁²/σ.
    """
    unit = power_of_two_near(jnp.max(jnp.abs(matrix), initial=0))
    scaled = matrix * (1 / unit)
    eigenvalues, v = jnp.linalg.eigh(matmul(scaled.T, scaled))
    s = unit * jnp.sqrt(jnp.maximum(eigenvalues[::-1], 0))
    return _shrink_right(matrix, s, v[:, ::-1], shrinkage)


def _shrink_right(matrix: jax.Array, s: jax.Array, v: jax.Array, shrinkage: Shrinkage) -> Shrunk:
    """X·V·diag(f(σ)/σ)·Vᵀ, from all singular values and right singular vectors."""
    f = shrinkage(s)
    return Shrunk(matmul(matrix, matmul(v * _factors(f, s), v.T)), _rank(f))


def _factors(f: jax.Array, s: jax.Array) -> jax.Array:
    """f/σ, or 0 where σ = 0."""
    return f / jnp.where(s > 0, s, 1)


class NuclearState(NamedTuple):
    """What `nuclear` keeps for each matrix.

    In a `ProxState` each field is a tree shaped like the parameters.
    """

    rank: jax.Array
    """number of live singular values, shape (), int32"""
    rank_limit: jax.Array
    """how many there may be at most, shape (), int32"""
    count: jax.Array
    """steps done, shape (), int32"""
    basis: jax.Array | None
    """directions of right singular vectors of the tall matrix, of any length, shape (columns,
    largest width). A matrix that is thin enough to be decomposed in full does not use it; there it
    has shape (columns, 1). None unless the method is ``"warm"``"""
    width: jax.Array
    """how many columns of the basis are in use; as many as the matrix has means a full
    decomposition"""
    error: jax.Array
    """bound on the Frobenius norm of the error of the last prox; 0 with the exact methods"""
    settled: jax.Array
    """whether none of the next directions in the basis could have been live in the last prox,
    shape (), bool; a direction outside the basis still may have been"""
    rounds: jax.Array
    """rounds of the last iteration after the first one, shape (), int32"""
    overflows: jax.Array
    """how often the basis had to be made larger because it had too little room for the live
    singular values, shape (), int32"""
    seed: jax.Array | None
    """seed of random columns, shape (), int32; None with the exact methods"""


def basis_widths(columns: int) -> tuple[int, ...]:
    """The widths that a basis can have: 16, 24, 40, 64, 96, 160, … up to a third of the columns."""
    widths = (width * 4**power for power in range(columns.bit_length()) for width in (16, 24, 40))
    return tuple(width for width in widths if 3 * width <= columns)


def draw_basis(key: jax.Array, columns: int, width: int, dtype: DTypeLike) -> jax.Array:
    """Random columns, which have a component in every direction."""
    return jax.random.normal(key, (columns, width), dtype)


def _refresh(basis: jax.Array, width: jax.Array, key: jax.Array, count: jax.Array) -> jax.Array:
    """Every few calls, replace the last column in use and all zero columns by random ones.

    The iteration would never find a direction that is orthogonal to the whole basis. Between two
    replacements the last column turns towards the largest singular value outside the basis.
    """

    def refresh(basis: jax.Array) -> jax.Array:
        columns, most = basis.shape
        drawn = draw_basis(key, columns, most, basis.dtype)
        stale = (jnp.arange(most, dtype=jnp.int32) == width - 1) | ~jnp.any(basis != 0, axis=0)
        return jnp.where(stale, drawn, basis)

    return lax.cond(count % _REFRESHED_EVERY == 0, refresh, lambda basis: basis, basis)


def shrink_leading(
    matrix: jax.Array, shrinkage: Shrinkage, state: NuclearState, tolerance: float
) -> tuple[jax.Array, NuclearState]:
    """By subspace iteration, from a basis that grows until it has room to spare.

    Args:
      matrix: X, tall.
      shrinkage: f, which is zero from some singular value on.
      state: its basis is where to start, with ``width`` columns at first; None draws a random one.
      tolerance: the bound on the error, relative to the result, at which the iteration stops.

    Returns:
        The prox, by `_iterate`, and what the next call starts from. If more singular values are
        live than the largest basis has room for, the prox comes from a full decomposition.
    """
    columns = matrix.shape[1]
    widths = basis_widths(columns)
    assert state.seed is not None
    basis, key = state.basis, jax.random.fold_in(jax.random.key(state.seed), state.count)
    if basis is not None and widths:
        basis = _refresh(basis, state.width, key, state.count)
    fresh = jnp.bool_(True) if basis is None else state.count == 0

    def attempt(width: int, basis: jax.Array | None, fresh: jax.Array) -> _Attempt:
        least = jnp.where(fresh, _MIN_ROUNDS_FROM_RANDOM, 0)
        if basis is None:
            start = draw_basis(key, columns, width, matrix.dtype)
            rounds, found = _iterate(matrix, shrinkage, start, tolerance, least)
        else:
            rounds, found = _iterate(matrix, shrinkage, basis[:, :width], tolerance, least)
            # Directions whose singular value is zero are left to `_refresh`.
            basis = basis.at[:, :width].set(jnp.where(found.s > 0, found.right, 0))
        f = shrinkage(found.s)
        shrunk = Shrunk(matmul(found.left * _factors(f, found.s), found.right.T), _rank(f))
        live = _count(shrinkage.live(found.s))
        return _Attempt(shrunk, basis, live, found.error, found.settled, rounds)

    def decompose(basis: jax.Array | None, fresh: jax.Array) -> _Attempt:
        del fresh
        s, v = _decompose(matrix)
        shrunk = _shrink_right(matrix, s, v, shrinkage)
        basis = None if basis is None else v[:, : basis.shape[1]]
        live, nothing = _count(shrinkage.live(s)), jnp.zeros([], matrix.dtype)
        return _Attempt(shrunk, basis, live, nothing, jnp.bool_(True), jnp.int32(0))

    branches = [*(functools.partial(attempt, width) for width in widths), decompose]
    capacities = jnp.asarray([*(width - _ROOM for width in widths), columns], jnp.int32)

    def overflows(tried: tuple[jax.Array, _Attempt]) -> jax.Array:
        return tried[1].live > capacities[tried[0]]

    def larger(tried: tuple[jax.Array, _Attempt]) -> tuple[jax.Array, _Attempt]:
        index, attempt = tried
        return index + 1, lax.switch(index + 1, branches, attempt.basis, jnp.bool_(True))

    def grow(tried: tuple[jax.Array, _Attempt]) -> tuple[jax.Array, _Attempt]:
        return lax.while_loop(overflows, larger, tried)

    first = jnp.sum(state.width > jnp.asarray(widths, jnp.int32), dtype=jnp.int32)
    tried = (first, lax.switch(first, branches, basis, fresh))
    # The condition avoids the loop, and the copies that it makes of the matrix, where it can.
    index, found = lax.cond(overflows(tried), grow, lambda tried: tried, tried)
    # Back to the smaller basis once it would have room to spare.
    smaller = jnp.maximum(index - 1, 0)
    next_index = jnp.where(found.live + _ROOM // 2 <= capacities[smaller], smaller, index)
    return found.shrunk.matrix, state._replace(
        rank=found.shrunk.rank,
        basis=found.basis,
        width=jnp.asarray([*widths, columns], jnp.int32)[next_index],
        error=found.error,
        settled=found.settled,
        rounds=found.rounds,
        overflows=state.overflows + index - first,
    )


class _Attempt(NamedTuple):
    shrunk: Shrunk
    basis: jax.Array | None
    live: jax.Array
    error: jax.Array
    settled: jax.Array
    rounds: jax.Array


class _Ritz(NamedTuple):
    """Approximate singular vectors u and v, and what is known of them."""

    left: jax.Array
    """X·v after a step from u, u after one from v"""
    right: jax.Array
    """v after a step from u, Xᵀ·u after one from v"""
    s: jax.Array
    error: jax.Array
    """norm of the residuals of the live ones"""
    converged: jax.Array
    """whether that is below the tolerance"""
    settled: jax.Array
    """whether none of the next ones could be live"""


def _iterate(
    matrix: jax.Array, shrinkage: Shrinkage, v: jax.Array, tolerance: float, least: jax.Array
) -> tuple[jax.Array, _Ritz]:
    """Subspace iteration with Rayleigh-Ritz steps, from u to v and from v to u in turn.

    It begins with orthonormal u for X·v. From u, a half step takes the singular value decomposition
    of Xᵀ·u: v, σ and turned u with Xᵀ·uᵢ = σᵢ·vᵢ. Then eᵢ = X·vᵢ − σᵢ·uᵢ is orthogonal to all u, so
    that u, σ, v are exact for X − E with E = Σᵢ eᵢ·vᵢᵀ over the live i. The result is made of X·v
    and v, that is, by one more product with X: Σᵢ f(σᵢ)/σᵢ·(X·vᵢ)·vᵢᵀ = A + Σᵢ f(σᵢ)/σᵢ·eᵢ·vᵢᵀ,
    where A is the prox of X − E. A prox is firmly non-expansive and f(σᵢ) ≤ σᵢ, so both the result
    and the prox of X are in the ball around A + E/2 with radius ‖E‖/2. The result is off by at most
    ‖E‖, and by far less where the other singular values are far below the threshold, unless one
    that should live is missing. One may become live while σᵢ + ‖eᵢ‖ of one of the next few is above
    the threshold: then the iteration goes on for a few more rounds. It never stops before ``least``
    rounds. The next half step does the same to Xᵀ, from v: its result is made of u and Xᵀ·u.
    """
    # The residuals of an exact basis grow as the root of the number of terms in a product.
    rounding = max(8, math.sqrt(matrix.shape[0])) * jnp.finfo(matrix.dtype).eps

    def half_step(old: jax.Array, image: jax.Array, apply: Callable) -> _Ritz:
        q, r = _qr(image)
        w, s, zt = jnp.linalg.svd(r)
        new = matmul(q, w)
        back = apply(new)
        live, residuals = shrinkage.live(s), jnp.linalg.norm(back - matmul(old, zt.T) * s, axis=0)
        error = jnp.linalg.norm(jnp.where(live, residuals, 0))
        floor = rounding * jnp.linalg.norm(jnp.where(live, s, 0))
        converged = error <= jnp.maximum(tolerance * jnp.linalg.norm(shrinkage(s)), floor)
        uncertain = shrinkage.uncertain(s, residuals - rounding * s[0])
        return _Ritz(new, back, s, error, converged, ~jnp.any(uncertain))

    def image_of_v(v: jax.Array) -> jax.Array:
        return matmul(matrix, v)

    def image_of_u(u: jax.Array) -> jax.Array:
        # On the CPU this is four times as fast as Xᵀ·u. The barrier keeps XLA from undoing it.
        return lax.optimization_barrier(matmul(u.T, matrix)).T

    def from_u(u: jax.Array, image: jax.Array) -> _Ritz:
        ritz = half_step(u, image, image_of_v)
        return ritz._replace(left=ritz.right, right=ritz.left)

    def from_v(v: jax.Array, image: jax.Array) -> _Ritz:
        return half_step(v, image, image_of_u)

    def round_trip(carry: tuple[jax.Array, _Ritz]) -> tuple[jax.Array, _Ritz]:
        rounds, ritz = carry
        ritz = from_v(ritz.right, ritz.left)
        ritz = lax.cond(
            unfinished(rounds, ritz), lambda r: from_u(r.left, r.right), lambda r: r, ritz
        )
        return rounds + 1, ritz

    def unfinished(rounds: jax.Array, ritz: _Ritz) -> jax.Array:
        uncertain = ~ritz.settled & (rounds < _MAX_ROUNDS_TO_SETTLE)
        return (rounds < _MAX_ROUNDS) & (~ritz.converged | uncertain | (rounds < least))

    u, _ = _qr(image_of_v(v))
    start = (jnp.int32(0), from_u(u, image_of_u(u)))
    return lax.while_loop(lambda carry: unfinished(*carry), round_trip, start)


def _qr(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal Q and upper triangular R with Y = Q·R.

    If the columns are nearly orthogonal, as from a good basis, it uses Cholesky's decomposition of
    YᵀY, which consists of products of matrices and takes a third of Householder's time.
    """
    norms = jnp.linalg.norm(y, axis=0)
    scaled = y / jnp.where(norms > 0, norms, 1)
    lower = jnp.linalg.cholesky(matmul(scaled.T, scaled))

    def by_cholesky() -> tuple[jax.Array, jax.Array]:
        identity = jnp.eye(len(norms), dtype=y.dtype)
        inverse = lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
        return matmul(scaled, inverse.T), lower.T * norms

    good = jnp.min(jnp.diagonal(lower), initial=1) > 0.7  # false for NaN
    return lax.cond(good, by_cholesky, lambda: tuple(jnp.linalg.qr(y)))


def _rank(f: jax.Array) -> jax.Array:
    return _count(f > 0)


def _count(marks: jax.Array) -> jax.Array:
    return jnp.sum(marks, dtype=jnp.int32)
