"""How a sparse network's weights are shared among its layers: Erdős–Rényi densities."""

import math
from typing import Any

import jax

from bregjax._initializers import sparsify
from bregjax._leaves import Mask, selected_leaves
from bregjax._scope import ErdosRenyi
from bregjax._validation import check_flag, check_key, known_number


def erdos_renyi_densities(
    params: Any, density: float, *, kernel: bool = True, mask: Mask | None = None
) -> Any:
    r"""A density for each layer: small layers stay denser than large ones.

    .. math:: d_l = \min\Bigl(1,\; \epsilon\,
        \frac{n_\text{in} + n_\text{out} + k_h + k_w}{n_\text{in}\, n_\text{out}\, k_h\, k_w}\Bigr),
        \qquad \sum_l d_l\, n_l = d \sum_l n_l

    The factor ε solves the second equation. Where a layer is already dense, the other layers get
    the weights that it cannot take.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      density: d, the share of live weights in the whole network, in (0, 1].
      kernel: whether the size k_h·k_w of a kernel counts (ERK), or only the last two axes, input
        and output, as in the original Erdős–Rényi densities (ER). For dense layers both are the
        same formula.
      mask: which leaves are sparse, as in `linbreg`; by default those of `weight_mask`.

    Returns:
        A tree of floats with the structure of ``params``; 1.0 at leaves that the mask does not
        mark.

    Raises:
        ValueError: if ``density`` is out of range or ``mask`` does not fit.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> params = {"large": jnp.ones((100, 90)), "small": jnp.ones((10, 10))}
        >>> shares = bregjax.baselines.erdos_renyi_densities(params, 0.1)
        >>> print({name: round(share, 3) for name, share in shares.items()})
        {'large': 0.091, 'small': 0.867}

    References:
        Mocanu et al., `Scalable training of artificial neural networks with adaptive sparse
        connectivity <https://arxiv.org/abs/1707.04780>`_, 2018 (ER); Evci et al., `Rigging the
        Lottery <https://arxiv.org/abs/1911.11134>`_, ICML 2020, Section 3 (ERK).
    """
    density = known_number("density", density, above=0, at_most=1)
    check_flag("kernel", kernel)
    shapes = {path: x.shape for path, x in selected_leaves(params, mask) if x.size}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    # Without the kernel's size the number of a layer is that of one place of its kernel, times the
    # places.
    sums = [
        sum(shape) if kernel else sum(shape[-2:]) * math.prod(shape[:-2])
        for shape in shapes.values()
    ]
    numbers = ErdosRenyi(list(sizes.values()), sums).numbers(density * sum(sizes.values()))
    shares = zip(sizes.items(), numbers, strict=True)
    densities = {path: float(number / size) for (path, size), number in shares}
    return jax.tree_util.tree_map_with_path(lambda path, _: densities.get(path, 1.0), params)


def erdos_renyi_sparsify(
    key: jax.Array,
    params: Any,
    density: float,
    *,
    kernel: bool = True,
    mask: Mask | None = None,
    rescale: bool = True,
) -> Any:
    """Thin a network out at random, each layer to its density of `erdos_renyi_densities`.

    Args:
      key: a PRNG key.
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).
      density: the share of live weights in the whole network, in (0, 1].
      kernel: as in `erdos_renyi_densities`.
      mask: which leaves are thinned out, as in `erdos_renyi_densities`.
      rescale: whether survivors are divided by the root of their layer's density, as in `sparsify`.

    Returns:
        Parameters of the same structure, with ``round(density * n)`` live weights in each layer of
        n weights, at least one.

    Raises:
        ValueError: if ``density`` is out of range or ``mask`` does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> params = {"large": jnp.ones((100, 90)), "small": jnp.ones((10, 10))}
        >>> sparse = bregjax.baselines.erdos_renyi_sparsify(jax.random.key(0), params, 0.1)
        >>> print(jnp.count_nonzero(sparse["large"]), jnp.count_nonzero(sparse["small"]))
        823 87
    """
    check_key("key", key)
    check_flag("rescale", rescale)
    densities = erdos_renyi_densities(params, density, kernel=kernel, mask=mask)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(1, len(leaves)))

    def thin_out(key: jax.Array, x: jax.Array, share: float) -> jax.Array:
        return sparsify(key, x, share, mask=True, rescale=rescale) if share < 1 else x

    thinned = map(thin_out, keys, leaves, jax.tree.leaves(densities))
    return treedef.unflatten(thinned)
