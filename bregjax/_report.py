"""A table of a network's sparsity, layer by layer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bregjax._leaves import (
    Layout,
    Mask,
    kernels_of_biases,
    layouts_of,
    leaf_name,
    parameters_of,
    selected_matrices,
    stacked_leaves,
)
from bregjax._measures import effective_rank
from bregjax._regularizers._matrices import fold
from bregjax._tables import table
from bregjax._validation import check_flag


@dataclasses.dataclass(frozen=True)
class LayerSparsity:
    """What `sparsity_report` says about one array; pairs are (live, all)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: tuple[int, int]
    outputs: tuple[int, int]
    """neurons of a Dense kernel, filters of a Conv kernel; of stacked layers, all of them"""
    inputs: tuple[int, int]
    kernels: tuple[int, int] | None
    """(kh, kw) slices; None where the array is not a Conv kernel"""
    rank: tuple[int, int] | None
    """None unless ranks were asked for"""
    asleep: int | None = None
    """outputs that have no live weight and no positive bias: behind a ReLU they never wake; None
    where there is no bias beside the kernel"""

    @property
    def density(self) -> float:
        """The share of entries that are not zero."""
        return self.weights[0] / self.weights[1]


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """The result of `sparsity_report`: ``print`` it, or read the fields."""

    layers: tuple[LayerSparsity, ...]
    total_parameters: int
    """all entries, biases and norms included"""

    @property
    def weights(self) -> tuple[int, int]:
        """(live, all) weights of all layers together."""
        live, total = (sum(layer.weights[i] for layer in self.layers) for i in (0, 1))
        return live, total

    @property
    def density(self) -> float:
        """The share of weights that are not zero."""
        return self.weights[0] / self.weights[1]

    def densities(self) -> dict[str, float]:
        """The share of non-zero weights by kind of layer, and of live ``conv_kernels``."""
        pairs: dict[str, list[tuple[int, int]]] = {}
        for layer in self.layers:
            pairs.setdefault(layer.kind, []).append(layer.weights)
            if layer.kernels is not None:
                pairs.setdefault("conv_kernels", []).append(layer.kernels)
        return {kind: sum(p[0] for p in ps) / sum(p[1] for p in ps) for kind, ps in pairs.items()}

    def __str__(self) -> str:
        head = ("layer", "kind", "shape", "weights", "density")
        head += ("outputs", "asleep", "inputs", "kernels", "rank")
        rows = [
            (
                layer.name,
                layer.kind,
                "×".join(map(str, layer.shape)),
                _of(layer.weights),
                f"{layer.density:.2%}",
                _of(layer.outputs),
                "" if layer.asleep is None else str(layer.asleep),
                _of(layer.inputs),
                _of(layer.kernels),
                _of(layer.rank),
            )
            for layer in self.layers
        ]
        total = ("all weights", "", "", _of(self.weights), f"{self.density:.2%}", *5 * [""])
        return table(head, rows, [total], "<<<>>>>>>>")


def _of(pair: tuple[int, int] | None) -> str:
    return "" if pair is None else f"{pair[0]:,}/{pair[1]:,}"


def _parameters_of(model: Any) -> Any:
    """The parameters of a Flax NNX module or of Linen variables; any other tree as it is."""
    if isinstance(model, Mapping) and isinstance(model.get("params"), Mapping):
        return model["params"]
    return parameters_of(model)


def sparsity_report(
    params: Any, *, mask: Mask | None = None, stacked: Mask | None = None, ranks: bool = True
) -> SparsityReport:
    """Tabulate what is alive in a network, layer by layer.

    Args:
      params: a Flax NNX module or state, Linen variables or parameters, or any tree of arrays.
      mask: which leaves are shown, as in `linbreg`, of two or more dimensions each; by default
        those of `weight_mask`. Arrays without entries are left out.
      stacked: which leaves hold a kernel for each of several layers, along their first axis, such
        as ``label_by_path({"blocks/*": True}, default=False)``. The row counts what lives in all
        layers together.
      ranks: whether to compute the ranks, which takes a singular value decomposition of each
        array.

    Returns:
        A `SparsityReport`. It prints as a table with the non-zero weights of each array, its live
        outputs (neurons or filters), the outputs that never wake behind a ReLU, its live inputs and
        convolution kernels, and its rank.

    Raises:
        ValueError: if there is nothing to show, or ``mask`` does not fit or marks a vector.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> kernel = jnp.zeros((3, 2)).at[0, 1].set(1.0)
        >>> print(bregjax.sparsity_report({"out": {"kernel": kernel, "bias": jnp.zeros(2)}}))
        layer        kind   shape  weights  density  outputs  asleep  inputs  kernels  rank
        ───────────────────────────────────────────────────────────────────────────────────
        out/kernel   dense  3×2        1/6   16.67%      1/2       1     1/3            1/2
        ───────────────────────────────────────────────────────────────────────────────────
        all weights                    1/6   16.67%
    """
    tree = _parameters_of(params)
    check_flag("ranks", ranks)
    several = stacked_leaves(tree, stacked)
    shown = selected_matrices(tree, mask, several)
    if not shown:
        raise ValueError("mask marks no entry of params: there is nothing to report on.")
    leaves = {leaf_name(path): x for path, x in jax.tree.leaves_with_path(tree)}
    layouts = layouts_of(leaves, several)
    biases = {kernel: leaves[bias] for bias, kernel in kernels_of_biases(leaves).items() if kernel}
    layers = []
    for path, leaf in shown:
        name = leaf_name(path)
        kernels = np.asarray(leaf)[None] if name not in several else np.asarray(leaf)
        layers.append(_layer(name, leaf.shape, kernels, layouts[name], biases.get(name), ranks))
    total = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))
    return SparsityReport(tuple(layers), total)


def _layer(
    name: str, shape: tuple[int, ...], x: np.ndarray, layout: Layout, bias: Any, ranks: bool
) -> LayerSparsity:
    """The row of ``x``, which holds one or more layers along its first axis."""
    layout = layout if layout.out_axes else Layout(layout.kind, (-2,), (-1,))
    lives = x != 0

    def live_along(axes: tuple[int, ...]) -> np.ndarray:
        others = tuple(a for a in range(1, x.ndim) if a - x.ndim not in axes)
        return lives.any(axis=others)

    def pair(marks: np.ndarray) -> tuple[int, int]:
        return int(marks.sum()), marks.size

    channels = layout.in_axes + layout.out_axes
    outputs = live_along(layout.out_axes)
    asleep = None
    if bias is not None and np.size(bias) == outputs.size:
        asleep = int(np.sum(~outputs.ravel() & ~(np.ravel(bias) > 0)))
    rank = None
    if ranks:
        rows = tuple(a for a in range(-x.ndim + 1, 0) if a not in layout.out_axes)
        matrices = [fold(jnp.asarray(kernel), rows)[0] for kernel in x]
        alive = sum(int(effective_rank(matrix)) for matrix in matrices)
        rank = alive, sum(min(matrix.shape) for matrix in matrices)
    return LayerSparsity(
        name=name,
        kind=layout.kind,
        shape=tuple(shape),
        weights=pair(lives),
        outputs=pair(outputs),
        inputs=pair(live_along(layout.in_axes)),
        kernels=pair(live_along(channels)) if layout.kind == "conv" else None,
        rank=rank,
        asleep=asleep,
    )
