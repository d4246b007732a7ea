"""Magnitude pruning, at once or gradually, around any optimizer."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._leaves import Mask, marks_of
from bregjax._live_weights import keep_live, keep_live_state, set_dead_to_zero
from bregjax._numerics import value_at
from bregjax._top_k import top_k
from bregjax._validation import (
    check_choice,
    check_range,
    check_transformation,
    check_update,
    check_whole,
    known_number,
)
from bregjax._when_due import when_due


class MagnitudePruningState(NamedTuple):
    """State of `magnitude_pruning`."""

    count: jax.Array
    """steps done, shape (), int32"""
    density: jax.Array
    """the density last pruned to, shape (), float32"""
    masks: Any
    """which weights are live: booleans shaped like the parameters"""
    inner_state: Any


def cubic_density_schedule(
    final: float, start: int, stop: int, *, initial: float = 1.0, every: int = 100
) -> optax.Schedule:
    r"""The density of gradual pruning: it falls fast at first and then ever more slowly.

    With the sparsity s = 1 − density

    .. math:: s_t = s_f + (s_i - s_f)\Bigl(1 - \frac{t - t_0}{n\,\Delta t}\Bigr)^3, \qquad
        t \in \{t_0, t_0 + \Delta t, \dots, t_0 + n\,\Delta t\}

    and constant in between, before and after.

    Args:
      final: the density 1 − s_f at the end, in (0, 1].
      start: the step t₀ at which it begins to fall.
      stop: the step t₀ + n·Δt from which it is ``final``, greater than ``start``.
      initial: the density 1 − s_i at the beginning.
      every: Δt, the steps between two prunings.

    Returns:
        A schedule, for `magnitude_pruning`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import bregjax
        >>> schedule = bregjax.baselines.cubic_density_schedule(0.1, start=0, stop=400)
        >>> print([round(float(schedule(step)), 3) for step in (0, 99, 100, 200, 400, 500)])
        [1.0, 1.0, 0.48, 0.213, 0.1, 0.1]

    References:
        Zhu, Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017,
        equation 1.
    """
    initial = known_number("initial", initial, above=0, at_most=1)
    final = known_number("final", final, above=0, at_most=initial)
    check_whole("start", start, at_least=0)
    check_whole("stop", stop, at_least=start + 1)
    check_whole("every", every, at_least=1)

    def schedule(count: Any) -> jax.Array:
        since_start = jnp.clip(count - start, 0, stop - start)
        last_pruning = jnp.where(
            since_start < stop - start, since_start // every * every, stop - start
        )
        return final + (initial - final) * (1 - last_pruning / (stop - start)) ** 3

    return schedule


def magnitude_pruning(
    inner: optax.GradientTransformation,
    density: optax.ScalarOrSchedule,
    *,
    scope: Literal["global", "layer"] = "global",
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Prune the smallest weights whenever the density falls, and train the others.

    .. math:: M \leftarrow M \odot \operatorname{top}_k |\theta|,
        \quad k = \operatorname{round}(d_t n); \qquad
        \theta \leftarrow M \odot (\theta + u(M \odot g))

    where u is the inner optimizer. Pruned weights are exactly 0.0 and stay so. Their gradients do
    not reach the inner optimizer, and their momenta are zero. The mask changes only when the
    density falls. For pruning once and then fine-tuning use a density that drops once; for gradual
    pruning use `cubic_density_schedule`::

        magnitude_pruning(inner, optax.piecewise_constant_schedule(1.0, {step: 0.1}))
        magnitude_pruning(inner, cubic_density_schedule(0.1, start, stop))

    Nothing may be chained after this transformation; put weight decay into ``inner``.

    Args:
      inner: any optimizer.
      density: the share d of the weights that stay, in (0, 1], or its schedule. Exactly
        ``round(density * n)`` of n weights stay (rounded in float32), at least one. Each fall costs
        a selection among all weights, so a schedule should be a staircase.
      scope: ``"global"`` ranks all weights together, ``"layer"`` ranks those of each array.
      mask: which leaves are pruned, as in `linbreg`; by default those of `weight_mask`.

    Returns:
        The optimizer, with a `MagnitudePruningState`.

    Raises:
        ValueError: if ``density`` is out of range or ``scope`` unknown; at ``update``, if
          ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5})
        >>> tx = bregjax.baselines.magnitude_pruning(optax.sgd(0.1), schedule)
        >>> params = jnp.array([[1.0, -0.2, 0.6, 0.1]])
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.zeros((1, 4)), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params)
        [[1.  0.  0.6 0. ]]

    References:
        Han, Pool, Tran, Dally, `Learning both Weights and Connections for Efficient Neural Networks
        <https://arxiv.org/abs/1506.02626>`_, NeurIPS 2015 (once, with fine-tuning); Zhu, Gupta, `To
        prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017 (gradually).
    """
    check_range("density", density, above=0, at_most=1, schedule=True)
    check_choice("scope", scope, ("global", "layer"))
    inner = check_transformation("inner", inner)

    def prune(masks: Any, params: Any, target: jax.Array) -> Any:
        weights = jax.tree.leaves(params)
        live, treedef = jax.tree.flatten(masks)
        chosen = [i for i, marked in enumerate(jax.tree.leaves(marks_of(params, mask))) if marked]
        for group in [chosen] if scope == "global" else [[i] for i in chosen]:
            total = sum(weights[i].size for i in group)
            kept = jnp.clip(jnp.round(target * total).astype(jnp.int32), 1, total)
            survivors = top_k([[weights[i] for i in group]], kept, [live[i] for i in group]).masks
            for i, survives in zip(group, survivors, strict=True):
                live[i] = survives
        return treedef.unflatten(live)

    def init(params: Any) -> MagnitudePruningState:
        masks = jax.tree.map(lambda x: jnp.ones_like(x, bool), params)
        count, dense = jnp.zeros([], jnp.int32), jnp.ones([], jnp.float32)
        return MagnitudePruningState(count, dense, masks, inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MagnitudePruningState]:
        check_update(updates, state, params, MagnitudePruningState)
        target = jnp.asarray(value_at(density, state.count), jnp.float32).reshape(())
        masks = when_due(target < state.density, prune, state.masks, params, target)
        inner_state = keep_live_state(inner, state.inner_state, masks)
        updates, inner_state = inner.update(
            keep_live(updates, masks), inner_state, params, **extra_args
        )
        next_state = MagnitudePruningState(
            jnp.asarray(optax.safe_increment(state.count)),
            jnp.minimum(target, state.density),
            masks,
            inner_state,
        )
        return set_dead_to_zero(updates, params, masks), next_state

    return optax.GradientTransformationExtraArgs(init, update)
