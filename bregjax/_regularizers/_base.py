"""The interface of all regularizers."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bregjax._numerics import widened
from bregjax._validation import shown


class Regularizer(abc.ABC):
    r"""A convex functional :math:`J` of unit strength on one array.

    A new regularizer is one small frozen class with three methods:

    * ``value(x)``: the scalar :math:`J(x)`;
    * ``prox(x, step)``: :math:`\operatorname{argmin}_y \tfrac12\|y-x\|^2 + \text{step}\cdot J(y)`,
      with the shape and dtype of ``x``;
    * ``subgradient(x)``: one :math:`p \in \partial J(x)`, zero where ``x`` is zero, from which the
      dual variable starts.

    The strength :math:`\lambda` is not part of it: it belongs to the transformation. The three
    methods must be jittable and take arrays of any floating dtype.

    Other methods have defaults. A regularizer whose unit is a group of entries overrides
    ``group_axes``. One whose prox needs memory (a random key, a warm start) overrides
    ``init_state`` and ``prox_with_state``; `prox_step` carries the state.

    Example:
        >>> import dataclasses, jax.numpy as jnp, bregjax
        >>> @dataclasses.dataclass(frozen=True)
        ... class SquaredL2(bregjax.Regularizer):
        ...     def value(self, x):
        ...         return 0.5 * jnp.sum(x**2)
        ...     def prox(self, x, step):
        ...         return x / (1 + step)
        ...     def subgradient(self, x):
        ...         return x
        >>> tx = bregjax.linbreg(0.1, SquaredL2(), strength=0.5)
    """

    @abc.abstractmethod
    def value(self, x: jax.Array) -> jax.Array:
        """The scalar J(x)."""

    @abc.abstractmethod
    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        """The minimizer over y of ½‖y − x‖² + step·J(y)."""

    @abc.abstractmethod
    def subgradient(self, x: jax.Array) -> jax.Array:
        """One subgradient of J at x, zero where x is zero."""

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of an array of ``ndim`` dimensions along which a group extends.

        The default, no axes, makes every entry a group of its own. Negative ones count from
        the end.
        """
        del ndim
        return ()

    @property
    def has_groups(self) -> bool:
        """Whether groups may have several entries: by default, whether ``group_axes`` says more."""
        return type(self).group_axes is not Regularizer.group_axes

    def evidence(self, x: jax.Array) -> jax.Array:
        """For each entry the largest step at which ``prox(x, step)`` is not zero there.

        It tells how strong the regularizer may be before the entry goes to sleep; `land` and
        `steer` use it. The default finds it by 31 calls of ``prox``, and passes a step for each
        group: an array shaped like ``x``, but with ones along `group_axes`. The evidence may have
        this shape too, because it is the same for all entries of a group. Its dtype is that of
        ``x``, or float32 where that is narrower.
        """
        x = widened(x)
        axes = axes_of_groups(self, x.ndim)
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]

        # Non-negative floats have the same order as their bits read as integers.
        def set_bit(i: jax.Array, found: jax.Array) -> jax.Array:
            candidate = found | (jnp.uint32(1) << jnp.asarray(30 - i, jnp.uint32))
            step = lax.bitcast_convert_type(candidate, jnp.float32)
            live = jnp.any(self.prox(x, step.astype(x.dtype)) != 0, axis=axes, keepdims=True)
            return jnp.where(live & jnp.isfinite(step), candidate, found)

        bits = lax.fori_loop(0, 31, set_bit, jnp.zeros(shape, jnp.uint32))
        return lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)

    def lasting_subgradient(self, x: jax.Array, before: ArrayLike, now: ArrayLike) -> jax.Array:
        """A subgradient at ``prox(x, before)``, where ``prox(x, now)`` is not zero either.

        Elsewhere it is zero. ``keep_weights`` uses it when the strength changes.
        """
        weights = self.prox(x, before)
        return jnp.where(self.prox(x, now) != 0, self.subgradient(weights), 0)

    def init_state(self, x: jax.Array, index: int) -> Any:
        """The initial state for the parameter ``x``, leaf number ``index`` of the tree.

        Its structure is the same for all parameters. The default, None, means no state.
        """
        del x, index

    def prox_with_state(self, x: jax.Array, step: ArrayLike, state: Any) -> tuple[jax.Array, Any]:
        """``prox``, given the state and returning the next one."""
        return self.prox(x, step), state


def axes_of_groups(regularizer: Regularizer, ndim: int) -> tuple[int, ...]:
    """Its ``group_axes``, counted from 0."""
    axes = regularizer.group_axes(ndim)
    return np.lib.array_utils.normalize_axis_tuple(axes, ndim, f"{regularizer!r}.group_axes")


def has_state(regularizer: Regularizer) -> bool:
    """Whether the regularizer's prox needs memory."""
    return type(regularizer).init_state is not Regularizer.init_state


def check_regularizer(value: object, name: str = "regularizer") -> None:
    """Raises `TypeError` unless ``value`` is a `Regularizer`."""
    if not isinstance(value, Regularizer):
        hint = " Call the constructor: l1(), not l1." if callable(value) else ""
        raise TypeError(
            f"{name} must be a bregjax.Regularizer such as bregjax.l1(), got"
            f" {name}={shown(value)}.{hint}"
        )
