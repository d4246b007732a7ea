"""Removing the dead units of Flax NNX modules.

This module needs Flax, so the package imports it only when one of its names is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bregjax._compaction import gather_state
from bregjax._leaves import without_variables
from bregjax._shrinking._share import Currency, shrunk_share_params
from bregjax._shrinking._shrink import Shrunk, shrink_tree
from bregjax._validation import shown


def shrink(model: nnx.Module, *example: Any, round_to: int = 1, fold: bool = True) -> Shrunk:
    """Remove the dead units of a Flax NNX model, which makes it smaller and faster.

    It applies `shrink_params` to all variables of the model in evaluation mode: to the parameters
    and to the statistics of batch norm. Layers that keep their sizes as attributes get new ones.

    Args:
      model: a module; it is not changed. `nnx.Linear`, `nnx.LinearGeneral`, `nnx.Conv`,
        `nnx.ConvTranspose`, `nnx.Einsum`, `nnx.Embed`, `nnx.MultiHeadAttention`, the norms and the
        recurrent cells may shrink. The attributes of other modules are not changed; if such a
        module does not run with a smaller array, the array keeps its size.
      *example: inputs, a few different examples.
      round_to: sizes that shrink are rounded up to multiples of this, such as 8.
      fold: as in `shrink_params`.

    Returns:
        A `Shrunk`. Its ``network`` is a smaller model of the same class, in evaluation mode; its
        ``report`` prints as a table that also says which dead units stay, and why.

    Raises:
        TypeError: if ``model`` is not an `nnx.Module`.
        ValueError: if ``round_to`` is not a whole number of at least 1, or ``example`` is empty.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(784, 200, rngs=rngs), nnx.relu, nnx.Linear(200, 10, rngs=rngs)
        ... )
        >>> kernel = model.layers[0].kernel
        >>> kernel[...] = kernel[...].at[:, 50:].set(0)  # as per_neuron() does
        >>> x = jax.random.normal(jax.random.key(0), (8, 784))
        >>> smaller, report, kept = bregjax.shrink(model, x)
        >>> print(smaller.layers[0].kernel.shape, report.multiply_adds)
        (784, 50) (1270400, 317600)
        >>> print(jnp.allclose(smaller(x), model(x), atol=1e-5))
        True

    Notes:
        The output of a dead filter with a positive bias is constant. If the next convolution pads
        its input, this constant ends at the border and cannot be folded into a bias: then the
        filter stays.

    See Also:
        `factorize`, for networks of low rank; `shrink_optimizer`, to continue the training.
    """
    model, variables, merge = _taken_apart(model)

    def smaller(variables: Any) -> nnx.Module:
        small = merge(variables)
        for (_, module), (_, before) in zip(
            nnx.iter_modules(small), nnx.iter_modules(model), strict=True
        ):
            _set_sizes(module, before)
        return small

    def run(variables: Any) -> Any:
        return smaller(variables)(*example)

    found = shrink_tree(run, _apply(merge), variables, example, round_to, fold)
    return found._replace(network=smaller(found.network))


def shrunk_share(
    model: nnx.Module, *example: Any, of: Currency = "parameters"
) -> Callable[[Any], jax.Array]:
    """Make a function that measures how large a model would be after `shrink`, as a share.

    It is `shrunk_share_params` for Flax NNX.

    Args:
      model: a module; only its shapes matter.
      *example: inputs.
      of: ``"parameters"``, ``"multiply_adds"`` or ``"bytes"``.

    Returns:
        A function from ``nnx.state(model, nnx.Param)``, or another tree with these names, to a
        share in (0, 1]. Jittable.

    Raises:
        TypeError: if ``model`` is not an `nnx.Module`.
        ValueError: if ``of`` is not one of the three.

    Example:
        As many neurons as a quarter of the multiply-adds allows:

        >>> import jax, jax.numpy as jnp, bregjax
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(8, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 2, rngs=rngs)
        ... )
        >>> share = bregjax.shrunk_share(model, jnp.ones((1, 8)), of="multiply_adds")
        >>> params = nnx.state(model, nnx.Param)
        >>> hidden = bregjax.label_by_path({"layers/0/kernel": True}, default=False)
        >>> neurons = bregjax.per_neuron()
        >>> tx = bregjax.linbreg(0.1, neurons, 0.1, mask=hidden)
        >>> landed = bregjax.land(
        ...     tx, tx.init(params), params, density=0.25, groups=neurons, measure=share
        ... )
        >>> print(share(params), share(landed))
        1.0 0.25
    """
    _, variables, merge = _taken_apart(model)
    return shrunk_share_params(_apply(merge), variables, *example, of=of)


def _taken_apart(model: nnx.Module) -> tuple[nnx.Module, Any, Callable[[Any], nnx.Module]]:
    """A copy in evaluation mode, its floating variables, and the way back from such variables."""
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module, got {shown(model)}.")
    model = nnx.clone(model)
    model.eval()
    graphdef, variables, other = nnx.split(model, _is_floating, ...)
    return model, variables, lambda changed: nnx.merge(graphdef, changed, other, copy=True)


def _apply(merge: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda variables, *inputs: merge(variables)(*inputs)


def shrink_optimizer(optimizer: nnx.Optimizer, shrunk: Shrunk) -> nnx.Optimizer:
    """Take an optimizer to the model that `shrink` has left, to train it further: compaction.

    It is `shrink_state` for `flax.nnx.Optimizer`.

    Args:
      optimizer: the optimizer of the larger model; it is not changed.
      shrunk: what `shrink` returned. Its network is in evaluation mode: call ``train()``.

    Returns:
        An optimizer of ``shrunk.network``, with the gathered state and the same count of steps.

    Raises:
        TypeError: if ``optimizer`` is not an `nnx.Optimizer`, or `shrink` did not make ``shrunk``.
        ValueError: as `shrink_state`.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs)
        ... )
        >>> kernel = model.layers[0].kernel
        >>> kernel[...] = kernel[...].at[:, 5:].set(0)
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        >>> shrunk = bregjax.shrink(model, jnp.ones((4, 3)))
        >>> model, optimizer = shrunk.network, bregjax.shrink_optimizer(optimizer, shrunk)
        >>> model.train()
        >>> gradient = nnx.grad(lambda model: model(jnp.ones((4, 3))).sum())(model)
        >>> updates = optimizer.update(model, gradient)
        >>> print(model.layers[0].kernel.shape)
        (3, 5)

    See Also:
        `unshrink`, the way back.
    """
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(f"optimizer must be a flax.nnx.Optimizer, got {optimizer=}.")
    if not isinstance(shrunk, Shrunk) or not isinstance(shrunk.network, nnx.Module):
        raise TypeError(f"shrunk must be what shrink returned, got {shrunk=}.")
    smaller = nnx.Optimizer(shrunk.network, optimizer.tx, wrt=optimizer.wrt)
    params = without_variables(nnx.state(shrunk.network, optimizer.wrt))
    state = without_variables(optimizer.opt_state)
    state = gather_state(optimizer.tx, state, params, shrunk)
    nnx.update(smaller.opt_state, nnx.state(state))
    smaller.step[...] = optimizer.step[...]
    return smaller


def _is_floating(path: Any, x: Any) -> bool:
    del path
    dtype = getattr(x, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, np.inexact))


def _shape(module: Any, name: str, ndim: int) -> tuple[int, ...]:
    """The last ``ndim`` sizes of a variable: in front of them may be axes of stacked layers."""
    return tuple(getattr(module, name)[...].shape[-ndim:])


def _set_sizes(module: Any, before: Any) -> None:
    """Sets the attributes of a layer that are sizes, from the shapes of its variables."""
    if isinstance(module, nnx.LinearGeneral):
        inputs = len(np.atleast_1d(before.in_features))
        shape = _shape(module, "kernel", inputs + len(np.atleast_1d(before.out_features)))
        module.in_features, module.out_features = shape[:inputs], shape[inputs:]
    elif isinstance(module, nnx.Linear):
        module.in_features, module.out_features = _shape(module, "kernel", 2)
    elif isinstance(module, nnx.Conv):
        shape = _shape(module, "kernel", len(before.kernel_shape))
        if before.feature_group_count == before.in_features > 1:  # depthwise
            module.feature_group_count = shape[-1] * before.in_features // before.out_features
        module.kernel_shape = shape
        module.in_features = shape[-2] * module.feature_group_count
        module.out_features = shape[-1]
    elif isinstance(module, nnx.Einsum):
        module.kernel_shape = _shape(module, "kernel", len(before.kernel_shape))
        if before.bias_shape is not None:
            module.bias_shape = _shape(module, "bias", len(before.bias_shape))
    elif isinstance(module, nnx.ConvTranspose):
        module.kernel_shape = _shape(module, "kernel", len(before.kernel_shape))
        sizes = module.kernel_shape[-2:]
        module.in_features, module.out_features = sizes[::-1] if module.transpose_kernel else sizes
    elif isinstance(module, nnx.Embed):
        module.num_embeddings, module.features = _shape(module, "embedding", 2)
    elif isinstance(module, (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm)):
        arrays = [getattr(module, name, None) for name in ("mean", "scale", "bias")]
        known = [x for x in arrays if x is not None and x[...] is not None]
        if known:
            module.num_features = known[0][...].shape[-1]
    elif isinstance(module, nnx.LSTMCell):
        module.in_features, module.hidden_features = _shape(module.ii, "kernel", 2)
    elif isinstance(module, (nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)):
        module.in_features = _shape(module.dense_i, "kernel", 2)[0]
        module.hidden_features = _shape(module.dense_h, "kernel", 2)[0]
    elif isinstance(module, nnx.MultiHeadAttention):
        features, heads, head_dim = _shape(module.query, "kernel", 3)
        module.in_features, module.num_heads, module.head_dim = features, heads, head_dim
        module.in_kv_features, module.num_kv_heads, _ = _shape(module.key, "kernel", 3)
        module.qkv_features = heads * head_dim
        module.out_features = _shape(module.out, "kernel", 3)[-1]
