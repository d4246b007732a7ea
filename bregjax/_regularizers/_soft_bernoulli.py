"""A random regularizer that wakes sleeping entries."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bregjax._numerics import key_from
from bregjax._regularizers._base import Regularizer
from bregjax._regularizers._elementwise import _L1, soft_threshold
from bregjax._validation import check_key, check_range


@dataclasses.dataclass(frozen=True, eq=False)
class _SoftBernoulli(_L1):
    probability: float
    height: float
    key: int | jax.Array

    # A key may be an array, which has no simple equality: each object equals only itself.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _draw(self, x: jax.Array, step: ArrayLike, key: jax.Array) -> jax.Array:
        awake = jax.random.bernoulli(key, self.probability, x.shape)
        floor = jnp.where(awake, jnp.asarray(self.height, x.dtype), 0)
        return jnp.sign(x) * jnp.maximum(jnp.abs(soft_threshold(x, step)), floor)

    def _root_key(self) -> jax.Array:
        seed = isinstance(self.key, numbers.Integral)
        return jax.random.key(self.key) if seed else jnp.asarray(self.key)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        return self._draw(x, step, self._root_key())

    def init_state(self, x: jax.Array, index: int) -> Any:
        del x
        return jax.random.key_data(jax.random.fold_in(self._root_key(), index))

    def prox_with_state(self, x: jax.Array, step: ArrayLike, state: Any) -> tuple[jax.Array, Any]:
        key, next_key = jax.random.split(key_from(state, self._root_key()))
        return self._draw(x, step, key), jax.random.key_data(next_key)


def soft_bernoulli(
    probability: float = 0.01, height: float = 1.0, *, key: int | jax.Array = 0
) -> Regularizer:
    r"""The ℓ1 norm with random wake-ups: soft-thresholding that lifts a few entries at random.

    .. math:: y_i = \operatorname{sign}(x_i)\,
        \max\bigl(\max(|x_i| - s, 0),\; h B_i\bigr), \qquad B_i \sim \text{Bernoulli}(p)

    At every step an entry that is not exactly zero gets at least the magnitude :math:`h` with
    probability :math:`p`. So sleeping weights are tried out. ``value`` and ``subgradient`` are
    those of `l1`; the map is random and therefore not a prox in the strict sense.

    Args:
      probability: p, in [0, 1].
      height: h, at least 0; the smallest magnitude of an entry that wakes.
      key: a PRNG key or an integer seed. In `prox_step` each parameter has its own stream of random
        numbers, which the state carries; a direct call of ``prox`` uses this key as it is. Runs
        side by side under `jax.vmap` draw the same numbers unless each has its own key.

    Returns:
        A `Regularizer` for arrays of any shape.

    Raises:
        ValueError: if ``probability`` or ``height`` is out of range, or ``key`` is neither a single
          key nor a seed.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> print(bregjax.soft_bernoulli(probability=1.0).prox(jnp.array([0.1, 0.0, -3.0]), 0.5))
        [ 1.   0.  -2.5]

    References:
        The published code of Bungert, Roith, Tenbrinck, Burger (arXiv 2105.04319), where
        p = 0.01 and h = 1.
    """
    check_range("probability", probability, at_least=0, at_most=1)
    check_range("height", height, at_least=0)
    check_key("key", key, seed=True)
    return _SoftBernoulli(probability, height, key)
