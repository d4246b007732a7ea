"""Lasso: gradient descent on the loss plus a penalty, through a subgradient of the penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._leaves import Mask, marks_of
from bregjax._numerics import value_at
from bregjax._regularizers._base import Regularizer, check_regularizer
from bregjax._regularizers._elementwise import l1
from bregjax._validation import check_range, check_update


class PenaltyState(NamedTuple):
    """State of `add_penalty`."""

    count: jax.Array
    """steps done, shape (), int32"""


def add_penalty(
    regularizer: Regularizer, strength: optax.ScalarOrSchedule, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Add a subgradient of the penalty to the gradient.

    .. math:: g \leftarrow g + \lambda p, \qquad p \in \partial J(\theta)

    It comes first in an `optax.chain` and needs ``params``.

    Args:
      regularizer: J, such as `l1`; where the weight is zero, p is zero.
      strength: λ ≥ 0, a number, an array or a schedule.
      mask: which leaves are penalized, as in `linbreg`; by default those of `weight_mask`.

    Returns:
        An `optax.GradientTransformation`; its state holds a `PenaltyState`.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
        ValueError: if ``strength`` is negative; at ``update``, if ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> penalty = bregjax.baselines.add_penalty(bregjax.l1(), 0.5)
        >>> params = jnp.array([[2.0, 0.0, -1.0]])
        >>> gradient, _ = penalty.update(jnp.zeros((1, 3)), penalty.init(params), params)
        >>> print(gradient)
        [[ 0.5  0.  -0.5]]
    """
    check_regularizer(regularizer)
    check_range("strength", strength, at_least=0, schedule=True)

    def init(params: Any) -> PenaltyState:
        del params
        return PenaltyState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PenaltyState]:
        check_update(updates, state, params, PenaltyState)
        current = value_at(strength, state.count)

        def add(g: jax.Array, x: jax.Array) -> jax.Array:
            return g + jnp.asarray(current, g.dtype) * regularizer.subgradient(x).astype(g.dtype)

        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.map(add, updates, params), PenaltyState(count)

    penalty = optax.GradientTransformation(init, update)
    return optax.masked(penalty, lambda params: marks_of(params, mask))


def lasso(
    learning_rate: optax.ScalarOrSchedule,
    strength: optax.ScalarOrSchedule,
    *,
    regularizer: Regularizer | None = None,
    momentum: float | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Subgradient descent on loss + λ·J.

    .. math:: \theta \leftarrow \theta - \tau\,(g + \lambda p), \qquad p \in \partial J(\theta)

    Weights come close to zero and oscillate around it by about τ·λ, but none becomes exactly 0, so
    a threshold must say which count as zero. (`prox_sgd` minimizes the same functional and does
    make exact zeros.)

    Args:
      learning_rate: τ, a number or a schedule.
      strength: λ ≥ 0, a number, an array or a schedule; comparable with that of
        `prox_sgd`, not with that of `linbreg`.
      regularizer: J, by default `l1`.
      momentum: as in `optax.sgd`, or None.
      mask: which leaves are penalized, as in `add_penalty`.

    Returns:
        The optimizer.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
        ValueError: if ``strength`` is negative.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.baselines.lasso(0.1, 0.5)
        >>> params = jnp.ones((1, 2))
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for _ in range(100):
        ...     updates, state = update(params - jnp.array([[2.0, 0.1]]), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(abs(params).round(1), jnp.count_nonzero(params))
        [[1.5 0. ]] 2

    References:
        Tibshirani, `Regression Shrinkage and Selection via the Lasso
        <https://doi.org/10.1111/j.2517-6161.1996.tb02080.x>`_, JRSS B 58, 1996.

    Notes:
        The reference code of the Bregman papers adds the penalty's *value* to the loss, but
        detached from the graph, so that it runs plain SGD under this name.
    """
    check_range("learning_rate", learning_rate, at_least=0, schedule=True)
    if momentum is not None:
        check_range("momentum", momentum, at_least=0, below=1)
    return optax.chain(
        add_penalty(l1() if regularizer is None else regularizer, strength, mask),
        optax.sgd(learning_rate, momentum),
    )
