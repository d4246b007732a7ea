"""What is read off the dual between two steps: weights at another strength, and the evidence."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bregjax._mirror import MirrorState
from bregjax._prox import ProxState, scaled_by
from bregjax._scope import LayerCounts, Scope
from bregjax._states import states_of
from bregjax._top_k import Pool
from bregjax._validation import check_arrays, check_state, check_transformation
from bregjax._when_due import when_due


def check_trained(optimizer: Any, state: Any, params: Any) -> None:
    """Raises unless ``state`` is one of ``optimizer`` for ``params``, and can be read."""
    check_transformation("optimizer", optimizer)
    check_arrays("params", params)
    check_state("state", state, optimizer, params, "optimizer.init(params)")
    check_steps_through("optimizer", state, "pass what is inside, and its state.inner_opt_state")


def check_steps_through(
    name: str, state: Any, advice: str = "put optax.MultiSteps around the whole optimizer instead"
) -> None:
    """Raises `ValueError` where `optax.MultiSteps` is around a prox step in ``state``.

    Most of its updates do not reach the prox step, also those that only read the dual.
    """
    for part in states_of(state, optax.MultiStepsState):
        if states_of(part.inner_opt_state, ProxState):
            raise ValueError(
                f"{name} has a prox_step inside optax.MultiSteps, whose dual cannot be read at each"
                f" step: {advice}."
            )


def duals_of_leaves(state: Any, params: Any) -> list[jax.Array | None]:
    """For each leaf of ``params`` its dual in some mirror step of ``state``, or None."""
    treedef = jax.tree.structure(params)
    found: list[jax.Array | None] = [None] * treedef.num_leaves
    for part in states_of(state, MirrorState):
        duals = treedef.flatten_up_to(part.dual)
        found = [
            known if isinstance(dual, optax.MaskedNode) else dual
            for known, dual in zip(found, duals, strict=True)
        ]
    return found


def leaves_with_dual(state: Any, params: Any) -> list[bool]:
    """For each leaf of ``params`` whether some mirror step in ``state`` keeps a dual of it."""
    return [dual is not None for dual in duals_of_leaves(state, params)]


def scales_like(params: Any, chosen: Sequence[bool], scales: jax.Array) -> Any:
    """The factors on the strengths of the chosen leaves as a tree like ``params``, of others 1."""
    mine = iter(jnp.unstack(scales))
    leaves = [next(mine) if is_chosen else jnp.ones([], scales.dtype) for is_chosen in chosen]
    return jax.tree.structure(params).unflatten(leaves)


_MARGIN = 2.0**-20
"""by how much a factor has to differ from those of entries, or rounding might decide"""


def factor_with_count(
    pool: Pool,
    k: jax.Array,
    floors: jax.Array | float = 0,
    least: jax.Array | float = 0.0,
    near: jax.Array | None = None,
) -> jax.Array:
    """The factor on the strength that ``k`` of the entries exceed.

    It lies halfway to the next entry, or above that at ``least``, as far as the count allows. Of
    each array at least ``floors`` entries are counted. It is found faster if it is ``near``.
    """
    last = pool.kth_largest(k, floors, near)
    return _factor_between(last, jnp.max(pool.largest_below(last)), k, least)


def factors_of_layers(
    pool: Pool,
    layers: LayerCounts,
    k: jax.Array,
    scope: Scope,
    least: jax.Array,
    near: jax.Array,
) -> jax.Array:
    """For each layer the factor on its strength, shape (layers,): ``k`` entries exceed theirs.

    Where all compete it is the same for all layers, but for those that would starve; ``least`` and
    ``near`` are as in `factor_with_count`, one for each.
    """

    def of_each(counts: jax.Array) -> jax.Array:
        last = pool.kth_largest_of_each(counts, near)
        return _factor_between(last, pool.largest_below(last), counts, least)

    if scope != "global":
        return of_each(layers.counts(k, scope))
    floors = layers.floors(k)
    common = factor_with_count(pool, k, floors, jnp.max(least), jnp.max(near))
    same = jnp.full(floors.shape, common)
    if len(floors) == 1:
        return same
    starve = pool.count_above(common) < floors

    def feed(same: jax.Array) -> jax.Array:
        return jnp.where(starve, of_each(floors), same)

    return lax.platform_dependent(
        same, cpu=lambda same: when_due(jnp.any(starve), feed, same), default=feed
    )


def _factor_between(
    last: jax.Array, below: jax.Array, k: jax.Array, least: jax.Array | float
) -> jax.Array:
    """The factor that the k-th entry ``last`` exceeds, and the next one, ``below``, does not."""
    factor = jnp.maximum((last + below) / 2, jnp.minimum(least, last * (1 - _MARGIN)))
    # Among millions of entries the next one may be the next float, or nothing may be below.
    between = jnp.minimum(factor, jnp.nextafter(last, jnp.float32(0)))
    return jnp.where(k == 0, last * (1 + _MARGIN), between)


class DualReader:
    """Reads an optimizer's parameters off its dual, as if the step had ended at another strength.

    It calls the optimizer's ``update`` with zero updates that the dual does not collect.
    """

    def __init__(
        self, optimizer: optax.GradientTransformation, state: Any, params: Any, extra_args: dict
    ):
        self._update = optax.with_extra_args_support(optimizer).update
        self._state, self._params = state, params
        self._nothing = jax.tree.map(jnp.zeros_like, params)
        self._extra_args = extra_args | {"hold_dual": True}

    def updates_at(self, scale: Any) -> tuple[Any, Any]:
        """The updates to where the strength is ``scale`` times what it is, and the state there.

        The scale is a number, or a tree of numbers, one for each parameter.
        """
        return self._read(scaled_by(scale, self._extra_args))

    def evidence(self) -> list[jax.Array]:
        """For each leaf and entry the factor on the strength up to which it lives.

        Of leaves without a dual it is something else.
        """
        return self._evidence_of("entries")

    def evidence_of_groups(self) -> list[jax.Array]:
        """The same, but arrays may have ones along the axes of groups, see `Regularizer`."""
        return self._evidence_of("groups")

    def state_of_parameters(self) -> Any:
        """The state with duals that stand for the parameters, wherever these live."""
        return self._read(self._extra_args | {"renew_dual": True})[1]

    def _evidence_of(self, what: str) -> list[jax.Array]:
        asked = {"evidence": what, "defer_strength": True}
        return jax.tree.leaves(self._read(self._extra_args | asked)[0])

    def _read(self, extra_args: dict[str, Any]) -> tuple[Any, Any]:
        return self._update(self._nothing, self._state, self._params, **extra_args)


def with_duals_of(state: Any, other: Any) -> Any:
    """``state`` with the duals of ``other``, and the strengths that these stand for."""
    return jax.tree.map(
        lambda mine, theirs: (
            theirs._replace(count=mine.count) if isinstance(mine, MirrorState) else mine
        ),
        state,
        other,
        is_leaf=lambda x: isinstance(x, MirrorState),
    )


def before_last_step(state: Any) -> Any:
    """The state with counts one lower: the parameters are those at the last step's strength."""

    def lower(path: tuple, x: Any) -> Any:
        name = getattr(path[-1], "name", None) if path else None
        counts = name == "count" and jnp.ndim(x) == 0
        return jnp.maximum(x - 1, 0) if counts else x

    return jax.tree_util.tree_map_with_path(lower, state)
