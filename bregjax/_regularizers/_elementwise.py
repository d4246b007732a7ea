"""Regularizers that act on each entry by itself."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bregjax._numerics import widened
from bregjax._regularizers._base import Regularizer


def soft_threshold(x: jax.Array, threshold: ArrayLike) -> jax.Array:
    """sign(x)·max(|x| − threshold, 0), with a positive zero wherever |x| ≤ threshold."""
    threshold = jnp.asarray(threshold, x.dtype)
    # XLA's CPU backend runs a minimum of a maximum faster than a clip.
    return x - jnp.minimum(jnp.maximum(x, -threshold), threshold)


@dataclasses.dataclass(frozen=True)
class _None(Regularizer):
    def value(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((), x.dtype)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        del step
        return x

    def subgradient(self, x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class _L1(Regularizer):
    def value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(x))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return soft_threshold(x, step)

    def subgradient(self, x: jax.Array) -> jax.Array:
        return jnp.sign(x)

    def evidence(self, x: jax.Array) -> jax.Array:
        return jnp.abs(widened(x))


@dataclasses.dataclass(frozen=True)
class _NonnegL1(Regularizer):
    def value(self, x: jax.Array) -> jax.Array:
        return jnp.where(jnp.any(x < 0), jnp.asarray(jnp.inf, x.dtype), jnp.sum(x))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return jnp.maximum(x - jnp.asarray(step, x.dtype), 0)

    def subgradient(self, x: jax.Array) -> jax.Array:
        return jnp.sign(x)

    def evidence(self, x: jax.Array) -> jax.Array:
        return jnp.maximum(widened(x), 0)


def none() -> Regularizer:
    r"""The zero functional, :math:`J(x) = 0`.

    With it `linbreg` is gradient descent and `adabreg` is Adam, with step :math:`\delta\tau`.

    Returns:
        A `Regularizer` with ``prox(x, step) = x`` and ``subgradient(x) = 0``.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.none().prox(jnp.array([1.0, -0.2]), 0.5))
        [ 1.  -0.2]
    """
    return _None()


def l1() -> Regularizer:
    r"""The sum of absolute values, :math:`J(x) = \|x\|_1 = \sum_i |x_i|`.

    .. math:: \operatorname{prox}_{sJ}(x)_i
        = \operatorname*{argmin}_y \tfrac12 (y-x_i)^2 + s|y|
        = \operatorname{sign}(x_i)\max(|x_i| - s,\, 0)

    The subgradient is :math:`\operatorname{sign}(x)`, zero at zero.

    Returns:
        A `Regularizer` for arrays of any shape.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.l1().prox(jnp.array([1.0, -0.2, -3.0]), 0.5))
        [ 0.5  0.  -2.5]

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022.
    """
    return _L1()


def nonneg_l1() -> Regularizer:
    r"""The ℓ1 norm on non-negative arrays, :math:`J(x) = \sum_i x_i` if :math:`x \ge 0`, else ∞.

    .. math:: \operatorname{prox}_{sJ}(x)_i = \max(x_i - s,\, 0)

    For networks whose weights must not be negative: the prox also projects onto x ≥ 0.

    Returns:
        A `Regularizer` for arrays of any shape.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.nonneg_l1().prox(jnp.array([1.0, -0.2, -3.0]), 0.5))
        [0.5 0.  0. ]

    Notes:
        There is no subgradient at a negative entry. Like the authors' code, ``subgradient`` returns
        :math:`\operatorname{sign}(x)` there, so such an entry of an initial kernel becomes zero at
        the first step.
    """
    return _NonnegL1()
