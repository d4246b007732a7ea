"""Steps that say where the parameters go, and the transformations made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
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
    evidence: bool = False
    """emit the evidence of each entry instead of an update, see `Regularizer.evidence`: the
    largest factor on the strength at which the entry lives"""


class Stage(NamedTuple):
    """A step that takes each parameter x by itself to a point, from an update or another point.

    The state of all parameters has a *memory* for each.
    """

    init: Callable[[Any], Any]
    """from the parameters to the state"""
    recall: Callable[[Any, Any], list]
    """from (state, parameters) to the memories"""
    begin: Callable[[Any, Wish], Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]]
    """from (state, wish) to the step of one parameter: from (what comes in, x, memory) to (point,
    next memory), the point in float32 or wider"""
    store: Callable[[Any, list, Any, Wish], Any]
    """from (state, next memories, structure of the parameters, wish) to the next state"""
    tells_evidence: bool = False
    """whether the point is the evidence where the wish asks for it"""


def in_sequence(*stages: Stage) -> Stage:
    """Lets each stage start from the point that the one before it reached."""

    def init(params: Any) -> tuple:
        return tuple(stage.init(params) for stage in stages)

    def recall(states: tuple, params: Any) -> list:
        each = [stage.recall(state, params) for stage, state in zip(stages, states, strict=True)]
        return list(zip(*each, strict=True))

    def begin(states: tuple, wish: Wish) -> Callable:
        steps = [stage.begin(state, wish) for stage, state in zip(stages, states, strict=True)]

        def step(incoming: jax.Array, x: jax.Array, memories: tuple) -> tuple[jax.Array, tuple]:
            next_memories = []
            for one, memory in zip(steps, memories, strict=True):
                incoming, memory = one(incoming, x, memory)
                next_memories.append(memory)
            return incoming, tuple(next_memories)

        return step

    def store(states: tuple, memories: list, treedef: Any, wish: Wish) -> tuple:
        return tuple(
            stage.store(state, [memory[index] for memory in memories], treedef, wish)
            for index, (stage, state) in enumerate(zip(stages, states, strict=True))
        )

    return Stage(init, recall, begin, store, stages[-1].tells_evidence)


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
        evidence: bool = False,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        require_params(params)
        leaves, treedef = jax.tree.flatten(params)
        received = jax.tree.structure(updates)
        if treedef != received:
            raise ValueError(
                "updates and params must have the same structure.\n"
                f"params:  {treedef}\nupdates: {received}"
            )
        jax.tree_util.tree_map_with_path(_check_shapes, params, updates)
        wish = Wish(strength_scale, hold_dual, evidence)
        step = stage.begin(state, wish)
        carried, memories = [], []
        for x, update, memory in zip(
            leaves, jax.tree.leaves(updates), stage.recall(state, params), strict=True
        ):
            x = jnp.asarray(x)
            point, memory = step(jnp.asarray(update), x, memory)
            told = evidence and stage.tells_evidence
            carried.append(point if told else point - x.astype(point.dtype))
            memories.append(memory)
        return treedef.unflatten(carried), stage.store(state, memories, treedef, wish)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_shapes(path: tuple, x: Any, update: Any) -> None:
    if jnp.shape(x) != jnp.shape(update):
        raise ValueError(
            f"updates and params must have the same shapes: params{jax.tree_util.keystr(path)} has"
            f" {jnp.shape(x)}, its update {jnp.shape(update)}."
        )


def parts_of(state: Any, kind: type[PartT]) -> list[PartT]:
    """The states of one kind, wherever they are in an optimizer's state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]


def value_at(value: optax.ScalarOrSchedule, count: Any) -> ArrayLike:
    """A schedule's value at step ``count``; anything else as it is."""
    return value(count) if callable(value) else value
