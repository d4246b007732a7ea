"""Two answers to a loss that stalls: lower the strength, or raise the limit of the rank."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._prox import ProxState, scaled_by
from bregjax._regularizers._spectral import NuclearState
from bregjax._states import states_of
from bregjax._validation import check_transformation, check_update, check_whole, shown

_WRONG_PLATEAU = "plateau must be optax.contrib.reduce_on_plateau(…), got {!r}."


class PlateauState(NamedTuple):
    """State of `relax_on_plateau` and `grow_rank_on_plateau`."""

    plateau: Any
    """an `optax.contrib.ReduceLROnPlateauState`"""
    inner_state: Any


def relax_on_plateau(
    inner: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    *,
    watch: str = "value",
) -> optax.GradientTransformationExtraArgs:
    r"""Lower the strength whenever a loss stalls.

    .. math:: \lambda \leftarrow \text{factor} \cdot \lambda \quad\text{on each plateau}

    Weights below the threshold then wake, those with the most evidence first. All `prox_step` and
    `bregman_step` of ``inner`` get the same factor; live units grow by δ times the fall of λ.

    Args:
      inner: an optimizer of ours, or a chain or partition with one in it.
      plateau: `optax.contrib.reduce_on_plateau`, which says what a plateau is. Its factor
        multiplies the strength: 0.5 halves it. Give it ``accumulation_size=steps_per_epoch`` to
        compare epochs.
      watch: the extra argument of ``update`` that is the loss, such as ``"validation_loss"``.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `PlateauState`; the factor is
        ``state.plateau.scale``.

    Raises:
        ValueError: at ``init``, if ``inner`` has no prox step or ``plateau`` is not such a
          transformation; at ``update``, if ``params`` or the loss is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.relax_on_plateau(
        ...     bregjax.linbreg(0.1, bregjax.l1(), strength=4.0),
        ...     optax.contrib.reduce_on_plateau(factor=0.5, patience=2),
        ... )
        >>> params = jnp.zeros((1, 2))
        >>> state = tx.init(params)
        >>> for loss in (1.0, 0.9, 0.9, 0.9, 0.9):
        ...     _, state = tx.update(jnp.ones((1, 2)), state, params, value=loss)
        >>> print(state.plateau.scale)
        0.5
    """

    def answer(inner_state: Any, scale: jax.Array, extra_args: dict) -> tuple[Any, dict]:
        return inner_state, scaled_by(scale, extra_args)

    return _on_plateau(inner, plateau, watch, ProxState, "prox_step", answer)


def grow_rank_on_plateau(
    inner: optax.GradientTransformation,
    rank: int,
    plateau: optax.GradientTransformationExtraArgs,
    *,
    watch: str = "value",
) -> optax.GradientTransformationExtraArgs:
    r"""Limit the rank of matrices, and raise the limit whenever a loss stalls.

    .. math:: \operatorname{rank} \le \lceil \text{rank} / s \rceil, \qquad
        s \leftarrow \text{factor} \cdot s \quad\text{on each plateau},\; s_0 = 1

    The limit holds for every `nuclear` in ``inner``, in addition to that regularizer's own limits.

    Args:
      inner: an optimizer of ours with `nuclear` in it.
      rank: the limit at the start, at least 1.
      plateau: as in `relax_on_plateau`; a factor of 0.5 doubles the limit.
      watch: as in `relax_on_plateau`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `PlateauState`; the limits are in the
        `NuclearState`: ``optax.tree.get_all_with_path(state, "rank_limit")``.

    Raises:
        ValueError: if ``rank`` is not a positive whole number; at ``init``, if ``inner`` has no
          `nuclear` or ``plateau`` is not such a transformation; at ``update``, if ``params`` or the
          loss is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.grow_rank_on_plateau(
        ...     bregjax.linbreg(0.5, bregjax.nuclear(), strength=0.1),
        ...     1,
        ...     optax.contrib.reduce_on_plateau(factor=0.5, patience=3),
        ... )
        >>> solution = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
        >>> params = jnp.zeros((3, 3))
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for step in range(12):
        ...     loss = jnp.sum((params - solution) ** 2) / 2
        ...     updates, state = update(params - solution, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        ...     print(bregjax.effective_rank(params, 1e-3), end=" ")
        1 1 1 1 1 1 1 2 2 2 3 3
    """
    check_whole("rank", rank, at_least=1)

    def answer(inner_state: Any, scale: jax.Array, extra_args: dict) -> tuple[Any, dict]:
        # A little less than rank / scale, which may have been rounded up.
        limit = jnp.ceil(rank / scale * (1 - 1e-6)).astype(jnp.int32)

        def limited(node: Any) -> Any:
            if not isinstance(node, NuclearState):
                return node
            return node._replace(rank_limit=jax.tree.map(lambda _: limit, node.rank_limit))

        state = jax.tree.map(
            limited, inner_state, is_leaf=lambda node: isinstance(node, NuclearState)
        )
        return state, extra_args

    return _on_plateau(inner, plateau, watch, NuclearState, "nuclear", answer)


def _on_plateau(
    inner: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    watch: str,
    kind: type,
    what: str,
    answer: Callable[[Any, jax.Array, dict], tuple[Any, dict]],
) -> optax.GradientTransformationExtraArgs:
    """Follows the loss, and lets ``answer`` change the inner state and the extra arguments."""
    if not isinstance(watch, str):
        raise TypeError(f"watch must be the name of an extra argument, got watch={shown(watch)}.")
    inner = check_transformation("inner", inner)
    if not isinstance(plateau, optax.GradientTransformation):
        raise ValueError(_WRONG_PLATEAU.format(plateau))

    def init(params: Any) -> PlateauState:
        inner_state = inner.init(params)
        if not states_of(inner_state, kind):
            raise ValueError(f"inner has no {what}, which a plateau could change: got {inner!r}.")
        followed = plateau.init(params)
        if not isinstance(followed, optax.contrib.ReduceLROnPlateauState):
            raise ValueError(_WRONG_PLATEAU.format(plateau))
        return PlateauState(followed, inner_state)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PlateauState]:
        check_update(updates, state, params, PlateauState)
        if watch not in extra_args:
            raise ValueError(
                f"update needs the loss that watch names, {watch}=…, got"
                f" {', '.join(extra_args) or 'no extra arguments'}."
            )
        inner_state, passed_on = answer(state.inner_state, state.plateau.scale, extra_args)
        updates, inner_state = inner.update(updates, inner_state, params, **passed_on)
        _, followed = plateau.update({}, state.plateau, value=extra_args[watch])
        return updates, PlateauState(followed, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
