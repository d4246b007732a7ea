"""Names and kinds of parameters, masks, and labels for `optax.partition`."""

import fnmatch
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bregjax._validation import check_array, raised_by, shown

Mask = Any
"""A tree of booleans shaped like the parameters or like a prefix of them, or a function from the
parameters to such a tree."""


def leaf_name(path: tuple) -> str:
    """Name a leaf, such as ``conv1/kernel``, by its key path.

    Flax NNX variables hold their array under ``.value``: a state of variables and the same state
    as plain arrays give the same names.

    Args:
      path: a key path, as `jax.tree_util.tree_map_with_path` passes it.

    Returns:
        The name, on which the patterns of `label_by_path` are matched.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> params = {"dense": {"kernel": jnp.ones((2, 3))}}
        >>> jax.tree_util.tree_map_with_path(lambda path, x: bregjax.leaf_name(path), params)
        {'dense': {'kernel': 'dense/kernel'}}
    """
    if not isinstance(path, tuple):
        raise TypeError(f"path must be a key path, a tuple of keys, got path={shown(path)}.")
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


_BIASES = ("bias", "b")
_KERNELS = ("kernel", "weight", "w")


def kernels_of_biases(leaves: Mapping[str, Any]) -> dict[str, str | None]:
    """From the name of each bias to the name of the kernel beside it, or None.

    They are called ``bias`` and ``kernel`` in Flax, ``bias`` and ``weight`` in Equinox, ``b`` and
    ``w`` in Haiku.
    """
    beside: dict[str, str | None] = {}
    for name in leaves:
        layer, slash, kind = name.rpartition("/")
        if kind in _BIASES:
            kernels = (f"{layer}{slash}{kernel}" for kernel in _KERNELS)
            there = (kernel for kernel in kernels if np.ndim(leaves.get(kernel, 0)) >= 2)
            beside[name] = next(there, None)
    return beside


def without_variables(tree: Any) -> Any:
    """``tree`` with each Flax NNX variable replaced by its array.

    `flax.nnx.Optimizer` keeps its state in variables of another type than those of the parameters,
    so the structures of the two trees differ.
    """
    nnx = sys.modules.get("flax.nnx")
    return tree if nnx is None else nnx.as_pure(tree)


def parameters_of(model: Any) -> Any:
    """The parameters of a Flax NNX module; any other tree as it is."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        return nnx.state(model, nnx.Param)
    return model


class Layout(NamedTuple):
    """What a leaf is, and which of its axes are its inputs and outputs, counted from the end."""

    kind: str
    """dense, conv, attention, embedding or other, as `label_by_kind` has it"""
    in_axes: tuple[int, ...] = ()
    out_axes: tuple[int, ...] = ()


_NO_KERNELS = ("bias", "scale", "offset")
"""Flax's and Haiku's names for arrays that are no kernels, however many dimensions they have."""
_EMBEDDINGS = ("embedding", "embeddings")
_PROJECTIONS = ("query", "key", "value")


def layouts_of(leaves: Mapping[str, Any], stacked: Collection[str] = ()) -> dict[str, Layout]:
    """The `Layout` of each named leaf; the leaves in ``stacked`` begin with an axis of layers.

    Kernels called ``weight`` are Equinox's, (out, in, …); all others (…, in, out). Flax's attention
    layers have kernels (features, heads, head_dim) and, behind them, (heads, head_dim, features).
    """
    biases = {kernel: bias for bias, kernel in kernels_of_biases(leaves).items() if kernel}
    paired = set(biases.values())

    def layout(name: str) -> Layout:
        ndim = np.ndim(leaves[name]) - (name in stacked)
        layer, _, last = name.rpartition("/")
        if ndim < 2 or last in _NO_KERNELS or name in paired:
            return Layout("other")
        if last in _EMBEDDINGS:
            return Layout("embedding", (-2,), (-1,))
        block, slash, role = layer.rpartition("/")
        if ndim == 3 and f"{block}{slash}query/{last}" in leaves:
            if role in _PROJECTIONS:
                return Layout("attention", (-3,), (-2, -1))
            if role == "out":
                return Layout("attention", (-3, -2), (-1,))
        kind = "dense" if ndim == 2 else "conv"
        return (
            Layout(kind, (1 - ndim,), (-ndim,)) if last == "weight" else Layout(kind, (-2,), (-1,))
        )

    return {name: layout(name) for name in leaves}


def weight_mask(params: Any) -> Any:
    """Mark every kernel: arrays of two or more dimensions that are not biases and not of norms.

    It is the default mask of the optimizers, of `sparsify` and of the counts. Leaves called
    ``bias``, ``scale`` or ``offset``, and ``b`` beside a ``w``, are not marked, however many
    dimensions they have. Examples are the biases (heads, head_dim) of Flax's attention layers, the
    biases of Equinox's convolutions, and norms of stacked layers.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).

    Returns:
        A tree of booleans with the structure of ``params``.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> bregjax.weight_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda kind: kind != "other", label_by_kind(params))


def label_by_kind(params: Any) -> Any:
    """Label each leaf with the kind of its layer, for `optax.partition`.

    Args:
      params: a tree of arrays (Flax NNX state, Linen parameters, any pytree).

    Returns:
        A tree of strings with the structure of ``params``: ``"dense"`` (two dimensions),
        ``"conv"`` (three and more), ``"attention"`` (three, in a layer with query, key and value),
        ``"embedding"`` (named so, with two and more), ``"other"`` (what `weight_mask` leaves out).

    Example:
        >>> import optax, bregjax
        >>> tx = optax.partition(
        ...     {
        ...         "conv": bregjax.adabreg(1e-3, bregjax.per_kernel(), 1e-1),
        ...         "dense": bregjax.adabreg(1e-3, bregjax.l1(), 1e-2),
        ...         "attention": bregjax.adabreg(1e-3, bregjax.l1(), 1e-2),
        ...         "embedding": bregjax.adabreg(1e-3, bregjax.l1(), 1e-2),
        ...         "other": optax.adam(1e-3),
        ...     },
        ...     bregjax.label_by_kind,
        ... )

    Notes:
        The kernels of stacked dense layers have three dimensions and are labelled ``"conv"``. Use
        `label_by_path` where this is wrong.
    """
    paths, _ = jax.tree.flatten_with_path(params)
    layouts = layouts_of({leaf_name(path): x for path, x in paths})
    return jax.tree_util.tree_map_with_path(lambda path, _: layouts[leaf_name(path)].kind, params)


def label_by_path(rules: Mapping[str, Any], *, default: Any = None) -> Callable[[Any], Any]:
    """Make a function that labels each leaf by its name, for `optax.partition` and masks.

    Args:
      rules: from a pattern of the leaf's name to its label; the first match counts. Names are
        paths such as ``encoder/conv1/kernel``, patterns are shell wildcards such as
        ``*conv*/kernel``. With the labels True and False the function is a mask.
      default: the label of leaves that no pattern matches. None makes that an error.

    Returns:
        A function from a tree of arrays (Flax NNX state, with variables or arrays as leaves,
        Linen parameters, any pytree) to a tree of labels.

    Raises:
        TypeError: if ``rules`` is not a mapping from strings.
        ValueError: when applied, if a pattern matches no leaf, or if a leaf matches no pattern and
          there is no default.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> labels = bregjax.label_by_path({"*/kernel": "sparse"}, default="plain")
        >>> labels({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
        {'dense': {'bias': 'plain', 'kernel': 'sparse'}}
    """
    if not isinstance(rules, Mapping) or not all(isinstance(x, str) for x in rules):
        raise TypeError(f"rules must be a mapping from patterns to labels, got rules={rules!r}.")

    def label_tree(params: Any) -> Any:
        names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not names:  # optax.tree_map_params asks for the labels of a placeholder
            return params
        for pattern in rules:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"rules: the pattern {pattern!r} matches none of the leaves {names}."
                )

        def label(path: tuple, _: Any) -> Any:
            name = leaf_name(path)
            for pattern, value in rules.items():
                if fnmatch.fnmatchcase(name, pattern):
                    return value
            if default is None:
                raise ValueError(
                    f"no pattern of {list(rules)} matches the leaf {name!r}; add one to rules, or a"
                    " default."
                )
            return default

        return jax.tree_util.tree_map_with_path(label, params)

    return label_tree


def marks_of(params: Any, mask: Mask | None = None, name: str = "mask") -> Any:
    """The mask as a tree of booleans shaped like ``params``; by default that of `weight_mask`.

    Raises `ValueError`, which calls the mask ``name``, unless it consists of booleans and has the
    structure of ``params`` or of a prefix of it.
    """
    mask = weight_mask if mask is None else mask
    # A tree may be callable, too, such as an Equinox module with booleans in place of its arrays.
    leaves = jax.tree.leaves(mask)
    given = bool(leaves) and all(map(_is_boolean, leaves))
    with raised_by(name if given else f"{name}={shown(mask)}"):
        marks = mask(params) if callable(mask) and not given else mask
    for path, mark in jax.tree_util.tree_leaves_with_path(marks):
        if not _is_boolean(mark):
            raise ValueError(
                f"{name} must be a tree of booleans or a function of the parameters that makes one,"
                f" got {name}{jax.tree_util.keystr(path)}={shown(mark)}."
            )
    try:
        return jax.tree.broadcast(jax.tree.map(bool, marks), params)
    except ValueError:
        raise ValueError(
            f"{name} must have the structure of params, or a prefix of it, got {shown(marks)} for"
            f" {shown(params)}. Under Flax NNX pass a function, which works for variables and for"
            " arrays."
        ) from None


def _is_boolean(mark: Any) -> bool:
    if isinstance(mark, Tracer):  # its value is not known
        return False
    if isinstance(mark, (np.ndarray, jax.Array)):
        return mark.dtype == bool and mark.ndim == 0
    return isinstance(mark, (bool, np.bool_))


def stacked_leaves(params: Any, stacked: Mask | None) -> set[str]:
    """The names of the leaves that ``stacked`` marks as holding several layers; by default none."""
    if stacked is None:
        return set()
    return {leaf_name(path) for path, _ in selected_leaves(params, stacked, "stacked")}


def selected_matrices(
    params: Any, mask: Mask | None, several: Collection[str]
) -> list[tuple[tuple, jax.Array]]:
    """The `selected_leaves` that have entries; leaves in ``several`` have an axis of layers.

    Raises `ValueError` where a layer has fewer than two dimensions.
    """
    chosen = [(path, x) for path, x in selected_leaves(params, mask) if x.size]
    named = [(leaf_name(path), x) for path, x in chosen]
    flat = [name or "a vector" for name, x in named if x.ndim - (name in several) < 2]
    if flat:
        raise ValueError(
            f"mask marks {', '.join(flat)}: ranks and rows are those of arrays of two or more"
            " dimensions, of three where stacked marks them."
        )
    return chosen


def selected_leaves(
    params: Any, mask: Mask | None = None, name: str = "mask"
) -> list[tuple[tuple, jax.Array]]:
    """The (path, array) pairs that ``mask`` marks; by default those of `weight_mask`.

    Raises `TypeError` unless those are arrays of numbers.
    """
    marks = jax.tree.leaves(marks_of(params, mask, name))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    chosen = [leaf for leaf, marked in zip(leaves, marks, strict=True) if marked]
    for path, x in chosen:
        check_array(f"params{jax.tree_util.keystr(path)}", x)
    return [(path, x if hasattr(x, "shape") else jnp.asarray(x)) for path, x in chosen]
