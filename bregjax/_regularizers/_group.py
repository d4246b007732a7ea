"""Regularizers that switch whole groups of entries on and off."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bregjax._numerics import widened
from bregjax._regularizers._base import Regularizer
from bregjax._regularizers._elementwise import soft_threshold
from bregjax._regularizers._norms import Pointwise, directions, group_norms, norms_beside
from bregjax._validation import check_axes, check_flag, known_number


@dataclasses.dataclass(frozen=True)
class _GroupL2(Regularizer):
    """Groups extend along ``axis`` or, where ``all_but`` is set, along all axes but those."""

    axis: tuple[int, ...]
    all_but: bool
    size_weighted: bool
    name: str = dataclasses.field(compare=False, repr=False)
    """the name of the argument that gave the axes"""

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        name = self.name
        if any(not -ndim <= a < ndim for a in self.axis):
            raise ValueError(
                f"{name}={self.axis} is out of range for an array of {ndim} dimensions."
                " Leave such parameters out with mask=…."
            )
        named = {a % ndim for a in self.axis}
        if len(named) != len(self.axis):
            raise ValueError(f"{name}={self.axis} names an axis twice in {ndim} dimensions.")
        return tuple(a for a in range(ndim) if (a in named) != self.all_but)

    def weight(self, x: jax.Array) -> float:
        """√n, the weight of a group of n entries, or 1."""
        n = math.prod(x.shape[a] for a in self.group_axes(x.ndim))
        return math.sqrt(n) if self.size_weighted else 1.0

    def value(self, x: jax.Array) -> jax.Array:
        norms = group_norms(widened(x), self.group_axes(x.ndim))
        return (self.weight(x) * jnp.sum(norms)).astype(x.dtype)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        wide = widened(x)
        return (wide * self.factor(wide, step)).astype(x.dtype)

    def factor(self, x: jax.Array, step: ArrayLike, of: Pointwise = jnp.asarray) -> jax.Array:
        """By what the prox of of(x) multiplies each group: max(1 − s·weight/‖of(x)_g‖, 0)."""
        return jnp.maximum(1 - self._quotient(x, step, of), 0)

    def _quotient(self, x: jax.Array, step: ArrayLike, of: Pointwise = jnp.asarray) -> jax.Array:
        """s·weight/‖of(x)_g‖ of each group, but at most 2."""
        threshold = jnp.minimum(jnp.asarray(step, x.dtype) * self.weight(x), jnp.finfo(x.dtype).max)
        norm, threshold = norms_beside(threshold, x, self.group_axes(x.ndim), of)
        # The floor keeps values and derivatives finite. Every group with a norm below the
        # threshold has a quotient above one, hence a factor of exactly zero.
        return threshold / jnp.maximum(norm, threshold / 2)

    def lasting_subgradient(self, x: jax.Array, before: ArrayLike, now: ArrayLike) -> jax.Array:
        # The prox leaves a group's direction as it is, so one norm serves both steps.
        wide = widened(x)
        step = jnp.maximum(jnp.asarray(before, wide.dtype), jnp.asarray(now, wide.dtype))
        quotient = self._quotient(wide, step)
        lives = (1 - quotient > 0) & (step > 0)
        weight_per_norm = jnp.where(lives, quotient / jnp.where(step > 0, step, 1), 0)
        return (wide * weight_per_norm).astype(x.dtype)

    def subgradient(self, x: jax.Array) -> jax.Array:
        direction = directions(widened(x), self.group_axes(x.ndim))
        return (self.weight(x) * direction).astype(x.dtype)

    def evidence(self, x: jax.Array) -> jax.Array:
        return group_norms(widened(x), self.group_axes(x.ndim)) / self.weight(x)


@dataclasses.dataclass(frozen=True)
class _SparseGroup(Regularizer):
    group: _GroupL2
    l1_weight: float
    group_weight: float

    def group_axes(self, ndim: int) -> tuple[int, ...]:
        return self.group.group_axes(ndim)

    def value(self, x: jax.Array) -> jax.Array:
        return self.l1_weight * jnp.sum(jnp.abs(x)) + self.group_weight * self.group.value(x)

    def prox(self, x: jax.Array, step: ArrayLike) -> jax.Array:
        wide = widened(x)
        step = jnp.minimum(jnp.asarray(step, wide.dtype), jnp.finfo(wide.dtype).max)
        threshold = self.l1_weight * step

        def magnitude(x: jax.Array) -> jax.Array:
            # |soft_threshold|, in the form that XLA's CPU backend fuses best.
            return jnp.where(jnp.abs(x) <= threshold, 0, jnp.abs(x) - threshold)

        factor = self.group.factor(wide, self.group_weight * step, magnitude)
        return (soft_threshold(wide, threshold) * factor).astype(x.dtype)

    def subgradient(self, x: jax.Array) -> jax.Array:
        return self.l1_weight * jnp.sign(x) + self.group_weight * self.group.subgradient(x)

    def evidence(self, x: jax.Array) -> jax.Array:
        wide = widened(x)
        size, axes = jnp.abs(wide), self.group_axes(x.ndim)
        own = size / self.l1_weight if self.l1_weight else jnp.where(size > 0, jnp.inf, 0)
        weight = self.group_weight * self.group.weight(x)
        if not weight:
            return own

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) / 2
            left = group_norms(jnp.maximum(size - self.l1_weight * middle, 0), axes)
            live = left > weight * middle
            return jnp.where(live, middle, low), jnp.where(live, high, middle)

        # A group lives while the norm of what the ℓ1 part leaves exceeds the group's threshold.
        most = group_norms(wide, axes) / weight
        digits = jnp.finfo(wide.dtype).nmant + 8
        low, _ = lax.fori_loop(0, digits, halve, (jnp.zeros_like(most), most))
        return jnp.minimum(own, low)


def group_l2(
    axis: int | tuple[int, ...] | None = None,
    *,
    all_but: int | tuple[int, ...] | None = None,
    size_weighted: bool = True,
) -> Regularizer:
    r"""The group lasso, :math:`J(x) = \sqrt{n}\sum_g \|x_g\|_2`: groups live or die as a whole.

    A group :math:`x_g` is the slice of ``x`` along ``axis``; it has :math:`n` entries.

    .. math::
        \operatorname{prox}_{sJ}(x)_g = x_g \max\Bigl(1 - \frac{s\sqrt n}{\|x_g\|_2},\, 0\Bigr)

    The subgradient is :math:`\sqrt n\, x_g / \|x_g\|_2`, zero for a zero group. The weight
    :math:`\sqrt n` makes one strength fit layers of different sizes. Groups of one entry make it
    `l1`.

    Args:
      axis: the axes along which a group extends, e.g. ``axis=0`` for the incoming weights of each
        neuron of a Dense kernel ``(in, out)``.
      all_but: give this instead of ``axis`` for groups that extend along all axes but these. Then
        one regularizer fits kernels of any rank.
      size_weighted: False leaves out the factor :math:`\sqrt n`.

    Returns:
        A `Regularizer` for arrays in which the axes exist.

    Raises:
        ValueError: if not exactly one of ``axis`` and ``all_but`` is given, or they are not
          distinct integers; when applied, if an axis is out of range for the array.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> x = jnp.array([[3.0, 0.1], [4.0, 0.1]])
        >>> print(bregjax.group_l2(axis=0, size_weighted=False).prox(x, 2.5))
        [[1.5 0. ]
         [2.  0. ]]

    Notes:
        Norms are computed in float32 (float64 for float64). In float32 the prox is not exact for
        norms below 1e-26.

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022.

    See Also:
        `per_neuron`, `per_kernel`, `per_filter`, `per_input_channel`, `per_head`, `per_token`,
        `sparse_group`, and `batched` for stacked layers.
    """
    if axis is not None and all_but is None:
        return _groups("axis", axis, size_weighted, all_but=False)
    if all_but is not None and axis is None:
        return _groups("all_but", all_but, size_weighted)
    raise ValueError(f"give either axis or all_but, got axis={axis!r}, all_but={all_but!r}.")


def per_neuron(*, out_axis: int | tuple[int, ...] = -1, size_weighted: bool = True) -> Regularizer:
    """`group_l2` with a group for each output unit: its incoming weights, without the bias.

    A group is a column of a Dense kernel ``(in, out)``. In kernels of higher rank it extends along
    all axes but the last.

    Args:
      out_axis: where the output units are: 0 in Equinox's layouts, ``(-2, -1)`` in the query, key
        and value kernels of Flax's attention.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least one dimension.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.array([[1.0, 0.1], [1.0, 0.1]])
        >>> print(bregjax.per_neuron().prox(kernel, 0.5))
        [[0.5 0. ]
         [0.5 0. ]]
    """
    return _groups("out_axis", out_axis, size_weighted)


def per_kernel(*, in_axis: int = -2, out_axis: int = -1, size_weighted: bool = True) -> Regularizer:
    """`group_l2` with a group for each convolution kernel, one per pair of channels.

    A group is a ``(kh, kw)`` slice of a Conv kernel ``(kh, kw, in, out)``. On a Dense kernel groups
    have one entry, which makes this `l1`.

    Args:
      in_axis: where the input channels are; 1 in Equinox's layouts.
      out_axis: where the output channels are; 0 in Equinox's layouts.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least two dimensions.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.ones((3, 3, 1, 2)) * jnp.array([1.0, 0.1])
        >>> print(bregjax.per_kernel().prox(kernel, 0.5)[0, 0])
        [[0.5 0. ]]
    """
    return _groups("(in_axis, out_axis)", (in_axis, out_axis), size_weighted)


def per_filter(*, out_axis: int = -1, size_weighted: bool = True) -> Regularizer:
    """`group_l2` with a group for each filter: all weights of one output channel.

    A group is a ``(kh, kw, in)`` slice of a Conv kernel ``(kh, kw, in, out)``. These are the groups
    of `per_neuron`, under the name that is usual for convolutions.

    Args:
      out_axis: where the output channels are; 0 in Equinox's layouts.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least one dimension.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.ones((3, 3, 2, 2)) * jnp.array([1.0, 0.1])
        >>> print(bregjax.per_filter().prox(kernel, 0.5)[0, 0])
        [[0.5 0. ]
         [0.5 0. ]]
    """
    return per_neuron(out_axis=out_axis, size_weighted=size_weighted)


def per_input_channel(
    *, in_axis: int | tuple[int, ...] = -2, size_weighted: bool = True
) -> Regularizer:
    """`group_l2` with a group for each input channel (Conv) or input unit (Dense).

    A group is a ``(kh, kw, out)`` slice of a Conv kernel ``(kh, kw, in, out)``, or a row of a Dense
    kernel ``(in, out)``. Where it is dead, the layer does not use that input.

    Args:
      in_axis: where the inputs are; 1 in Equinox's layouts.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least two dimensions.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.array([[1.0, 1.0], [0.1, 0.1]])
        >>> print(bregjax.per_input_channel().prox(kernel, 0.5))
        [[0.5 0.5]
         [0.  0. ]]
    """
    return _groups("in_axis", in_axis, size_weighted)


def per_head(*, head_axis: int = -2, size_weighted: bool = True) -> Regularizer:
    """`group_l2` with a group for each head of an attention layer.

    A group is a ``(features, head_dim)`` slice of Flax's query, key and value kernels, which have
    shape ``(features, heads, head_dim)``; with ``head_axis=-3`` it is a slice of the output kernel,
    of shape ``(heads, head_dim, features)``. A head whose value or output group is dead contributes
    nothing.

    Args:
      head_axis: where the heads are.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least two dimensions.

    Example:
        >>> import optax, bregjax
        >>> tx = optax.partition(
        ...     {
        ...         "values": bregjax.adabreg(1e-3, bregjax.per_head(), 0.1),
        ...         "out": bregjax.adabreg(1e-3, bregjax.per_head(head_axis=-3), 0.1),
        ...         "rest": optax.adam(1e-3),
        ...     },
        ...     bregjax.label_by_path(
        ...         {"*attention/value/kernel": "values", "*attention/out/kernel": "out"},
        ...         default="rest",
        ...     ),
        ... )
    """
    return _groups("head_axis", head_axis, size_weighted)


def per_token(*, token_axis: int = 0, size_weighted: bool = True) -> Regularizer:
    """`group_l2` with a group for each token of an embedding table: its vector.

    A group is a row of a table ``(tokens, features)``. For a group per feature, which is a column,
    use `per_neuron`.

    Args:
      token_axis: where the tokens are.
      size_weighted: as in `group_l2`.

    Returns:
        A `Regularizer` for arrays of at least one dimension.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> table = jnp.array([[3.0, 4.0], [0.3, 0.4]])
        >>> print(bregjax.per_token(size_weighted=False).prox(table, 1.0))
        [[2.4 3.2]
         [0.  0. ]]
    """
    return _groups("token_axis", token_axis, size_weighted)


def _groups(
    name: str, axes: int | tuple[int, ...], size_weighted: bool, *, all_but: bool = True
) -> Regularizer:
    """Groups along the axes of the argument called ``name``, or along all others."""
    check_flag("size_weighted", size_weighted)
    return _GroupL2(check_axes(name, axes), all_but, size_weighted, name)


def sparse_group(
    axis: int | tuple[int, ...] | Regularizer, *, l1_weight: float = 1.0, group_weight: float = 1.0
) -> Regularizer:
    r"""The sparse group lasso: sparse groups, and sparse entries within the live ones.

    .. math:: J(x) = a\,\|x\|_1 + b\sqrt n \sum_g \|x_g\|_2

    The prox first soft-thresholds the array and then shrinks its groups, each with its own weight;
    the order matters. The subgradient is the sum of both subgradients.

    Args:
      axis: the axes along which a group extends, as in `group_l2`, or a regularizer with these
        groups, such as ``per_kernel()``.
      l1_weight: a, at least 0.
      group_weight: b, at least 0.

    Returns:
        A `Regularizer` for arrays in which the axes exist.

    Raises:
        ValueError: if a weight is negative or ``axis`` is neither axes nor a group regularizer.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> x = jnp.array([[6.5, 0.6], [8.5, 0.6], [0.3, 0.6]])
        >>> J = bregjax.sparse_group(bregjax.per_neuron(size_weighted=False))
        >>> print(J.prox(x, 0.5))
        [[5.7 0. ]
         [7.6 0. ]
         [0.  0. ]]

    References:
        Simon, Friedman, Hastie, Tibshirani, `A Sparse-Group Lasso
        <https://doi.org/10.1080/10618600.2012.681250>`_, J. Comput. Graph. Stat. 22, 2013.

    Notes:
        The authors' PyTorch class multiplies by its λ twice, so its λ corresponds to λ² here.
    """
    l1_weight = known_number("l1_weight", l1_weight, at_least=0)
    group_weight = known_number("group_weight", group_weight, at_least=0)
    if isinstance(axis, _GroupL2):
        group = axis
    elif isinstance(axis, Regularizer):
        raise ValueError(
            f"axis must be axes or a group regularizer such as per_kernel(), got axis={axis!r}."
        )
    else:
        group = _GroupL2(check_axes("axis", axis), all_but=False, size_weighted=True, name="axis")
    return _SparseGroup(group, float(l1_weight), float(group_weight))
