"""Flax modules of low rank: their layers are replaced by thin ones.

This module needs Flax, so the package imports it only when one of its names is used.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from bregjax._numerics import widened
from bregjax._regularizers._matrices import fold, rank_tolerance, svd
from bregjax._validation import check_choice, check_range, check_whole, shown

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def factorize(
    model: ModuleT,
    *,
    tolerance: float | None = None,
    rank: int | None = None,
    conv: Literal["channels", "separable"] = "channels",
) -> ModuleT:
    r"""Replace the layers of low rank in a Flax NNX model by two thin ones each.

    .. math:: K = U \operatorname{diag}(\sigma)\, V^\top = \bigl(U_r \sqrt{\sigma_r}\bigr)
        \bigl(\sqrt{\sigma_r}\, V_r^\top\bigr)

    A dense layer (in, out) of rank r becomes two layers, (in, r) without bias and (r, out). They
    need r·(in + out) instead of in·out weights and multiply-adds. The outputs stay the same, up to
    rounding. Layers for which two thin ones are not cheaper are left alone.

    Args:
      model: a module with `nnx.Linear` and `nnx.Conv` in it, at any depth; it is not changed.
      tolerance: singular values up to this one count as zero; by default those that are rounding
        error, max(m, n)·ε·σ₁.
      rank: keep at most this many singular values of each layer, the largest. Cutting off others
        changes the outputs: continue the training afterwards.
      conv: how a convolution is split. ``"channels"`` factorizes the matrix (kh·kw·in, out), as
        ``nuclear()`` sees it: kh × kw kernels from in to r channels, then 1 × 1 ones from r to out.
        ``"separable"`` factorizes (kh·in, kw·out), as ``nuclear(row_axes=(0, 2))`` sees it:
        kh × 1 kernels from in to r channels, then 1 × kw ones from r to out.

    Returns:
        A model with `nnx.Sequential` in place of the layers that were split; a layer that is used
        in several places stays shared. Not split are: subclasses of the two; convolutions with
        groups, input dilation or a mask; with ``"separable"``, convolutions that are not
        two-dimensional; layers stacked by `nnx.vmap`; layers inside plain tuples. Metadata of the
        kernels, such as their sharding, is lost.

    Raises:
        TypeError: if ``model`` is not an `nnx.Module`.
        ValueError: if ``conv`` is unknown, ``tolerance`` negative, or ``rank`` less than 1.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Linear(100, 80, rngs=nnx.Rngs(0)), nnx.relu)
        >>> kernel = model.layers[0].kernel
        >>> kernel[...] = bregjax.nuclear(rank=3).prox(kernel[...], 0.1)
        >>> smaller = bregjax.factorize(model)
        >>> print([layer.kernel.shape for layer in smaller.layers[0].layers])
        [(100, 3), (3, 80)]
        >>> x = jnp.ones((1, 100))
        >>> print(jnp.allclose(smaller(x), model(x), atol=1e-5))
        True

    References:
        Jaderberg, Vedaldi, Zisserman, `Speeding up Convolutional Neural Networks with Low Rank
        Expansions <https://arxiv.org/abs/1405.3866>`_, BMVC 2014, Section 2, for ``"separable"``.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module, got {shown(model)}.")
    check_choice("conv", conv, ("channels", "separable"))
    if tolerance is not None:
        check_range("tolerance", tolerance, at_least=0)
    if rank is not None:
        check_whole("rank", rank, at_least=1)
    limits = _Limits(tolerance, rank)
    model = nnx.clone(model)
    modules = [module for _, module in nnx.iter_modules(model)]
    thin: dict[int, Any] = {}
    for module in modules:
        # Not subclasses of them: these may do more with the kernel.
        if type(module) is nnx.Linear:
            thin[id(module)] = _split_linear(module, limits)
        elif type(module) is nnx.Conv:
            thin[id(module)] = _split_conv(module, limits, separable=conv == "separable")
    for parent in modules:
        children: list[tuple[Any, Any]] = list(nnx.iter_children(parent))
        for name, child in children:
            if thin.get(id(child)) is None:
                continue
            if isinstance(parent, (nnx.List, nnx.Dict)):
                parent[name] = thin[id(child)]
            else:
                setattr(parent, name, thin[id(child)])
    return thin.get(id(model)) or model


class _Limits(NamedTuple):
    tolerance: float | None
    rank: int | None


def _factors(matrix: jax.Array, limits: _Limits) -> tuple[jax.Array, jax.Array] | None:
    """The two thin matrices; None where they are not cheaper."""
    rows, columns = matrix.shape
    matrix = widened(matrix)
    u, s, vt = svd(matrix)
    smallest = rank_tolerance(matrix, s) if limits.tolerance is None else limits.tolerance
    rank = max(int(jnp.sum(s[: limits.rank] > jnp.asarray(smallest, s.dtype))), 1)
    if rank * (rows + columns) >= rows * columns:
        return None
    roots = jnp.sqrt(s[:rank])
    return u[:, :rank] * roots, roots[:, None] * vt[:rank]


def _split_linear(layer: nnx.Linear, limits: _Limits) -> nnx.Sequential | None:
    kernel = layer.kernel[...]
    factors = _factors(kernel, limits) if kernel.ndim == 2 else None
    if factors is None:
        return None
    first, second = factors
    shared = _settings(layer, "dot_general")
    rngs = nnx.Rngs(0)
    thin = nnx.Linear(*first.shape, use_bias=False, rngs=rngs, **shared)
    last = nnx.Linear(*second.shape, use_bias=layer.use_bias, rngs=rngs, **shared)
    return _assembled(thin, first, last, second, layer)


def _split_conv(layer: nnx.Conv, limits: _Limits, *, separable: bool) -> nnx.Sequential | None:
    dimensions = len(layer.kernel_size)
    kernel = layer.kernel[...]
    plain = layer.feature_group_count == 1 and layer.mask is None
    if not plain or any(d != 1 for d in _per_axis(layer.input_dilation, dimensions)):
        return None
    if kernel.ndim != dimensions + 2 or (separable and dimensions != 2):
        return None
    matrix, _ = fold(kernel, (0, 2) if separable else None)
    factors = _factors(matrix, limits)
    if factors is None:
        return None
    inputs, outputs = kernel.shape[-2:]
    shared = _settings(layer, "conv_general_dilated")
    rank = factors[0].shape[1]
    axes = (0,) if separable else tuple(range(dimensions))  # the axes of the first layer's kernel

    def one_of_two(first: bool) -> nnx.Conv:
        def mine(value: Any, otherwise: Any) -> list:
            values = _per_axis(value, dimensions)
            return [v if (i in axes) == first else otherwise for i, v in enumerate(values)]

        padding = layer.padding
        return nnx.Conv(
            inputs if first else rank,
            rank if first else outputs,
            mine(layer.kernel_size, 1),
            strides=mine(layer.strides, 1),
            # A name such as "SAME" means nothing for kernels of size one.
            padding=padding if isinstance(padding, str) else mine(padding, 0),
            kernel_dilation=mine(layer.kernel_dilation, 1),
            use_bias=layer.use_bias and not first,
            rngs=nnx.Rngs(0),
            **shared,
        )

    thin, last = one_of_two(True), one_of_two(False)
    first, second = factors
    if separable:
        height, width = kernel.shape[:2]
        first = first.reshape(height, 1, inputs, rank)
        # The columns of the matrix run over (kw, out).
        second = second.reshape(rank, width, outputs).transpose(1, 0, 2)[None]
    else:
        first = first.reshape(*kernel.shape[:-1], rank)
        second = second.reshape(*(1,) * dimensions, rank, outputs)
    return _assembled(thin, first, last, second, layer)


def _settings(layer: Any, product: str) -> dict[str, Any]:
    """What both thin layers take over; ``product`` is the function that multiplies."""
    names = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")
    return {name: getattr(layer, name) for name in (*names, product)}


def _per_axis(value: Any, dimensions: int) -> Sequence[Any]:
    value = 1 if value is None else value  # of strides and dilations
    return [value] * dimensions if isinstance(value, int) else list(value)


def _assembled(
    thin: Any, first: jax.Array, last: Any, second: jax.Array, layer: Any
) -> nnx.Sequential:
    thin.kernel[...] = first.astype(layer.kernel[...].dtype)
    last.kernel[...] = second.astype(layer.kernel[...].dtype)
    if layer.use_bias:
        last.bias[...] = layer.bias[...]
    return nnx.Sequential(thin, last)
