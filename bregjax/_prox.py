"""The prox step: the implicit step on the regularizer, which makes exact zeros."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._numerics import add_widened, value_at
from bregjax._regularizers._base import Regularizer, check_regularizer, has_state
from bregjax._validation import check_floating, check_range, check_updates


class ProxState(NamedTuple):
    """State of `prox_step`."""

    count: jax.Array | None
    """steps done, shape (), int32; None where neither the strength nor the step is a schedule"""
    regularizer_state: Any
    """the state that the regularizer's ``init_state`` makes, with a tree shaped like the parameters
    in place of each of its arrays; None if the regularizer has no state"""


def init_regularizer(regularizer: Regularizer, params: Any) -> Any:
    """The regularizer's state for all parameters.

    `flax.nnx.Optimizer` and `optax.tree_map_params` expect trees shaped like the parameters. So it
    is one state whose fields are such trees, and not a tree of states.
    """
    if not has_state(regularizer):
        return None
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:  # optax.tree_map_params asks for the state of a placeholder
        one = jax.eval_shape(lambda: regularizer.init_state(jnp.zeros((1,) * 8), 0))
        return jax.tree.map(lambda _: params, one)
    states = [regularizer.init_state(jnp.asarray(x), index) for index, x in enumerate(leaves)]
    return jax.tree.transpose(treedef, jax.tree.structure(states[0]), treedef.unflatten(states))


def apply_prox(regularizer: Regularizer, points: Any, steps: Any, state: Any) -> tuple[Any, Any]:
    """The prox of each array of a tree with its own step, and the regularizer's next state."""
    leaves, treedef = jax.tree.flatten(points)
    if not has_state(regularizer) or not leaves:
        return jax.tree.map(regularizer.prox, points, steps), state
    one = jax.tree.structure(jax.eval_shape(regularizer.init_state, leaves[0], 0))
    moved = jax.tree.map(
        lambda x, step, *parts: regularizer.prox_with_state(x, step, one.unflatten(parts)),
        points,
        steps,
        *one.flatten_up_to(state),
    )
    both = jax.tree.structure((0, one.unflatten(range(one.num_leaves))))
    return jax.tree.transpose(treedef, both, moved)


def prox_of_points(
    regularizer: Regularizer, strength: optax.ScalarOrSchedule, step_size: optax.ScalarOrSchedule
) -> tuple[Callable, Callable]:
    """The ``init_fn`` of `prox_step`, and a function from points to their prox and a new state.

    This function understands two extra arguments of ``update``: ``strength_scale`` is a factor on
    the strength, a number or one for each parameter in a tree like them; with ``evidence`` it
    returns, instead of the prox, the largest factor on the strength at which each entry lives, or
    one number for each group where it is ``"groups"``.
    """
    check_regularizer(regularizer)
    check_range("strength", strength, at_least=0, schedule=True)
    check_range("step_size", step_size, at_least=0, schedule=True)
    scheduled = callable(strength) or callable(step_size)

    def init_fn(params: Any) -> ProxState:
        jax.tree_util.tree_map_with_path(check_floating, params)
        count = jnp.zeros([], jnp.int32) if scheduled else None
        return ProxState(count, init_regularizer(regularizer, params))

    def apply_fn(
        points: Any,
        state: ProxState,
        /,
        strength_scale: Any = None,
        evidence: Literal["entries", "groups"] | None = None,
        **_: Any,
    ) -> tuple[Any, ProxState]:
        numbers = [value_at(step_size, state.count), value_at(strength, state.count)]

        @functools.cache
        def threshold(dtype: jnp.dtype) -> jax.Array:
            return functools.reduce(jnp.multiply, [jnp.asarray(x, dtype) for x in numbers])

        scales = scales_of_leaves(strength_scale, points)
        leaves, treedef = jax.tree.flatten(points)
        thresholds = treedef.unflatten(
            [
                threshold(x.dtype) if scale is None else threshold(x.dtype) * scale.astype(x.dtype)
                for x, scale in zip(leaves, scales, strict=True)
            ]
        )
        count = None if state.count is None else jnp.asarray(optax.safe_increment(state.count))
        if evidence:
            factors = jax.tree.map(
                lambda reached, step: jnp.where(reached > 0, reached / step, 0),
                jax.tree.map(regularizer.evidence, points),
                thresholds,
            )
            if evidence == "entries":
                factors = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), factors, points)
            return factors, state._replace(count=count)
        points, kept = apply_prox(regularizer, points, thresholds, state.regularizer_state)
        return points, ProxState(count, kept)

    return init_fn, apply_fn


def scaled_by(scale: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments with the strength scaled by a further factor, or one a parameter."""
    outer = extra_args.get("strength_scale")
    if outer is not None and jax.tree.structure(outer) == jax.tree.structure(scale):
        scale = jax.tree.map(jnp.multiply, outer, scale)
    elif outer is not None:
        one, many = (outer, scale) if jax.tree.structure(outer) == _NUMBER else (scale, outer)
        scale = jax.tree.map(lambda x: one * x, many)
    return extra_args | {"strength_scale": scale}


_NUMBER = jax.tree.structure(0)


def scales_of_leaves(scale: Any, tree: Any) -> list[jax.Array | None]:
    """The factor on the strength of each leaf of ``tree``, which may be masked."""
    leaves = jax.tree.leaves(tree)
    if scale is None or jax.tree.structure(scale) == _NUMBER:
        return [None if scale is None else jnp.asarray(scale)] * len(leaves)
    nodes, treedef = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    places = zip(nodes, treedef.flatten_up_to(scale), strict=True)
    return [mine for node, mine in places if not isinstance(node, optax.MaskedNode)]


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
        An `optax.GradientTransformation` with a `ProxState`.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
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
        Updates for parameters narrower than float32 are emitted in float32: in bfloat16 a small new
        value would vanish beside a large old one. `optax.apply_updates` casts the sum.
        `optax.apply_if_finite` expects updates in the gradient's dtype and does not accept this.
    """
    init_fn, apply_fn = prox_of_points(regularizer, strength, step_size)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        check_updates(updates, params)
        points = jax.tree.map(add_widened, params, updates)
        points, state = apply_fn(points, state, **extra_args)
        return updates_to(points, params, **extra_args), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def updates_to(points: Any, params: Any, /, evidence: str | None = None, **_: Any) -> Any:
    """The updates that carry the parameters to the points, in the points' dtypes.

    With ``evidence`` the points are the evidence, which is returned as it is.
    """
    if evidence:
        return points
    return jax.tree.map(lambda point, x: point - jnp.asarray(x, point.dtype), points, params)
