"""Fixed supports: fine-tuning of the live weights, and multilevel training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._leaves import Mask
from bregjax._live_weights import keep_live, marks_of_state, set_dead_to_zero, support_of
from bregjax._numerics import add_updates
from bregjax._validation import check_transformation, check_update, check_whole


class FreezeSupportState(NamedTuple):
    """State of `freeze_support`."""

    support: Any
    """which parameters are trained: booleans shaped like the parameters"""
    inner_state: Any


class MultilevelState(NamedTuple):
    """State of `multilevel`."""

    count: jax.Array
    """steps done, shape (), int32"""
    support: Any
    """which parameters the last full step left alive: booleans shaped like the parameters"""
    inner_state: Any


def freeze_support(
    inner: optax.GradientTransformation, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Train the weights that are not zero at ``init``, and keep the others exactly zero.

    .. math:: \theta \leftarrow M \odot (\theta + u(M \odot g)), \qquad M = [\theta_0 \neq 0]

    where u is the inner optimizer. Use it for fine-tuning after `land`. Nothing may be chained
    after it; put weight decay into ``inner``.

    Args:
      inner: any optimizer, usually a dense one such as `optax.adam`.
      mask: which leaves have a support, as in `linbreg`; all entries of the others are trained.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `FreezeSupportState`.

    Raises:
        ValueError: at ``init``, if ``mask`` does not fit; at ``update``, if ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.freeze_support(optax.sgd(0.5))
        >>> params = jnp.array([[2.0, 0.0, -1.0]])
        >>> updates, _ = tx.update(jnp.ones((1, 3)), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[ 1.5  0.  -1.5]]
    """
    inner = check_transformation("inner", inner)

    def init(params: Any) -> FreezeSupportState:
        return FreezeSupportState(support_of(params, mask), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, FreezeSupportState]:
        check_update(updates, state, params, FreezeSupportState)
        updates, inner_state = inner.update(
            keep_live(updates, state.support), state.inner_state, params, **extra_args
        )
        updates = set_dead_to_zero(updates, params, state.support)
        return updates, state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def multilevel(
    inner: optax.GradientTransformation, m: int, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Alternate one full step with m coarse steps, which move only the weights on the support.

    A full step is one of ``inner``. In the m steps after it every weight that is zero after the
    full step is frozen, with its dual and its momenta:

    .. math::
        v^{k+1} = v^k - \tau\, M^k \odot g(\theta^k), \qquad
        M^k = \begin{cases} 1 & k \equiv 0 \pmod{m + 1} \\
        [\theta^{k_0} \neq 0] & \text{else} \end{cases}

    (here for LinBreg; k₀ is right after the last full step). So a coarse step needs the gradient of
    the live weights only. With sparse kernels, the cost of its forward pass and of both parts of
    its backward pass, as a share of the dense cost, would be the density. Only such kernels save
    time: JAX's dense products take as long as before. A coarse step may put a weight to sleep, and
    a later one may wake it again. A weight outside the support wakes only at a full step.

    Args:
      inner: an optimizer of ours, or a chain or partition with one in it.
      m: coarse steps after each full one, at least 0; 0 is ``inner`` itself.
      mask: which leaves have a support, as in `linbreg`; all entries of the others always move.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `MultilevelState`.

    Raises:
        ValueError: if ``m`` is not a whole number; at ``init``, if ``mask`` does not fit; at
          ``update``, if ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.multilevel(bregjax.linbreg(1.0, bregjax.l1(), strength=1.0), m=2)
        >>> params = jnp.zeros((1, 2))
        >>> state = tx.init(params)
        >>> for step in range(4):
        ...     gradient = jnp.array([[-1.5, -0.75]])
        ...     updates, state = tx.update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(step, params)
        0 [[0.5 0. ]]
        1 [[2. 0.]]
        2 [[3.5 0. ]]
        3 [[5.  0.5]]

    References:
        Lunk, Scott, Bungert, `Sparse Training of Neural Networks based on Multilevel Mirror
        Descent <https://arxiv.org/abs/2602.03535>`_, 2026.

    Notes:
        Adam's moments of a sleeping weight change at full steps only, while the count of its bias
        correction goes on: in `adabreg` with m = 99 the dual of a weight with a constant gradient
        moves by up to 5.8 times the learning rate at a full step.
    """
    check_whole("m", m)
    inner = check_transformation("inner", inner)

    def init(params: Any) -> MultilevelState:
        count = jnp.zeros([], jnp.int32)
        return MultilevelState(count, support_of(params, mask), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MultilevelState]:
        check_update(updates, state, params, MultilevelState)
        # With hold_dual the parameters are only read off the dual, as by land: all may move.
        full = (state.count % (m + 1) == 0) | extra_args.get("hold_dual", False)
        moving = jax.tree.map(lambda support: full | support, state.support)
        updates, proposed = inner.update(
            keep_live(updates, moving), state.inner_state, params, **extra_args
        )
        updates = keep_live(updates, moving)
        inner_state = jax.tree.map(
            jnp.where, marks_of_state(inner, proposed, moving), proposed, state.inner_state
        )
        reached = support_of(add_updates(params, updates), mask)
        support = jax.tree.map(lambda new, old: jnp.where(full, new, old), reached, state.support)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, MultilevelState(count, support, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
