"""Steps that say where the parameters go, and the transformations made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike


class Stage(NamedTuple):
    """A step from a tree (updates, or a point) to a point in parameter space.

    ``init`` maps the parameters to a state. ``move`` maps (incoming tree, state, parameters) to
    (point, next state); the point's leaves are in float32 or wider.
    """

    init: Callable[[Any], Any]
    move: Callable[[Any, Any, Any], tuple[Any, Any]]


def in_sequence(*stages: Stage) -> Stage:
    """Lets each stage start from the point that the one before it reached."""

    def init(params: Any) -> tuple:
        return tuple(stage.init(params) for stage in stages)

    def move(incoming: Any, states: tuple, params: Any) -> tuple[Any, tuple]:
        next_states = []
        for stage, state in zip(stages, states, strict=True):
            incoming, next_state = stage.move(incoming, state, params)
            next_states.append(next_state)
        return incoming, tuple(next_states)

    return Stage(init, move)


def as_transformation(stage: Stage) -> optax.GradientTransformationExtraArgs:
    """Makes the transformation whose updates carry the parameters to the stage's point."""

    def init(params: Any) -> Any:
        return stage.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args
        if params is None:
            raise ValueError(
                "this transformation sets the parameters and needs them: call"
                " tx.update(updates, state, params); got params=None."
            )
        expected, received = jax.tree.structure(params), jax.tree.structure(updates)
        if expected != received:
            raise ValueError(
                "updates and params must have the same structure.\n"
                f"params:  {expected}\nupdates: {received}"
            )
        point, next_state = stage.move(updates, state, params)
        return jax.tree.map(lambda y, x: y - x.astype(y.dtype), point, params), next_state

    return optax.GradientTransformationExtraArgs(init, update)


def value_at(value: optax.ScalarOrSchedule, count: Any) -> ArrayLike:
    """A schedule's value at step ``count``; anything else as it is."""
    return value(count) if callable(value) else value
