"""Exact landing: exactly as many weights as were asked for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from bregjax._evidence import (
    DualReader,
    check_steps_through,
    check_trained,
    duals_of_leaves,
    leaves_with_dual,
    scales_like,
)
from bregjax._leaves import Mask, marks_of, without_variables
from bregjax._numerics import add_updates, wide_dtype, widened
from bregjax._regularizers._base import Regularizer, axes_of_groups, check_regularizer
from bregjax._regularizers._elementwise import l1
from bregjax._regularizers._norms import group_norms
from bregjax._scope import LayerCounts, Scope, check_scope
from bregjax._support import freeze_support
from bregjax._top_k import Pool, count_true, top_k
from bregjax._validation import (
    check_function,
    check_range,
    check_transformation,
    check_update,
    check_whole,
    known_number,
    raised_by,
)
from bregjax._when_due import when_due


def land(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    *,
    density: float | None = None,
    count: int | None = None,
    groups: Regularizer | None = None,
    scope: Scope = "global",
    mask: Mask | None = None,
    measure: Callable[[Any], jax.Array] | None = None,
    **extra_args: Any,
) -> Any:
    r"""Project the network to exactly the wanted number of weights, or of groups.

    The parameters are read off the dual at another strength, the nearest at which the count is met:

    .. math:: \theta = \operatorname{prox}_{\delta s \lambda J}(\delta v), \qquad
        \#\{\theta \neq 0\} = \text{count}, \quad s \text{ next to } 1

    The weights with the most evidence in the dual stay or wake up, no matter whether there were too
    many before or too few. The weakest of them are next to zero. Where several wake at the same
    strength, such as the entries of one group, the largest are taken, and the first of equal ones.
    Parameters that are not regularized do not change. Train on with `freeze_support`.

    Args:
      optimizer: what the network was trained with: `linbreg`, `adabreg`, `steer` of them, or a
        chain or partition with one in it. Of `steer` the strength is that of its next step. Not a
        wrapper that holds updates back, such as `optax.MultiSteps`: land what is inside it.
      state: its state, of `flax.nnx.Optimizer` its ``opt_state``.
      params: the parameters, such as ``nnx.state(model, nnx.Param)``.
      density: the share of the entries, or groups, that stay: exactly ``round(density * n)`` of n.
      count: their number, instead of ``density``.
      groups: what is counted, as in `live_groups`; by default entries. Give the regularizer's own.
      scope: who competes for staying, as in `steer`: all of them, but each layer keeps a few, or
        those of each layer for a number of its own.
      mask: which of the regularized leaves are counted, and landed; by default all with a dual.
      measure: what ``density`` is of, in another currency than entries or groups: from parameters
        to a number that grows with how many live, such as `shrunk_share`. The most entries or
        groups stay whose measure is at most ``density``.
      **extra_args: passed to the optimizer's ``update``, where it needs any.

    Returns:
        The parameters. Jittable.

    Raises:
        ValueError: if not exactly one of ``density`` and ``count`` is given or it is out of range,
          if ``state`` is not of this optimizer and these parameters, if it has no dual, if fewer
          entries than asked for have any evidence, or if not one fits the ``measure``; under
          `jax.jit`, where that cannot be known, all of those stay, and none.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.linbreg(0.1, bregjax.l1(), strength=1.0)
        >>> params = jnp.array([[2.0, 1.0, 0.0, 0.0]])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.array([[0.0, 0.0, -5.0, 1.0]]), state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> print(bregjax.land(tx, state, params, count=1).astype("float16"))
        [[1. 0. 0. 0.]]
        >>> print(bregjax.land(tx, state, params, count=3) != 0)
        [[ True  True  True False]]
    """
    _check_goal(density, count, groups, scope)
    check_trained(optimizer, *without_variables((state, params)))
    if measure is not None:
        check_function("measure", measure)
        if density is None:
            raise ValueError(f"measure needs density, got {density=}, {count=}.")

        def fits(landed: Any) -> Any:
            with raised_by(f"{measure=}"):
                return measure(landed) <= density

        return _landed_below(
            lambda count: _landed(
                optimizer, state, params, None, count, groups, scope, mask, extra_args
            ),
            fits,
        )
    landed, wanted, kept = _landed(
        optimizer, state, params, density, count, groups, scope, mask, extra_args
    )
    if not isinstance(kept, Tracer) and kept < wanted:
        raise ValueError(
            f"only {kept} have any evidence in the dual, got {density=}, {count=}, which is"
            f" {wanted}: ask for fewer, or train longer."
        )
    return landed


def _landed_below(landed: Callable[[Any], tuple], fits: Callable[[Any], Any]) -> Any:
    """The parameters with the most entries, or groups, that fit, found by halving their number."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        fitting, beyond = bounds
        middle = fitting + (beyond - fitting) // 2
        fine = fits(landed(middle)[0])
        return jnp.where(fine, middle, fitting), jnp.where(fine, beyond, middle)

    available = landed(2**32 - 1)[2]
    bounds = jnp.uint32(0), available + jnp.uint32(1)
    most, _ = lax.fori_loop(0, 32, halve, bounds)
    if not isinstance(most, Tracer) and most == 0 and available > 0:
        raise ValueError("density is below the measure of a network with a single entry or group.")
    return landed(most)[0]


def _landed(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    density: float | None,
    count: int | jax.Array | None,
    groups: Regularizer | None,
    scope: Scope,
    mask: Mask | None,
    extra_args: dict[str, Any],
) -> tuple[Any, jax.Array, jax.Array]:
    """The parameters that `land` returns, and how many were wanted and are kept."""
    groups = l1() if groups is None else groups
    treedef = jax.tree.structure(params)
    marks = None if mask is None else jax.tree.leaves(marks_of(params, mask))
    state, params = without_variables((state, params))
    leaves = jax.tree.leaves(params)
    duals = duals_of_leaves(state, params)
    if all(dual is None for dual in duals):
        raise ValueError("state has no dual of params: land reads the weights off linbreg's dual.")
    if marks is not None:
        duals = [dual if marked else None for dual, marked in zip(duals, marks, strict=True)]
    chosen = [i for i, dual in enumerate(duals) if dual is not None]
    if not chosen:
        raise ValueError("mask marks no leaf of params that has a dual: there is nothing to land.")
    reader = DualReader(optimizer, state, params, extra_args)

    def axes_of(x: jax.Array) -> tuple[int, ...]:
        return axes_of_groups(groups, x.ndim)

    def score(x: jax.Array) -> jax.Array:
        axes = axes_of(x)
        return jnp.max(x, axis=axes, initial=0) if axes else x

    def size(x: jax.Array) -> jax.Array:
        axes = axes_of(x)
        return jnp.squeeze(group_norms(x, axes), axes) if axes else x

    evidence = reader.evidence()
    scores = [score(evidence[i]) for i in chosen]
    total = sum(x.size for x in scores)
    density = known_number("density", density)
    goal = jnp.uint32(0 if count is None else count)
    goal = jnp.uint32(goal if density is None else round(density * total))

    # Equal evidence, as of the entries of a group, or without a strength, where all of it is
    # infinite: then those with the largest duals stay.
    sizes = [size(widened(dual)) for dual in duals if dual is not None]
    layers = LayerCounts([leaves[i].shape for i in chosen], [x.size for x in scores])
    masks, scales = _staying(scores, sizes, layers, goal, scope)
    updates, _ = reader.updates_at(
        scales_like(params, [dual is not None for dual in duals], scales)
    )
    moves = jax.tree.leaves(updates)
    for i, stays in zip(chosen, masks, strict=True):
        live = jnp.expand_dims(stays, axes_of(leaves[i]))
        leaves[i] = jnp.where(live, add_updates(leaves[i], moves[i]), 0)
    return treedef.unflatten(leaves), goal, count_true(masks)


def _staying(
    scores: Sequence[jax.Array],
    sizes: Sequence[jax.Array],
    layers: LayerCounts,
    goal: jax.Array,
    scope: Scope,
) -> tuple[Sequence[jax.Array], jax.Array]:
    """Which entries or groups of each layer stay, and the factors on the layers' strengths.

    These are nearest to 1 of those at which all that stay live, and nothing else: with too many,
    what goes is next to zero; with too few, what comes. Where all compete they are the same but
    for the layers that would starve.
    """
    scores = [x.astype(jnp.float32) for x in scores]
    pool, common = Pool(scores), jnp.float32(1)
    competing = None
    if scope != "global":
        counts = layers.counts(goal, scope)
        pairs = zip(scores, sizes, counts, strict=True)
        masks = [top_k([[x], [y]], k).masks[0] for x, y, k in pairs]
    elif len(scores) == 1:
        masks = top_k([scores, sizes], goal).masks
    else:
        floors = layers.floors(goal)
        least = jnp.where(floors > 0, pool.kth_largest_of_each(floors), jnp.inf)
        fed = [x >= y for x, y in zip(scores, jnp.unstack(least), strict=True)]
        keys = [[x.astype(jnp.float32) for x in fed], scores, sizes]
        masks = top_k(keys, goal, among=[x != 0 for x in scores]).masks
        competing = [~stays | mine for stays, mine in zip(masks, fed, strict=True)]
    going = pool.largest_outside(masks)
    if competing is not None:
        weakest = jnp.min(pool.smallest_outside(competing))
        common = jnp.clip(common, _BELOW * jnp.max(going), _BELOW * weakest)
    weakest = pool.smallest_outside([~stays for stays in masks])
    scales = jnp.clip(common, _BELOW * going, _BELOW * weakest)
    return masks, jnp.minimum(scales, jnp.finfo(jnp.float32).max).astype(jnp.float32)


_BELOW = 1 - 2.0**-21
"""so far below the factor at which it falls asleep an entry is certain to be above zero"""


class LandingState(NamedTuple):
    """State of `landing`."""

    count: jax.Array
    """steps done, shape (), int32"""
    inner_state: Any
    tuning_state: Any
    """a `FreezeSupportState`"""
    wanted: jax.Array
    """how many weights, or groups, the landing was asked for, shape (), uint32; 0 before it"""
    kept: jax.Array
    """how many it has left, shape (), uint32: fewer than ``wanted`` if fewer had any evidence"""


def landing(
    inner: optax.GradientTransformation,
    tuner: optax.GradientTransformation,
    step: int,
    *,
    density: float | None = None,
    count: int | None = None,
    groups: Regularizer | None = None,
    scope: Scope = "global",
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Train, land on exactly the wanted number of weights, and tune those: all in one optimizer.

    .. math:: \text{steps } 0, \dots, \text{step} - 1: \text{ inner}; \qquad
        \text{step}: \theta \leftarrow \mathtt{land}; \qquad
        \text{afterwards}: \text{ tuner, on the support}

    The landing step ignores its gradient. The tuner has no regularizer: it undoes the shrinkage of
    the weights that are left.

    Which of the three a step is, is a branch in the compiled program, for which a GPU waits at each
    step. There call `land` between two programs instead, and train on with `freeze_support`; or use
    `adabreg_to_density`, which has no branch.

    Args:
      inner: what `land` can land: `linbreg`, `adabreg`, `steer` of them, chains, partitions.
      tuner: a dense optimizer, such as `optax.adam`; its schedules count from the landing.
      step: the step that lands, at least 1.
      density: as in `land`.
      count: as in `land`.
      groups: as in `land`.
      scope: as in `land`.
      mask: as in `land`; these leaves have a support.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `LandingState`.

    Raises:
        ValueError: if ``step`` is not a positive whole number, or as `land`; at ``init``, if
          ``inner`` has no mirror step. If fewer entries than asked for have any evidence, all of
          those stay, and the state's ``kept`` is less than its ``wanted``.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.landing(
        ...     bregjax.linbreg(0.1, bregjax.l1(), strength=0.3), optax.sgd(0.5), 20, count=2
        ... )
        >>> params = jnp.zeros((1, 4))
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for _ in range(40):
        ...     gradient = params - jnp.array([[3.0, 1.0, 2.0, 0.5]])
        ...     updates, state = update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.astype("float16"))
        [[3. 0. 2. 0.]]
    """
    check_whole("step", step, at_least=1)
    _check_goal(density, count, groups, scope)
    inner = check_transformation("inner", inner)
    check_transformation("tuner", tuner)

    def has_dual(params: Any) -> Any:
        state = jax.eval_shape(inner.init, params)
        return jax.tree.unflatten(jax.tree.structure(params), leaves_with_dual(state, params))

    tuner = freeze_support(tuner, mask=has_dual if mask is None else mask)

    def init(params: Any) -> LandingState:
        inner_state = inner.init(params)
        check_steps_through("inner", inner_state)
        # optax.tree_map_params asks for the state of a placeholder, which has no leaves.
        if jax.tree.leaves(params) and not any(leaves_with_dual(inner_state, params)):
            raise ValueError(f"inner has no mirror_step, there is nothing to land: got {inner!r}.")
        wanted, kept = jnp.zeros([], jnp.uint32), jnp.zeros([], jnp.uint32)
        count = jnp.zeros([], jnp.int32)
        return LandingState(count, inner_state, tuner.init(params), wanted, kept)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LandingState]:
        check_update(updates, state, params, LandingState)

        def train(inner_state: Any, tuning_state: Any) -> tuple[Any, Any, Any]:
            moved, inner_state = inner.update(updates, inner_state, params, **extra_args)
            return _widened(moved, params), inner_state, tuning_state

        def tune(inner_state: Any, tuning_state: Any) -> tuple[Any, Any, Any]:
            moved, tuning_state = tuner.update(updates, tuning_state, params, **extra_args)
            return _widened(moved, params), inner_state, tuning_state

        def land_on_goal(_: Any, inner_state: Any, params: Any) -> tuple[Any, ...]:
            landed, wanted, kept = _landed(
                inner, inner_state, params, density, count, groups, scope, mask, extra_args
            )
            moved = jax.tree.map(jnp.subtract, _widened(landed, params), _widened(params, params))
            return moved, tuner.init(landed), wanted, kept

        moved, inner_state, tuning_state = lax.cond(
            state.count < step, train, tune, state.inner_state, state.tuning_state
        )
        so_far = (moved, tuning_state, state.wanted, state.kept)
        moved, tuning_state, wanted, kept = when_due(
            state.count == step, land_on_goal, so_far, state.inner_state, params
        )
        next_count = jnp.asarray(optax.safe_increment(state.count))
        return moved, LandingState(next_count, inner_state, tuning_state, wanted, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_goal(
    density: float | None, count: int | None, groups: Regularizer | None, scope: Scope
) -> None:
    check_scope(scope)
    if (density is None) == (count is None):
        raise ValueError(f"give either density or count, got density={density}, count={count}.")
    if density is not None:
        check_range("density", density, at_least=0, at_most=1)
    else:
        check_whole("count", count)
    if groups is not None:
        check_regularizer(groups, "groups")


def _widened(tree: Any, params: Any) -> Any:
    """``tree`` in the dtypes in which updates of the parameters are emitted."""
    return jax.tree.map(lambda x, y: y.astype(wide_dtype(x.dtype)), params, tree)
