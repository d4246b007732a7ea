"""Which weights are live, and updates that keep the dead ones at zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bregjax._leaves import Mask, marks_of


def support_of(params: Any, mask: Mask | None) -> Any:
    """True at every non-zero entry, and everywhere in leaves that ``mask`` does not mark."""
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:  # optax.tree_map_params asks for the state of a placeholder
        return params
    marks = jax.tree.leaves(marks_of(params, mask))
    return treedef.unflatten(
        [
            x != 0 if marked else jnp.ones_like(x, bool)
            for x, marked in zip(leaves, marks, strict=True)
        ]
    )


def keep_live(tree: Any, masks: Any) -> Any:
    """``tree`` with exact zeros where the masks are False."""
    return jax.tree.map(lambda x, live: jnp.where(live, x, 0), tree, masks)


def keep_live_state(inner: optax.GradientTransformation, state: Any, masks: Any) -> Any:
    """The optimizer's state with zeros for dead weights in all that mirrors the parameters."""
    marks = marks_of_state(inner, state, masks)
    return jax.tree.map(lambda x, live: x if live is True else jnp.where(live, x, 0), state, marks)


def marks_of_state(inner: optax.GradientTransformation, state: Any, marks: Any) -> Any:
    """A tree like ``state``: the marks for all that mirrors the parameters, True for the rest."""

    def mark(x: Any, marked: jax.Array) -> Any:
        if isinstance(x, optax.MaskedNode):
            return x
        # The state of a regularizer, such as a random key, may have another shape.
        return marked if jnp.shape(x) == jnp.shape(marked) else True

    return optax.tree_map_params(
        inner,
        mark,
        state,
        marks,
        transform_non_params=lambda _: True,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def set_dead_to_zero(updates: Any, params: Any, masks: Any) -> Any:
    """The updates, changed so that dead weights become exactly 0.0."""
    return jax.tree.map(
        lambda u, x, live: jnp.where(live, u, -x.astype(u.dtype)), updates, params, masks
    )
