"""The prox step: the implicit step on the regularizer, which makes exact zeros."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._numerics import wide_dtype
from bregjax._regularizers._base import Regularizer
from bregjax._stage import Stage, Wish, as_transformation, value_at
from bregjax._validation import check_floating, check_range, check_regularizer


class ProxState(NamedTuple):
    """State of `prox_step`."""

    count: jax.Array | None
    """steps done, shape (), int32; None where neither the strength nor the step is a schedule"""
    regularizer_state: Any
    """what a stateful regularizer keeps, each array of it a tree shaped like the parameters; None
    for the others"""


def prox_stage(
    regularizer: Regularizer,
    strength: optax.ScalarOrSchedule,
    step_size: optax.ScalarOrSchedule,
) -> Stage:
    """From a point x to prox_{step_size·λ·J}(x); the checks of `prox_step`."""
    check_regularizer(regularizer)
    check_range("strength", strength, at_least=0, schedule=True)
    check_range("step_size", step_size, at_least=0, schedule=True)
    scheduled = callable(strength) or callable(step_size)

    def init(params: Any) -> ProxState:
        jax.tree_util.tree_map_with_path(check_floating, params)
        count = jnp.zeros([], jnp.int32) if scheduled else None
        if not regularizer.stateful:
            return ProxState(count, None)
        leaves, treedef = jax.tree.flatten(params)
        states = [regularizer.init_state(x, index) for index, x in enumerate(leaves)]
        return ProxState(count, _inside_out(states, treedef))

    def recall(state: ProxState, params: Any) -> list:
        leaves, treedef = jax.tree.flatten(params)
        if not (regularizer.stateful and leaves):
            return [None] * len(leaves)
        one = jax.eval_shape(lambda x: regularizer.init_state(x, 0), leaves[0])
        return _outside_in(state.regularizer_state, treedef, _structure(one))

    def begin(state: ProxState, wish: Wish) -> Callable:
        current_strength = value_at(strength, state.count)
        current_step_size = value_at(step_size, state.count)

        def step(point: jax.Array, x: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
            del x
            dtype = point.dtype
            threshold = jnp.asarray(current_step_size, dtype) * jnp.asarray(current_strength, dtype)
            if wish.strength_scale is not None:
                threshold = threshold * jnp.asarray(wish.strength_scale, dtype)
            if wish.evidence:
                return regularizer.evidence(point) / threshold, memory
            if not regularizer.stateful:
                return regularizer.prox(point, threshold), None
            return regularizer.prox_with_state(point, threshold, memory)

        return step

    def store(state: ProxState, memories: list, treedef: Any, wish: Wish) -> ProxState:
        del wish
        count = None if state.count is None else jnp.asarray(optax.safe_increment(state.count))
        kept = _inside_out(memories, treedef) if regularizer.stateful else None
        return ProxState(count, kept)

    return Stage(init, recall, begin, store, tells_evidence=True)


def _structure(state: Any) -> Any:
    """The structure of one parameter's state, in which None is an array that is not there."""
    return jax.tree.structure(state, is_leaf=lambda node: node is None)


def _inside_out(states: list, treedef: Any) -> Any:
    """From a state for each parameter to one state of trees that are shaped like the parameters.

    `flax.nnx.Optimizer` keeps trees of arrays that are shaped like the parameters, not trees of
    states.
    """
    if not states:
        return treedef.unflatten([])
    structure = _structure(states[0])
    columns = zip(*map(structure.flatten_up_to, states), strict=True)
    return structure.unflatten(
        treedef.unflatten(optax.MaskedNode() if entry is None else entry for entry in column)
        for column in columns
    )


def _outside_in(state: Any, treedef: Any, structure: Any) -> list:
    """The inverse of `_inside_out`, given the structure of one parameter's state."""
    rows = zip(*map(treedef.flatten_up_to, structure.flatten_up_to(state)), strict=True)
    return [
        structure.unflatten(entry if jax.tree.leaves(entry) else None for entry in row)
        for row in rows
    ]


def prox_step(
    regularizer: Regularizer,
    strength: optax.ScalarOrSchedule,
    step_size: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Apply the proximal map of the regularizer to the updated parameters.

    .. math:: \text{emit } \operatorname{prox}_{s\lambda J}(\theta + u) - \theta, \qquad
        \operatorname{prox}_{s\lambda J}(x)
        = \operatorname*{argmin}_y \tfrac12\|y-x\|^2 + s\lambda J(y)

    After `optax.apply_updates` the parameters that the prox set to zero are exactly 0.0.

    It comes last in an `optax.chain` and needs ``params``. After gradient steps of length τ with
    ``step_size=τ`` it makes proximal gradient descent (`prox_sgd`); after `mirror_step` with
    ``step_size=δ`` it makes Bregman iterations (`linbreg`, `adabreg`). Any transformation chained
    after it makes another algorithm.

    Args:
      regularizer: J, such as `l1`.
      strength: λ ≥ 0, a number, an array or a schedule.
      step_size: s ≥ 0, a number, an array or a schedule.

    Returns:
        A `optax.GradientTransformation` with a `ProxState`.

    Raises:
        TypeError: if ``regularizer`` is none.
        ValueError: if ``strength`` or ``step_size`` is negative; at ``init``, if a parameter is not
          of a floating dtype; at ``update``, if ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.prox_step(bregjax.l1(), strength=0.5)
        >>> params = jnp.array([1.0, 1.0])
        >>> updates, _ = tx.update(jnp.array([1.0, -0.8]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [1.5 0. ]

    References:
        Parikh, Boyd, `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, Foundations and
        Trends in Optimization 1, 2014, Section 4.2.

    Notes:
        Updates for parameters narrower than float32 are emitted in float32, as small survivors
        beside a large old value would vanish in bfloat16; `optax.apply_updates` casts the sum.
        `optax.apply_if_finite` refuses that, as it expects updates in the gradient's dtype.
    """
    prox = prox_stage(regularizer, strength, step_size)

    def begin(state: ProxState, wish: Wish) -> Callable:
        step = prox.begin(state, wish)

        def of_updated(update: jax.Array, x: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
            dtype = wide_dtype(x.dtype)
            return step(x.astype(dtype) + update.astype(dtype), x, memory)

        return of_updated

    return as_transformation(prox._replace(begin=begin))
