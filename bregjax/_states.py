"""Finding the states of this library in the state of an optimizer."""

from typing import Any, TypeVar

import jax

from bregjax._validation import shown

StateT = TypeVar("StateT")


def states_of(opt_state: Any, kind: type[StateT]) -> list[StateT]:
    """Find all states of one type, however deep they are in chains, masks and wrappers.

    Args:
      opt_state: an optimizer's state.
      kind: a type of states, such as `MirrorState`, `SteerState` or `NuclearState`.

    Returns:
        The states, in the order of the tree, without those inside another state of ``kind``.

    Raises:
        TypeError: if ``kind`` is not a type.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> tx = bregjax.steer(bregjax.linbreg(0.1, bregjax.l1(), 1.0), target=0.1)
        >>> opt_state = tx.init({"kernel": jnp.ones((2, 3))})
        >>> steering, = bregjax.states_of(opt_state, bregjax.SteerState)
        >>> print(steering.strength_scale)
        1.0

    See Also:
        `optax.tree.get` finds a single field by its name: ``optax.tree.get(opt_state, "dual")``.
    """
    if not isinstance(kind, type):
        raise TypeError(f"kind must be a type such as bregjax.MirrorState, got kind={shown(kind)}.")
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]
