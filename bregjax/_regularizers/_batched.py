"""Any regularizer on arrays in which several layers are stacked."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bregjax._regularizers._base import (
    Regularizer,
    axes_of_groups,
    check_regularizer,
    has_state,
)
from bregjax._validation import check_whole


@dataclasses.dataclass(frozen=True)
class Batched(Regularizer):
    """``inner`` on each slice along ``axis``."""

    inner: Regularizer
    axis: int

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        if self.axis >= ndim:
            raise ValueError(
                f"axis={self.axis} is out of range for an array of {ndim} dimensions."
                " Leave such parameters out with mask=…."
            )
        return tuple(a + (a >= self.axis) for a in axes_of_groups(self.inner, ndim - 1))

    @property
    def has_groups(self) -> bool:
        return self.inner.has_groups

    def value(self, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(self.inner.value, self.axis)(x))

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        step, along = self._steps(x, step)
        return jax.vmap(self.inner.prox, (self.axis, along), self.axis)(x, step)

    def subgradient(self, x: jax.Array) -> jax.Array:
        return jax.vmap(self.inner.subgradient, self.axis, self.axis)(x)

    def evidence(self, x: jax.Array) -> jax.Array:
        return jax.vmap(self.inner.evidence, self.axis, self.axis)(x)

    def lasting_subgradient(self, x: jax.Array, before: ArrayLike, now: ArrayLike) -> jax.Array:
        axes = (self.axis, None, None)
        return jax.vmap(self.inner.lasting_subgradient, axes, self.axis)(x, before, now)

    def _steps(self, x: jax.Array, step: ArrayLike) -> tuple[jax.Array, int | None]:
        """The step, and the axis along which layers have their own; None if all have the same."""
        step = jnp.asarray(step)
        if step.ndim == 0:
            return step, None
        shape = list(step.shape)
        shape[self.axis] = x.shape[self.axis]
        return jnp.broadcast_to(step, shape), self.axis


@dataclasses.dataclass(frozen=True)
class BatchedWithState(Batched):
    """`Batched`, where the prox needs memory: states of the layers are stacked along axis 0."""

    def init_state(self, x: jax.Array, index: Any) -> Any:
        # Cantor's pairing: no other layer of another array has the same number.
        layer = jnp.arange(x.shape[self.axis])
        diagonal = index + layer
        indices = diagonal * (diagonal + 1) // 2 + layer
        init: Any = self.inner.init_state  # it takes a traced index too
        return jax.vmap(init, (self.axis, 0))(x, indices)

    def prox_with_state(self, x: jax.Array, step: ArrayLike, state: Any) -> tuple[jax.Array, Any]:
        step, along = self._steps(x, step)
        axes = (self.axis, along, 0)
        return jax.vmap(self.inner.prox_with_state, axes, (self.axis, 0))(x, step, state)


def batched(regularizer: Regularizer, axis: int = 0) -> Regularizer:
    r"""A regularizer for parameters of several layers, stacked along one axis.

    .. math:: J(x) = \sum_\ell J_1(x_\ell)

    where :math:`x_\ell` is the ℓ-th slice along ``axis`` and :math:`J_1` the regularizer of one
    layer. `jax.lax.scan` and ``nnx.scan`` over layers need kernels of shape (layers, in, out).
    Other regularizers would let groups and matrices span several layers. `sparsify` and
    `sparse_start` keep the same number of groups in each layer.

    Args:
      regularizer: the regularizer of each layer.
      axis: the axis of the layers, counted from 0; nest `batched` for several such axes.

    Returns:
        A `Regularizer` for arrays with one dimension more.

    Raises:
        TypeError: if ``regularizer`` is not a `Regularizer`.
        ValueError: if ``axis`` is not an integer of at least 0; when applied, if the array has no
          such axis.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernels = jnp.ones((4, 3, 5))  # of four layers
        >>> print(bregjax.live_groups(kernels, bregjax.batched(bregjax.per_neuron())).shape)
        (4, 5)
        >>> print(bregjax.batched(bregjax.nuclear()).value(kernels).round(2))  # 4·√15
        15.49
    """
    check_regularizer(regularizer)
    check_whole("axis", axis)
    made = BatchedWithState if has_state(regularizer) else Batched
    return made(regularizer, axis)
