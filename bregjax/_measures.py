"""Measures of sparsity: densities, live groups, ranks and the value of the regularizer."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bregjax._leaves import Mask, leaf_name, selected_leaves, selected_matrices, stacked_leaves
from bregjax._numerics import widened
from bregjax._regularizers._base import Regularizer, axes_of_groups, check_regularizer
from bregjax._regularizers._matrices import fold, rank_tolerance, singular_values
from bregjax._top_k import count_true
from bregjax._validation import check_array, check_numbers, check_range


def live_groups(x: jax.Array, groups: Regularizer) -> jax.Array:
    """Mark the groups of one array that have a non-zero entry.

    Args:
      x: an array.
      groups: a regularizer with these groups: ``per_neuron()``, ``per_kernel()``,
        ``per_filter()``, ``per_input_channel()``, ``group_l2(…)``, or ``l1()`` for entries.

    Returns:
        Booleans, one for each group, in the shape of ``x`` without the axes of a group. Their sum
        is the number of live groups, their mean the share of live groups.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
        >>> print(bregjax.live_groups(kernel, bregjax.per_neuron()))
        [ True False  True]
    """
    check_regularizer(groups, "groups")
    check_array("x", x)
    x = jnp.asarray(x)
    return jnp.any(x != 0, axis=axes_of_groups(groups, x.ndim))


def density(
    params: Any, groups: Regularizer | None = None, *, mask: Mask | None = None
) -> jax.Array:
    """Compute the share of entries, or of groups, that are not zero.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      groups: what is counted, as in `live_groups`; by default entries.
      mask: which leaves count, as in `linbreg`. The default is those of `weight_mask`, so
        that biases and norms are left out.

    Returns:
        A scalar in [0, 1], float32; jittable.

    Raises:
        ValueError: if ``mask`` marks no entry or does not fit.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
        >>> print(bregjax.density(params), bregjax.density(params, bregjax.per_neuron()))
        0.25 0.5
    """
    leaves = [x for _, x in selected_leaves(params, mask) if x.size]
    if not leaves:
        raise ValueError("mask marks no entry of params: there is nothing to count.")
    lives = [x != 0 if groups is None else live_groups(x, groups) for x in leaves]
    total = sum(math.prod(live.shape) for live in lives)
    if total < 2**32:
        return count_true(lives).astype(jnp.float32) / float(total)
    # 32 bits are too few for the number of entries, but enough for a row; the sum is rounded.
    rows = [jnp.sum(jnp.atleast_1d(live), axis=-1, dtype=jnp.uint32) for live in lives]
    alive = sum((jnp.sum(x.astype(jnp.float32)) for x in rows), start=jnp.float32(0))
    return alive / float(total)


def effective_rank(x: jax.Array, tolerance: ArrayLike | None = None) -> jax.Array:
    r"""Count the singular values of one array above a tolerance.

    Args:
      x: an array of two or more dimensions; all axes but the last make the rows of the matrix. For
        stacked layers use `jax.vmap`.
      tolerance: the largest singular value that counts as zero, in the unit of ``x``. The default
        is rounding error, :math:`\max(m, n)\,\epsilon\,\sigma_1`.

    Returns:
        A scalar, int32; jittable.

    Raises:
        ValueError: if ``x`` has fewer than two dimensions.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.effective_rank(jnp.outer(jnp.arange(4.0), jnp.ones(3))))
        1
    """
    check_array("x", x)
    if jnp.ndim(x) < 2:
        raise ValueError(f"x must have two or more dimensions, got shape {jnp.shape(x)}.")
    matrix, _ = fold(widened(x))
    s = singular_values(matrix)
    if tolerance is None:
        tolerance = rank_tolerance(matrix, s)
    else:
        check_range("tolerance", tolerance, at_least=0)
    return jnp.sum(s > jnp.asarray(tolerance, s.dtype), dtype=jnp.int32)


def relative_rank(
    params: Any,
    *,
    mask: Mask | None = None,
    tolerance: ArrayLike | None = None,
    stacked: Mask | None = None,
) -> jax.Array:
    """Compute the rank of all arrays as a share of their largest possible rank, for `steer`.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      mask: which leaves count, as in `linbreg`; by default those of `weight_mask`.
      tolerance: as in `effective_rank`. Parameters narrower than float32 need one, because their
        rounding errors give every array full rank.
      stacked: which leaves hold a kernel for each of several layers, along their first axis, as in
        `sparsity_report`.

    Returns:
        The sum of the `effective_rank` of all leaves, divided by the sum of their largest possible
        ranks: a scalar in [0, 1], float32; jittable.

    Raises:
        ValueError: if ``mask`` marks no entry, marks a vector or does not fit.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.relative_rank({"kernel": jnp.outer(jnp.arange(4.0), jnp.ones(2))}))
        0.5
    """
    several = stacked_leaves(params, stacked)
    ranks, largest = jnp.int32(0), 0
    for path, x in selected_matrices(params, mask, several):
        layers = x if leaf_name(path) in several else x[None]
        if layers.size:
            found = jax.vmap(lambda matrix: effective_rank(matrix, tolerance))(layers)
            ranks += jnp.sum(found, dtype=jnp.int32)
            largest += len(layers) * min(fold(layers[0])[0].shape)
    if not largest:
        raise ValueError("mask marks no entry of params: there is nothing to count.")
    return ranks.astype(jnp.float32) / largest


def regularizer_value(
    params: Any, regularizer: Regularizer, strength: ArrayLike = 1.0, *, mask: Mask | None = None
) -> jax.Array:
    r"""Compute :math:`\lambda \sum_\ell J(\theta_\ell)` over the regularized leaves.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      regularizer: J.
      strength: λ.
      mask: which leaves count, as in `linbreg`; by default those of `weight_mask`.

    Returns:
        A scalar, in float32 or wider; jittable.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.ones(2)}
        >>> print(bregjax.regularizer_value(params, bregjax.l1(), strength=0.5))
        1.5
    """
    check_regularizer(regularizer)
    check_range("strength", strength, at_least=0)
    leaves = [widened(x) for _, x in selected_leaves(params, mask)]
    total = jnp.asarray(sum((regularizer.value(x) for x in leaves), start=0.0))
    return jnp.asarray(strength, total.dtype) * total


def sparsest_within(scores: Sequence[float], densities: Sequence[float], tolerance: float) -> int:
    """Pick the sparsest of several runs whose score is close to the best one's.

    Args:
      scores: how good each run is, such as accuracies on validation images; larger is better.
      densities: how dense each one is.
      tolerance: how far below the best score is good enough, at least 0, in the unit of the scores.

    Returns:
        The index of the run. Among equally sparse runs it is the one with the best score, and among
        these the first. Runs whose score is NaN are ignored.

    Raises:
        ValueError: if the lists differ in length, no score is a number, or ``tolerance`` is
          negative.

    Example:
        >>> import bregjax
        >>> bregjax.sparsest_within([0.98, 0.981, 0.97], [0.05, 0.2, 0.01], tolerance=0.002)
        0
    """
    check_range("tolerance", tolerance, at_least=0)
    check_numbers("scores", scores)
    check_numbers("densities", densities)
    if len(scores) != len(densities):
        raise ValueError(
            "scores and densities need an entry for each run, got"
            f" {len(scores)} scores and {len(densities)} densities."
        )
    known = [index for index, score in enumerate(scores) if not math.isnan(score)]
    if not known:
        raise ValueError(f"no run has a score, got scores={list(scores)}.")
    best = max(scores[index] for index in known)
    # Half a millionth of slack, because scores in float32 are rounded.
    good = [index for index in known if scores[index] >= best - tolerance - 5e-7]
    return min(good, key=lambda index: (densities[index], -scores[index]))
