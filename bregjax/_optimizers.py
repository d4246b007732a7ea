"""The optimizers by name: chains of Optax's blocks and ours."""

from typing import Any

import jax
import numpy as np
import optax

from bregjax._leaves import Mask, marks_of
from bregjax._mirror import bregman_step
from bregjax._prox import prox_step
from bregjax._regularizers._base import Regularizer
from bregjax._validation import check_flag, check_range, check_updates, real, shown


def _gradient_step(
    learning_rate: optax.ScalarOrSchedule, momentum: float | jax.Array | None, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    """−τ·g, or its running average: the rate is inside the average, as in the paper."""
    check_range("learning_rate", learning_rate, at_least=0, schedule=True)
    check_flag("nesterov", nesterov)
    step = optax.scale_by_learning_rate(learning_rate)
    if momentum is None:
        if nesterov:
            raise ValueError("nesterov=True needs a momentum, got momentum=None.")
        return optax.chain(step)
    check_range("momentum", momentum, at_least=0, below=1)
    return optax.chain(step, optax.scale(1 - momentum), optax.trace(momentum, nesterov=nesterov))


def on_weights(
    step: optax.GradientTransformation, mask: Mask | None
) -> optax.GradientTransformationExtraArgs:
    """The step on the leaves that the mask marks."""
    if isinstance(mask, (bool, np.bool_, jax.Array, np.ndarray)):
        # optax.inject_hyperparams took the mask for a schedule and called it with a count.
        raise ValueError(
            "mask must be a tree of booleans or a function of the parameters, got"
            f" mask={shown(mask)}. With a mask use optax.inject_hyperparams(…,"
            " static_args=('mask',))."
        )

    def marks(params: Any) -> Any:
        if mask is None and isinstance(params, (jax.Array, np.ndarray)) and params.ndim < 2:
            raise ValueError(
                f"params is one array of shape {params.shape}, which is regularized only with a"
                " mask, such as mask=lambda params: True. Around optax.flatten there is no mask by"
                " which weights are told from biases: leave it out."
            )
        return marks_of(params, mask)

    return optax.masked(step, marks)


def chain(*steps: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """As `optax.chain`; but where the dual is only read, the last step alone is done."""
    whole, reader = optax.chain(*steps), optax.with_extra_args_support(steps[-1])

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not isinstance(state, tuple) or len(state) != len(steps):
            raise TypeError(
                f"state must be a tuple of {len(steps)} states, as init returns it: call"
                f" tx.update(updates, state, params); got a {type(state).__name__}."
            )
        check_updates(updates, params)
        if not extra_args.get("hold_dual", False):
            return whole.update(updates, state, params, **extra_args)
        updates, last = reader.update(updates, state[-1], params, **extra_args)
        return updates, (*state[:-1], last)

    return optax.GradientTransformationExtraArgs(whole.init, update)


def linbreg(
    learning_rate: optax.ScalarOrSchedule,
    regularizer: Regularizer,
    strength: optax.ScalarOrSchedule,
    *,
    delta: float | jax.Array = 1.0,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    keep_weights: optax.ScalarOrSchedule = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LinBreg: linearized Bregman iterations, the sparse counterpart of SGD.

    .. math::
        v \leftarrow v - \tau g; \qquad
        \theta \leftarrow \operatorname{prox}_{\delta\lambda J}(\delta v), \qquad
        v_0 = \theta_0/\delta + \lambda p_0,\; p_0 \in \partial J(\theta_0)

    and with momentum :math:`m \leftarrow \beta m + (1-\beta)\tau g`, then
    :math:`v \leftarrow v - m` (heavy ball) or
    :math:`v \leftarrow v - \beta m - (1-\beta)\tau g` (Nesterov).

    It is ``optax.chain(scale_by_learning_rate(τ), mirror_step(J, λ, δ), prox_step(J, λ, δ))``, with
    the last two done as one `bregman_step`. Put clipping and `optax.add_decayed_weights` in front
    of it and nothing behind it. Start from few weights: see `sparsify` and `sparse_initializer`.

    Args:
      learning_rate: τ ≥ 0, a number, an array or a schedule.
      regularizer: J, such as `l1` or ``per_kernel()``.
      strength: λ ≥ 0, a number, an array or a schedule. A sleeping weight wakes when the evidence
        in its dual exceeds λ. If λ changes during the training, the dual keeps what it has
        collected: live weights shrink at once by δ times the rise of λ (or grow by δ times its
        fall), and those below the new threshold go to sleep.
      delta: δ > 0, the elastic-net parameter. The loss decreases monotonically for
        τ < 2/(δL) with L the Lipschitz constant of its gradient.
      momentum: β in [0, 1), or None.
      nesterov: whether the momentum is Nesterov's.
      keep_weights: how far live weights stay as they are when λ changes: False, True or a share
        in between, see `mirror_step`.
      mask: which leaves are regularized: a tree of booleans shaped like the parameters or a prefix
        of that, or a function that makes one of them. The default is all arrays of two or more
        dimensions, without biases and norms, see `weight_mask`. The other leaves get plain SGD and
        have no dual. With Flax NNX pass a function, because the optimizer sees variables at
        ``init`` and arrays later.

    Returns:
        The optimizer. With ``optax.inject_hyperparams(linbreg)(…)`` its current values can be
        changed and read: ``optax.tree.get(state, "hyperparams")["strength"]``. With a mask add
        ``static_args=("mask",)``, or it is taken for a schedule; the same with a schedule for
        ``keep_weights``.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
        ValueError: if an argument is out of range; at ``init``, if a regularized parameter is not
          of a floating dtype; at ``update``, if ``params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> inputs = jax.random.normal(jax.random.key(0), (30, 50))
        >>> targets = inputs[:, 3] - 2 * inputs[:, 7]
        >>> loss = lambda w: jnp.mean((inputs @ w[:, 0] - targets) ** 2)
        >>> tx = bregjax.linbreg(0.1, bregjax.l1(), strength=10.0)
        >>> w = jnp.zeros((50, 1))
        >>> state = tx.init(w)
        >>> @jax.jit
        ... def step(w, state):
        ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
        ...     return optax.apply_updates(w, updates), state
        >>> for _ in range(100):
        ...     w, state = step(w, state)
        >>> print(jnp.flatnonzero(w))
        [3 7]

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022, Algorithms 1 and 2.

    Notes:
        For parameters narrower than float32 (bfloat16) the updates are float32, as in `prox_step`;
        `optax.apply_if_finite` does not accept that. `optax.inject_hyperparams` rounds its values
        to the parameters' dtype unless it gets ``hyperparam_dtype=jnp.float32``.

    See Also:
        `adabreg`, `prox_sgd`.
    """
    return chain(
        _gradient_step(learning_rate, momentum, nesterov),
        on_weights(bregman_step(regularizer, strength, delta, keep_weights=keep_weights), mask),
    )


def adabreg(
    learning_rate: optax.ScalarOrSchedule,
    regularizer: Regularizer,
    strength: optax.ScalarOrSchedule,
    *,
    delta: float | jax.Array = 1.0,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    keep_weights: optax.ScalarOrSchedule = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBreg: Bregman iterations on Adam's updates, the sparse counterpart of Adam.

    .. math::
        v \leftarrow v - \tau\, \frac{\hat m}{\sqrt{\hat n} + \epsilon}; \qquad
        \theta \leftarrow \operatorname{prox}_{\delta\lambda J}(\delta v)

    with :math:`\hat m, \hat n` Adam's bias-corrected moments of the gradient. It is
    `optax.scale_by_adam`, the learning rate and a `bregman_step`. As with `linbreg`, put clipping
    in front of it and nothing behind it.

    Args:
      learning_rate: τ ≥ 0, a number, an array or a schedule. Each step moves the dual by about
        τ, whatever the size of the gradient: a weight wakes after λ/τ steps at the earliest.
      regularizer: J, such as `l1` or ``per_kernel()``.
      strength: λ ≥ 0, as in `linbreg`; the same sparsity needs larger values.
      delta: δ > 0, the elastic-net parameter.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: ε ≥ 0, added to the root.
      weight_decay: ω ≥ 0, added as ω·θ to Adam's direction on the regularized leaves, as in
        `optax.adamw`. It acts only on live weights, as sleeping ones are zero.
      keep_weights: as in `linbreg`.
      mask: which leaves are regularized, as in `linbreg`; the others get plain Adam.

    Returns:
        The optimizer, usable with `optax.inject_hyperparams` as `linbreg` is.

    Raises:
        As `linbreg`.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.adabreg(0.1, bregjax.l1(), strength=1.0)
        >>> w = jnp.array([[2.0, 0.0, 0.0]])
        >>> state = tx.init(w)
        >>> for step in range(20):
        ...     gradient = w - jnp.array([[1.0, 0.0, 0.5]])
        ...     updates, state = tx.update(gradient, state, w)
        ...     w = optax.apply_updates(w, updates)
        ...     if step in (5, 15):
        ...         print(step, w != 0)
        5 [[ True False False]]
        15 [[ True False  True]]

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022, Algorithm 3.

    Notes:
        The authors' code before 30 January 2024 left out the correction of the first moment.

        For parameters narrower than float32 see `linbreg`. In bfloat16 b2 = 0.999 is rounded to 1,
        so under `optax.inject_hyperparams` without ``hyperparam_dtype=jnp.float32`` no parameter
        would move.

    See Also:
        `linbreg`, `prox_sgd`.
    """
    check_range("b1", b1, at_least=0, below=1)
    check_range("b2", b2, at_least=0, below=1)
    check_range("eps", eps, at_least=0)
    return adam_before(
        on_weights(bregman_step(regularizer, strength, delta, keep_weights=keep_weights), mask),
        optax.scale_by_adam(b1=b1, b2=b2, eps=real(eps)),
        learning_rate,
        weight_decay,
        mask,
    )


def adam_before(
    step: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float | jax.Array,
    mask: Mask | None,
) -> optax.GradientTransformationExtraArgs:
    """A step on the updates of AdamW, whose direction is given."""
    check_range("learning_rate", learning_rate, at_least=0, schedule=True)
    check_range("weight_decay", weight_decay, at_least=0)
    decayed = isinstance(weight_decay, jax.Array) or weight_decay > 0
    decay = optax.add_decayed_weights(real(weight_decay)) if decayed else optax.identity()
    return chain(
        direction,
        on_weights(decay, mask),
        optax.scale_by_learning_rate(learning_rate),
        step,
    )


def prox_sgd(
    learning_rate: optax.ScalarOrSchedule,
    regularizer: Regularizer,
    strength: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Proximal stochastic gradient descent, the baseline that shrinks instead of growing.

    .. math:: \theta \leftarrow \operatorname{prox}_{\tau\lambda J}(\theta - \tau g)

    It minimizes loss + λJ. It is ``optax.chain(scale_by_learning_rate(τ), prox_step(J, λ, τ))``.

    Args:
      learning_rate: τ ≥ 0, a number, an array or a schedule.
      regularizer: J, such as `l1` or ``per_kernel()``.
      strength: λ ≥ 0, a number, an array or a schedule. The threshold of a step is τλ, so that λ
        is not comparable to that of `linbreg`, where it is δλ.
      momentum: β in [0, 1) as in `linbreg`, or None.
      nesterov: whether the momentum is Nesterov's.
      mask: which leaves are regularized, as in `linbreg`; the others get plain SGD.

    Returns:
        The optimizer, usable with `optax.inject_hyperparams` as `linbreg` is.

    Raises:
        As `linbreg`.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.prox_sgd(0.5, bregjax.l1(), strength=1.0)
        >>> w = jnp.array([[4.0, 0.3, -1.5]])
        >>> state = tx.init(w)
        >>> for _ in range(30):
        ...     gradient = w - jnp.array([[4.0, 0.3, -1.5]])
        ...     updates, state = tx.update(gradient, state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> print(w)
        [[ 3.   0.  -0.5]]

    References:
        Parikh, Boyd, `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, Foundations and
        Trends in Optimization 1, 2014, Section 4.2.

    Notes:
        For parameters narrower than float32 see `linbreg`.
    """
    return chain(
        _gradient_step(learning_rate, momentum, nesterov),
        on_weights(prox_step(regularizer, strength, learning_rate), mask),
    )
