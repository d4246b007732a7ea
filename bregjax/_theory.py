"""The functionals of the theory: the elastic net, its conjugate, Bregman distances.

All of them take whole trees and treat every leaf alike. The dual of an optimizer has only the
leaves that its mask marks, so pass only these leaves of the parameters. Leaves narrower than
float32 are computed in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bregjax._leaves import without_variables
from bregjax._numerics import widened
from bregjax._regularizers._base import Regularizer, check_regularizer
from bregjax._validation import check_arrays, check_range, check_same_shapes


def _wide(**trees: Any) -> tuple[Any, ...]:
    """The trees in their wide dtypes; raises `ValueError` unless all are shaped alike."""
    trees = {name: without_variables(tree) for name, tree in trees.items()}
    (first, expected), *_ = trees.items()
    for name, tree in trees.items():
        check_arrays(name, tree)
        check_same_shapes(name, tree, first, expected)
    return tuple(jax.tree.map(widened, tree) for tree in trees.values())


def _check(regularizer: Regularizer, strength: ArrayLike, delta: ArrayLike) -> None:
    check_regularizer(regularizer)
    check_range("strength", strength, at_least=0)
    check_range("delta", delta, above=0)


def _inner(a: Any, b: Any) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.asarray(sum(jax.tree.leaves(products), start=0.0))


def elastic_net(
    params: Any, regularizer: Regularizer, strength: ArrayLike, delta: ArrayLike = 1.0
) -> jax.Array:
    r"""Compute :math:`J_\delta(\theta) = \lambda J(\theta) + \|\theta\|^2/(2\delta)`.

    Args:
      params: θ, a tree of arrays.
      regularizer: J.
      strength: λ ≥ 0.
      delta: δ > 0.

    Returns:
        A scalar.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
        ValueError: if ``strength`` is negative or ``delta`` not positive.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.elastic_net(jnp.array([2.0, 0.0]), bregjax.l1(), strength=0.5))
        3.0

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022.
    """
    _check(regularizer, strength, delta)
    (params,) = _wide(params=params)
    values = [regularizer.value(x) for x in jax.tree.leaves(params)]
    value, square = jnp.asarray(sum(values, start=0.0)), _inner(params, params)
    return jnp.asarray(strength, value.dtype) * value + square / (
        2 * jnp.asarray(delta, square.dtype)
    )


def elastic_net_conjugate_grad(
    dual: Any, regularizer: Regularizer, strength: ArrayLike, delta: ArrayLike = 1.0
) -> Any:
    r"""Map a dual to its parameters: :math:`\nabla J_\delta^*(v)`.

    .. math:: \nabla J_\delta^*(v) = \operatorname*{argmax}_\theta\, \langle v, \theta\rangle
        - J_\delta(\theta) = \operatorname{prox}_{\delta\lambda J}(\delta v)

    Args:
      dual: v, a tree of arrays, such as `MirrorState.dual`.
      regularizer: J.
      strength: λ ≥ 0.
      delta: δ > 0.

    Returns:
        θ, a tree shaped like ``dual``, in its dtypes or in float32 where they are narrower.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> dual = jnp.array([2.5, 0.4])
        >>> print(bregjax.elastic_net_conjugate_grad(dual, bregjax.l1(), strength=0.5))
        [2. 0.]
    """
    _check(regularizer, strength, delta)
    (dual,) = _wide(dual=dual)

    def params_of(v: jax.Array) -> jax.Array:
        step, weight = (jnp.asarray(x, v.dtype) for x in (delta, strength))
        return regularizer.prox(v * step, step * weight)

    return jax.tree.map(params_of, dual)


def bregman_distance(
    params: Any,
    base_params: Any,
    base_dual: Any,
    regularizer: Regularizer,
    strength: ArrayLike,
    delta: ArrayLike = 1.0,
) -> jax.Array:
    r"""Compute the Bregman distance of the elastic net.

    .. math:: D^{v}(\theta', \theta) = J_\delta(\theta') - J_\delta(\theta)
        - \langle v,\, \theta' - \theta\rangle \ge \frac{1}{2\delta}\|\theta' - \theta\|^2

    Args:
      params: θ', a tree of arrays.
      base_params: θ, a tree of the same structure.
      base_dual: v, a subgradient of the elastic net at θ, such as `MirrorState.dual`.
      regularizer: J.
      strength: λ ≥ 0.
      delta: δ > 0.

    Returns:
        A scalar, at least 0 up to rounding.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> near, far = jnp.array([0.0]), jnp.array([2.0])
        >>> print(bregjax.bregman_distance(far, near, near, bregjax.l1(), strength=0.5))
        3.0

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022.
    """
    params, base_params, base_dual = _wide(
        params=params, base_params=base_params, base_dual=base_dual
    )
    gap = elastic_net(params, regularizer, strength, delta) - elastic_net(
        base_params, regularizer, strength, delta
    )
    return gap - _inner(base_dual, optax.tree.sub(params, base_params))


def symmetric_bregman_distance(params: Any, dual: Any, other_params: Any, other_dual: Any) -> Any:
    r"""Compute :math:`\langle v - v',\, \theta - \theta'\rangle`.

    It is the sum of the two Bregman distances between the points; in this sum the functional itself
    cancels. Along gradient steps without momentum, :math:`v' = v - \tau g`, the loss obeys

    .. math:: L(\theta') + \tfrac1\tau D^{\text{sym}}(\theta', \theta)
        \le L(\theta) + \tfrac{K}{2} \|\theta' - \theta\|^2

    where K is the Lipschitz constant of its gradient.

    Args:
      params: θ, a tree of arrays.
      dual: v, a subgradient of the elastic net at θ.
      other_params: θ', a tree of the same structure.
      other_dual: v', a subgradient at θ'.

    Returns:
        A scalar, at least 0 up to rounding.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> near, far = jnp.array([0.0]), jnp.array([2.0])
        >>> print(bregjax.symmetric_bregman_distance(far, far + 0.5, near, near))
        5.0

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022, the theorem on the decay of the loss.
    """
    params, dual, other_params, other_dual = _wide(
        params=params, dual=dual, other_params=other_params, other_dual=other_dual
    )
    return _inner(optax.tree.sub(dual, other_dual), optax.tree.sub(params, other_params))
