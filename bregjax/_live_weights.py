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

    def keep(x: Any, live: jax.Array) -> Any:
        return x if isinstance(x, optax.MaskedNode) else jnp.where(live, x, 0)

    return optax.tree_map_params(
        inner, keep, state, masks, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )


def set_dead_to_zero(updates: Any, params: Any, masks: Any) -> Any:
    """The updates, changed so that dead weights become exactly 0.0."""
    return jax.tree.map(
        lambda u, x, live: jnp.where(live, u, -x.astype(u.dtype)), updates, params, masks
    )
