"""Networks that start with few weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal

from bregjax._leaves import Mask, kernels_of_biases, leaf_name, marks_of
from bregjax._regularizers._base import Regularizer, axes_of_groups, check_regularizer
from bregjax._regularizers._batched import Batched, batched
from bregjax._regularizers._elementwise import l1
from bregjax._validation import (
    check_array,
    check_flag,
    check_floating,
    check_function,
    check_key,
    check_range,
    check_some,
    known_number,
    raised_by,
    shown,
)


def _thin_out(
    key: jax.Array, x: jax.Array, density: float, groups: Regularizer, rescale: bool
) -> jax.Array:
    """Sets all but round(density·n) of the n groups of ``x`` to zero; at least one group stays.

    Where layers are stacked, this is done in each layer.
    """
    if isinstance(groups, Batched):
        one = functools.partial(_thin_out, density=density, groups=groups.inner, rescale=rescale)
        keys = jax.random.split(key, x.shape[groups.axis])
        return jax.vmap(one, (0, groups.axis), groups.axis)(keys, x) if x.size else x
    axes = axes_of_groups(groups, x.ndim)
    shape = [1 if a in axes else size for a, size in enumerate(x.shape)]
    total = math.prod(shape)
    if total == 0:
        return x
    kept = min(max(1, round(density * total)), total)
    survives = (jax.random.permutation(key, total) < kept).reshape(shape)
    gain = math.sqrt(total / kept) if rescale else 1.0
    return jnp.where(survives, x * jnp.asarray(gain, x.dtype), jnp.zeros_like(x))


def _he_normal(key: jax.Array, shape: Any, dtype: Any, **placement: Any) -> jax.Array:
    """He's distribution without the exact zeros that narrow dtypes draw (bfloat16: 0.8 %)."""
    kernel = he_normal()(key, shape, dtype, **placement)
    return jnp.where(kernel == 0, jnp.asarray(jnp.finfo(dtype).tiny, dtype), kernel)


def sparse_initializer(
    density: float,
    base: Initializer | None = None,
    *,
    groups: Regularizer | None = None,
    rescale: bool = True,
) -> Initializer:
    r"""Make an initializer for sparse kernels, to be given to a Flax layer.

    .. math:: \theta_0 = \frac{1}{\sqrt r}\, W \odot M

    with :math:`W` drawn by ``base``, :math:`M` a random 0/1 mask on groups and :math:`r` its share
    of ones. The factor keeps the variance of the layer's outputs:
    :math:`\operatorname{Var}[\theta_0] = \operatorname{Var}[W]`.

    Args:
      density: the share of groups that survive, in (0, 1]. Exactly ``round(density * n)`` of the
        n groups do, at least one.
      base: draws the dense kernel; the default is `jax.nn.initializers.he_normal`. An entry that it
        draws as zero is zero even if it survives.
      groups: what survives or not, named by a regularizer with these groups: ``l1()``, the
        default, for entries, ``per_neuron()``, ``per_kernel()``, ``per_filter()`` and so on.
      rescale: False leaves out the factor.

    Returns:
        An initializer: a function of ``(key, shape, dtype)``.

    Raises:
        ValueError: if ``density`` is out of range, or a traced value: how many groups survive must
          be known.
        TypeError: if ``groups`` is not a `Regularizer` or ``base`` not a function.

    Example:
        >>> import jax, bregjax
        >>> init = bregjax.sparse_initializer(0.01)
        >>> kernel = init(jax.random.key(0), (784, 200))
        >>> int((kernel != 0).sum())
        1568

    References:
        Bungert, Roith, Tenbrinck, Burger, `A Bregman Learning Framework for Sparse Neural Networks
        <https://arxiv.org/abs/2105.04319>`_, JMLR 23, 2022, the section on parameter
        initialization.

    Notes:
        The paper draws the mask of each entry independently; here the count is exact.

        A unit without a live weight and with bias 0 is at the kink of its ReLU: no gradient ever
        wakes it. Where whole neurons or kernels start at zero, use `positive_biases`.
    """
    density = known_number("density", density, above=0, at_most=1)
    groups = l1() if groups is None else groups
    check_regularizer(groups, "groups")
    check_flag("rescale", rescale)
    dense = _he_normal if base is None else base
    check_function("base", dense)

    def init(
        key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> jax.Array:
        kernel_key, mask_key = jax.random.split(key)
        placement = {} if out_sharding is None else {"out_sharding": out_sharding}
        with raised_by(f"base={shown(dense)}"):
            kernel = dense(kernel_key, shape, dtype, **placement)
        check_array("base(key, shape, dtype)", kernel)
        return _thin_out(mask_key, kernel, density, groups, rescale)

    return init


def sparsify(
    key: jax.Array,
    params: Any,
    density: float,
    *,
    groups: Regularizer | None = None,
    mask: Mask | None = None,
    stacked: Mask | None = None,
    rescale: bool = True,
) -> Any:
    """Zero all but a random share of the weights of existing parameters.

    Args:
      key: a PRNG key.
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      density: the share of groups that survive in each array, in (0, 1]. Exactly
        ``round(density * n)`` of its n groups do, at least one.
      groups: what survives or not, as in `sparse_initializer`.
      mask: which leaves become sparse, as in `linbreg`; by default those of `weight_mask`.
      stacked: which leaves hold a kernel for each of several layers, along their first axis, such
        as ``label_by_path({"blocks/*": True}, default=False)``. Each layer keeps the same number of
        groups; ``groups`` are those of one layer.
      rescale: whether survivors are multiplied by one over the root of the surviving share, so
        that the variance of a layer's outputs stays. Use False for trained parameters.

    Returns:
        Parameters of the same structure, shapes and dtypes.

    Raises:
        ValueError: if ``density`` is out of range or a traced value, or ``mask`` does not fit.
        TypeError: if ``groups`` is not a `Regularizer`.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
        >>> sparse = bregjax.sparsify(jax.random.key(0), params, 0.25)
        >>> print(jnp.sum(sparse["kernel"] != 0), sparse["kernel"].max(), sparse["bias"])
        4 2.0 [1. 1. 1. 1.]

        A Flax NNX model, in place::

            nnx.update(model, bregjax.sparsify(key, nnx.state(model, nnx.Param), 0.01))

    Notes:
        Units without a live weight need positive biases to wake; `sparse_start` draws these too.
    """
    density = known_number("density", density, above=0, at_most=1)
    groups = l1() if groups is None else groups
    check_regularizer(groups, "groups")
    check_key("key", key)
    check_flag("rescale", rescale)
    check_some("params", params)
    marks = marks_of(params, mask)
    keys = iter(jax.random.split(key, max(1, sum(jax.tree.leaves(marks)))))

    layered = marks_of(params, (lambda _: False) if stacked is None else stacked, "stacked")

    def one(path: tuple, x: jax.Array, marked: bool, several: bool) -> jax.Array:
        if not marked:
            return x
        check_array(f"params{jax.tree_util.keystr(path)}", x)
        mine = batched(groups) if several else groups
        return _thin_out(next(keys), jnp.asarray(x), density, mine, rescale)

    return jax.tree_util.tree_map_with_path(one, params, marks, layered)


def positive_biases(key: jax.Array, params: Any, *, scale: float = 1.0) -> Any:
    r"""Draw the biases that are not positive from [0, scale/√fan_in], uniformly.

    A unit whose weights are all zero puts out its bias. With bias 0 it is at the kink of its ReLU,
    where the gradient is zero, and never wakes. With a positive bias its weights get gradients from
    the first step.

    Args:
      key: a PRNG key.
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree). A bias is a leaf
        called ``bias`` or ``b``; its fan-in is that of the ``kernel``, ``weight`` or ``w`` beside
        it. A bias without such a kernel, as in a norm, takes the number of biases instead.
      scale: a factor on the bound, at least 0.

    Returns:
        Parameters of the same structure, shapes and dtypes. Positive biases stay as they are.

    Raises:
        ValueError: if ``scale`` is out of range or ``key`` is not a key.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> params = {"kernel": jnp.zeros((25, 2)), "bias": jnp.zeros(2)}
        >>> bias = bregjax.positive_biases(jax.random.key(0), params)["bias"]
        >>> print((0 < bias) & (bias < 0.2))
        [ True  True]

    References:
        The authors' `code <https://github.com/TimRoith/BregmanLearning>`_ starts this way.
    """
    check_range("scale", scale, at_least=0)
    check_key("key", key)
    paths, treedef = jax.tree.flatten_with_path(params)
    leaves = {leaf_name(path): x for path, x in paths}
    kernels = kernels_of_biases(leaves)
    for index, (path, x) in enumerate(paths):
        name = leaf_name(path)
        if name not in kernels:
            continue
        check_array(f"params{jax.tree_util.keystr(path)}", x)
        check_floating(path, x)
        x = jnp.asarray(x)
        if x.size:
            kernel = kernels[name]
            fan_in = x.size if kernel is None else leaves[kernel].size // x.size
            bound = jnp.asarray(scale / math.sqrt(max(1, fan_in)), x.dtype)
            bias = bound * jax.random.uniform(jax.random.fold_in(key, index), x.shape, x.dtype)
            leaves[name] = jnp.where(x > 0, x, bias)
    return treedef.unflatten(list(leaves.values()))


def sparse_start(
    key: jax.Array,
    params: Any,
    density: float = 0.5,
    *,
    groups: Regularizer | None = None,
    mask: Mask | None = None,
    stacked: Mask | None = None,
) -> Any:
    """Prepare a network for sparse training: fewer weights, and no unit that sleeps for ever.

    It is `sparsify`, then `positive_biases`.

    Args:
      key: a PRNG key.
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      density: the share of groups that survive in each array, in (0, 1]. The paper, with a fixed
        λ, starts with 0.01; a training of a few hundred steps needs a start that is not sparser
        than its end. The default of one half suits ``adabreg_to_density(…, initial_density=0.5)``.
      groups: what survives or not, as in `sparsify`: the regularizer of the optimizer.
      mask: which leaves become sparse, as in `sparsify`.
      stacked: which leaves hold several layers, as in `sparsify`.

    Returns:
        Parameters of the same structure, shapes and dtypes.

    Raises:
        ValueError: as `sparsify` does.
        TypeError: if ``groups`` is not a `Regularizer`.

    Example:
        A Flax NNX model, in place:

        >>> import bregjax
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Linear(100, 10, rngs=rngs)
        >>> nnx.update(model, bregjax.sparse_start(rngs(), nnx.state(model, nnx.Param), 0.05))
        >>> print((model.kernel[...] != 0).sum(), (model.bias[...] > 0).all())
        50 True
    """
    check_key("key", key)
    mask_key, bias_key = jax.random.split(key)
    sparse = sparsify(mask_key, params, density, groups=groups, mask=mask, stacked=stacked)
    return positive_biases(bias_key, sparse)
