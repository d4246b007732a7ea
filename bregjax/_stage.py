"""Steps that say where the parameters go, and the transformations made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from jax.typing import ArrayLike

from bregjax._validation import require_params

PartT = TypeVar("PartT")


class Wish(NamedTuple):
    """What a caller asks of a single step, through the extra arguments of ``update``."""

    strength_scale: ArrayLike | None = None
    """a factor on the strength; None is 1"""
    hold_dual: bool = False
    """leave the dual as it is: the updates are not collected"""


class Stage(NamedTuple):
    """A step from a tree (updates, or a point) to a point in parameter space.

    ``init`` maps the parameters to a state. ``move`` maps (incoming tree, state, parameters, wish)
    to (point, next state); the point's leaves are in float32 or wider.
    """

    init: Callable[[Any], Any]
    move: Callable[[Any, Any, Any, Wish], tuple[Any, Any]]


def in_sequence(*stages: Stage) -> Stage:
    """Lets each stage start from the point that the one before it reached."""

    def init(params: Any) -> tuple:
        return tuple(stage.init(params) for stage in stages)

    def move(incoming: Any, states: tuple, params: Any, wish: Wish) -> tuple[Any, tuple]:
        next_states = []
        for stage, state in zip(stages, states, strict=True):
            incoming, next_state = stage.move(incoming, state, params, wish)
            next_states.append(next_state)
        return incoming, tuple(next_states)

    return Stage(init, move)


def as_transformation(stage: Stage) -> optax.GradientTransformationExtraArgs:
    """Makes the transformation whose updates carry the parameters to the stage's point."""

    def init(params: Any) -> Any:
        return stage.init(params)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        strength_scale: ArrayLike | None = None,
        hold_dual: bool = False,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        require_params(params)
        expected, received = jax.tree.structure(params), jax.tree.structure(updates)
        if expected != received:
            raise ValueError(
                "updates and params must have the same structure.\n"
                f"params:  {expected}\nupdates: {received}"
            )
        point, next_state = stage.move(updates, state, params, Wish(strength_scale, hold_dual))
        return jax.tree.map(lambda y, x: y - x.astype(y.dtype), point, params), next_state

    return optax.GradientTransformationExtraArgs(init, update)


def parts_of(state: Any, kind: type[PartT]) -> list[PartT]:
    """The states of one kind, wherever they are in an optimizer's state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]


def value_at(value: optax.ScalarOrSchedule, count: Any) -> ArrayLike:
    """A schedule's value at step ``count``; anything else as it is."""
    return value(count) if callable(value) else value
