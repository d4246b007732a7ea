"""Steering: the strength λ is adjusted until the sparsity is the wanted one."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._evidence import (
    DualReader,
    before_last_step,
    check_steps_through,
    factors_of_layers,
    leaves_with_dual,
    scales_like,
    with_duals_of,
)
from bregjax._measures import density
from bregjax._mirror import MirrorState
from bregjax._numerics import value_at
from bregjax._prox import ProxState, scaled_by
from bregjax._scope import LayerCounts, Scope, check_scope
from bregjax._states import states_of
from bregjax._support import MultilevelState
from bregjax._top_k import Pool, count_entries
from bregjax._validation import (
    check_flag,
    check_function,
    check_range,
    check_schedule,
    check_transformation,
    check_update,
    check_whole,
    known_number,
    raised_by,
    real,
)

_LARGEST_SCALE = 1e15  # with an unreachable target the factor must not become zero or infinite


class SteeringRule(NamedTuple):
    """How the factor on the strength responds to the gap; see `adaptive_rule`."""

    init: Callable[[], Any]
    """makes the rule's state"""
    update: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
    """from (factor, gap, state) to the next factor and state; gap = actual − target"""


class AdaptiveState(NamedTuple):
    """State of `adaptive_rule`."""

    rate: jax.Array
    """α, shape ()"""
    sign: jax.Array
    """sign of the last gap that was not zero, shape (); 0 before the first"""


class DiscrepancyState(NamedTuple):
    """State of `discrepancy_rule`."""

    wait: jax.Array
    """calls until the next change, shape (), int32"""


class SteerState(NamedTuple):
    """State of `steer`."""

    inner_state: Any
    count: jax.Array
    """steps done, shape (), int32"""
    strength_scale: jax.Array
    """the factor on the strengths, shape (), float32; the largest one where layers have their own
    """
    layer_scales: Any
    """with ``exact`` the factor on the strength of each array that has a dual, shape (arrays,),
    float32: all are the same but those of layers that would starve, or all differ, as the scope
    wants; otherwise None"""
    target: jax.Array
    """what the last step aimed at, shape (), float32"""
    moved: jax.Array
    """the last step at which the target changed, shape (), int32; 0 where it never did"""
    gap: jax.Array
    """measured − target at the last measurement, shape (), float32"""
    total: jax.Array
    """with ``exact`` the number of entries of which the target is a share, shape (), uint32: those
    of the network at ``init``, or what `shrink_state` has made of it; otherwise 0"""
    rule_state: Any


def adaptive_rule(
    rate: float = 0.25, *, shrink: float = 0.9, minimum_rate: float = 0.025
) -> SteeringRule:
    r"""Multiply the strength by a factor that grows with the gap.

    With the gap g = actual − target density,

    .. math::
        \alpha \leftarrow \max(\rho\alpha, \alpha_{\min}) \text{ if } g \text{ changed its sign};
        \qquad \lambda \leftarrow \lambda\,(1 + \alpha |g|)^{\operatorname{sign} g}.

    The factor on λ stays between 1e-15 and 1e15.

    Args:
      rate: α > 0 at the start. If the density is too large by 100 % of the weights, λ grows by this
        share in one step.
      shrink: ρ in (0, 1]; 1 keeps α.
      minimum_rate: α_min ≥ 0, so that λ can still follow a moving target or a changing network. A
        rate that begins below it stays as it is.

    Returns:
        A `SteeringRule` for `steer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> rule = bregjax.adaptive_rule(rate=0.5)
        >>> scale, state = rule.update(jnp.float32(1.0), jnp.float32(0.2), rule.init())
        >>> print(scale)
        1.1

    References:
        Aloradi, Roith, Habets, Tenbrinck, `Adaptive Regularization for Sparsity Control in
        Bregman-Based Optimizers <https://arxiv.org/abs/2605.07892>`_, 2026.
    """
    check_range("rate", rate, above=0)
    check_range("shrink", shrink, above=0, at_most=1)
    check_range("minimum_rate", minimum_rate, at_least=0)
    least = real(minimum_rate)

    def init() -> AdaptiveState:
        return AdaptiveState(jnp.asarray(rate, jnp.float32), jnp.zeros([], jnp.float32))

    def update(
        scale: jax.Array, gap: jax.Array, state: AdaptiveState
    ) -> tuple[jax.Array, AdaptiveState]:
        sign = jnp.sign(gap)
        slower = jnp.maximum(shrink * state.rate, jnp.minimum(least, state.rate))
        new_rate = jnp.where(sign * state.sign < 0, slower, state.rate)
        factor = 1 + new_rate * jnp.abs(gap)
        scale = jnp.where(gap > 0, scale * factor, scale / factor)
        scale = jnp.clip(scale, 1 / _LARGEST_SCALE, _LARGEST_SCALE)
        return scale, AdaptiveState(new_rate, jnp.where(sign == 0, state.sign, sign))

    return SteeringRule(init, update)


def discrepancy_rule(
    increment: float = 0.05, *, warmup: int = 0, cooldown: int = 0
) -> SteeringRule:
    r"""Raise the strength while there are too many weights, lower it while there are too few.

    .. math::
        s \leftarrow \begin{cases} s + \iota & \text{too dense} \\
        \max(s - \iota, 0) & \text{else} \end{cases}

    where s is the factor on the strength. It changes at every (``cooldown`` + 1)-th measurement,
    after the first ``warmup`` ones.

    Args:
      increment: ι > 0, in units of the strength that the optimizer was given.
      warmup: measurements before the first change, at least 0.
      cooldown: measurements between two changes, at least 0.

    Returns:
        A `SteeringRule` for `steer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> rule = bregjax.discrepancy_rule(0.5, warmup=1)
        >>> scale, state = jnp.float32(1.0), rule.init()
        >>> for gap in (0.2, 0.2, -0.1):
        ...     scale, state = rule.update(scale, jnp.float32(gap), state)
        ...     print(scale)
        1.0
        1.5
        1.0

    Notes:
        The λ scheduler in the authors' code uses an attribute that its regularizers do not have,
        and raises an error at its first step. It would also recompute the dual from the parameters
        at each change, which discards the evidence for every sleeping weight; here the dual stays.
    """
    check_range("increment", increment, above=0)
    check_whole("warmup", warmup)
    check_whole("cooldown", cooldown)
    step = real(increment)

    def init() -> DiscrepancyState:
        return DiscrepancyState(jnp.asarray(warmup, jnp.int32))

    def update(
        scale: jax.Array, gap: jax.Array, state: DiscrepancyState
    ) -> tuple[jax.Array, DiscrepancyState]:
        due = state.wait <= 0
        changed = jnp.where(gap > 0, scale + step, jnp.maximum(scale - step, 0))
        wait = jnp.where(due, cooldown, state.wait - 1).astype(jnp.int32)
        return jnp.where(due, changed, scale), DiscrepancyState(wait)

    return SteeringRule(init, update)


def steer(
    inner: optax.GradientTransformation,
    target: optax.ScalarOrSchedule,
    *,
    measure: Callable[[Any], jax.Array] = density,
    rule: SteeringRule | None = None,
    every: int = 1,
    exact: bool = False,
    scope: Scope = "global",
    evidence_decay: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adjust the strength until the sparsity is the one that is asked for.

    Before each step the density of the parameters is measured. The rule turns the gap between
    density and target into a factor s, and every `prox_step` and `bregman_step` of ``inner`` uses
    s·λ. Inside `optax.partition` all parts get the same factor, so their strengths keep their
    ratio. The dual keeps what it has collected: a larger strength puts the weights with the least
    evidence to sleep, and makes all others smaller by δ times the change.

    At each step the evidence of sleeping weights grows by some share, and the strength has to grow
    as fast. With a rule the density therefore stays above its target until the learning rate decays
    to zero; the gap is about this share divided by the rule's α. ``exact=True`` closes it.

    In a long training λ grows far beyond the weights. A live group is then the small difference of
    two large numbers, its dual and :math:`\lambda\sqrt n` (`group_l2`), and an update turns it by
    :math:`\|\theta_g\| / (\|\theta_g\| + \delta\lambda\sqrt n)` of what it would turn the same
    weights of a plain optimizer: the network stops learning. With an ``evidence_decay`` γ below 1
    the dual forgets. Before each step

    .. math:: v \leftarrow \gamma v + (1-\gamma)\,\theta/\delta, \qquad
        \lambda \leftarrow \gamma\lambda,

    which leaves the weights as they are, because :math:`v - \theta/\delta` is λ times a
    subgradient at θ. So λ stays as large as the evidence of the last 1/(1 − γ) steps, by which
    sleeping groups wake.

    Start with a strength that is too small rather than too large: when a large one falls, the
    weights of the sparse start grow by δ times its fall.

    Args:
      inner: an optimizer of ours, or a chain or partition with one in it.
      target: the wanted value of ``measure``: a number, an array or a schedule, such as the cubic
        ramp ``optax.polynomial_schedule(0.5, 0.05, power=3, transition_steps=1000)``; with
        ``power=1`` the ramp is linear.
      measure: from the parameters to a number in [0, 1] that falls as the strength rises, such as
        ``lambda params: bregjax.density(params, bregjax.per_neuron())`` for live neurons or
        `relative_rank`. The default is the density of all weights.
      rule: `adaptive_rule` (the default) or `discrepancy_rule`.
      exact: if True, there is no rule. Each step sets λ between the k-th largest evidence and the
        next one, so that exactly k = ``round(target * n)`` of the n regularized entries live (more
        where several have the same evidence). Groups stay whole, and with them λ falls no further
        than it has to. ``inner`` needs a mirror step, and no
        regularizer may be `nuclear`. Build ``inner`` with ``keep_weights=True``, because λ may jump
        and each rise would shrink every live weight.
      scope: who competes, with ``exact=True``. ``"global"``: all entries together, so that layers
        get what they need; but each keeps a tenth of what ``"erdos_renyi"`` would give it, so that
        none dies. ``"layer"``: those of each array, and each gets the same density.
        ``"erdos_renyi"``: those of each array, and small layers are denser, see
        `bregjax.baselines.erdos_renyi_densities`. In all three the number of the whole network is
        exact.
      evidence_decay: γ in (0, 1], the share of the evidence that is left after a step; only with
        ``exact=True``, and not around `multilevel`, whose duals rest at times. Use it for groups,
        with 1/(1 − γ) about a twentieth of the steps. For single weights, which have no direction,
        it has changed little.
      every: how many steps lie between two measurements and changes of the strength. Around
        `multilevel`, where nothing wakes between full steps, use m + 1 unless the target only
        falls.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SteerState`, whose ``strength_scale``,
        ``target`` and ``gap`` can be logged: ``optax.tree.get(state, "strength_scale")``.

    Raises:
        ValueError: if ``target`` is outside [0, 1], ``every`` is not a positive integer, or
          ``evidence_decay`` is not in (0, 1], or below 1 without ``exact``; at ``init``, if
          ``inner`` has no prox step; at ``update``, if ``params`` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.steer(bregjax.linbreg(0.1, bregjax.l1(), strength=0.01), target=0.3)
        >>> solution = jnp.linspace(-1.0, 1.0, 400).reshape(20, 20)
        >>> params = jnp.zeros((20, 20))
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for _ in range(400):
        ...     gradient = 0.1 * (params - solution)
        ...     updates, state = update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(bregjax.density(params).round(1))
        0.3

    References:
        Aloradi, Roith, Habets, Tenbrinck, `Adaptive Regularization for Sparsity Control in
        Bregman-Based Optimizers <https://arxiv.org/abs/2605.07892>`_, 2026.

    See Also:
        `land`, which makes the number of weights exact after the training.
    """
    check_range("target", target, at_least=0, at_most=1, schedule=True)
    if callable(target):
        check_schedule("target", target, (2**31 - 1,), at_least=0, at_most=1)
    check_whole("every", every, at_least=1)
    check_function("measure", measure)
    check_flag("exact", exact)
    if exact and (rule is not None or measure is not density):
        raise ValueError(f"exact=True needs neither measure nor rule, got {measure=}, {rule=}.")
    check_scope(scope)
    if scope != "global" and not exact:
        raise ValueError(f"a scope for each layer needs exact=True, got {scope=}.")
    decay = known_number("evidence_decay", evidence_decay, above=0, at_most=1)
    if decay < 1 and not exact:
        raise ValueError(f"evidence_decay below 1 needs exact=True, got {evidence_decay=}.")
    inner = check_transformation("inner", inner)
    rule = adaptive_rule() if rule is None else rule
    if not isinstance(rule, SteeringRule):
        raise TypeError(f"rule must be a SteeringRule such as adaptive_rule(), got {rule=}.")

    def init(params: Any) -> SteerState:
        inner_state = inner.init(params)
        if not states_of(inner_state, ProxState):
            raise ValueError(f"inner has no prox_step, there is nothing to steer: got {inner!r}.")
        check_steps_through("inner", inner_state)
        if decay < 1 and states_of(inner_state, MultilevelState):
            raise ValueError(
                f"inner has a multilevel, whose duals rest in coarse steps: {evidence_decay=} must"
                " be 1."
            )
        leaves = jax.tree.leaves(params)
        has_dual = leaves_with_dual(inner_state, params) if exact else []
        if exact and leaves and not any(has_dual):
            if states_of(inner_state, MirrorState):
                raise ValueError("mask marks no leaf of params: none of them can become sparse.")
            raise ValueError(f"exact=True needs a mirror_step in inner, got {inner!r}.")
        return SteerState(
            inner_state=inner_state,
            count=jnp.zeros([], jnp.int32),
            strength_scale=jnp.ones([], jnp.float32),
            layer_scales=jnp.ones(sum(has_dual), jnp.float32) if exact else None,
            target=jnp.asarray(value_at(target, jnp.zeros([], jnp.int32)), jnp.float32),
            moved=jnp.zeros([], jnp.int32),
            gap=jnp.zeros([], jnp.float32),
            total=jnp.asarray(
                count_entries(x.size for x in itertools.compress(leaves, has_dual)), jnp.uint32
            ),
            rule_state=() if exact else rule.init(),
        )

    def follow_the_gap(
        updates: Any, state: SteerState, params: Any, aim: jax.Array, extra_args: dict[str, Any]
    ) -> tuple[Any, SteerState]:
        with raised_by(f"{measure=}"):
            measured = jnp.asarray(measure(params), jnp.float32).reshape(()) - aim
        answer = measured, *rule.update(state.strength_scale, measured, state.rule_state)
        # A select, because with a branch a GPU would wait for the host.
        due = state.count % every == 0
        gap, scale, rule_state = jax.tree.map(
            lambda new, old: jnp.where(due, new, old),
            answer,
            (state.gap, state.strength_scale, state.rule_state),
        )
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **scaled_by(scale, extra_args)
        )
        state = state._replace(
            inner_state=inner_state, strength_scale=scale, gap=gap, rule_state=rule_state
        )
        return updates, state

    def meet_the_count(
        updates: Any, state: SteerState, params: Any, aim: jax.Array, extra_args: dict[str, Any]
    ) -> tuple[Any, SteerState]:
        # First a step at the old strength, then the strength at which the wanted number lives.
        landed = leaves_with_dual(state.inner_state, params)
        faded = decay * state.layer_scales
        moved, inner_state = inner.update(
            updates,
            state.inner_state,
            params,
            **scaled_by(scales_like(params, landed, faded), extra_args),
            defer_strength=True,
            evidence_decay=decay,
        )
        reader = DualReader(inner, before_last_step(inner_state), params, extra_args)
        # Of groups one number each, as the search reads them all many times.
        numbers = list(itertools.compress(reader.evidence_of_groups(), landed))
        shapes = [x.shape for x in itertools.compress(jax.tree.leaves(params), landed)]
        sizes = [math.prod(s) // max(x.size, 1) for s, x in zip(shapes, numbers, strict=True)]
        pool = Pool(numbers, sizes)
        # Groups are few, and the gap between two of them wide. A λ that fell without need, as there
        # are no others after a compaction, would swell all live ones.
        least = faded if any(size > 1 for size in sizes) else jnp.zeros_like(faded)
        total = state.total.astype(jnp.float32)
        wanted = jnp.round(aim * total).astype(jnp.uint32)
        layers = LayerCounts(shapes)
        found = factors_of_layers(pool, layers, wanted, scope, least, near=faded)
        scales = jnp.where(state.count % every == 0, found, faded)
        read_off, followed = reader.updates_at(scales_like(params, landed, scales))
        leaves, treedef = jax.tree.flatten(moved)
        chosen = zip(jax.tree.leaves(read_off), leaves, landed, strict=True)
        moved = treedef.unflatten([new if mine else old for new, old, mine in chosen])
        live = jnp.sum(pool.count_above(scales), dtype=jnp.uint32)
        state = state._replace(
            inner_state=with_duals_of(inner_state, followed),
            strength_scale=jnp.max(scales),
            layer_scales=scales,
            gap=live.astype(jnp.float32) / total - aim,
        )
        return moved, state

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SteerState]:
        check_update(updates, state, params, SteerState)
        if exact and extra_args.get("hold_dual", False):
            # This is no step: the dual is read at the strength of the last step, see DualReader.
            landed = leaves_with_dual(state.inner_state, params)
            read = scaled_by(scales_like(params, landed, state.layer_scales), extra_args)
            updates, inner_state = inner.update(updates, state.inner_state, params, **read)
            return updates, state._replace(inner_state=inner_state)
        aim = jnp.asarray(value_at(target, state.count), jnp.float32)
        step = meet_the_count if exact else follow_the_gap
        previous = state
        updates, state = step(updates, state, params, aim, extra_args)
        moved = jnp.where(aim == previous.target, previous.moved, previous.count)
        count = jnp.asarray(optax.safe_increment(previous.count))
        return updates, state._replace(count=count, target=aim, moved=moved)

    return optax.GradientTransformationExtraArgs(init, update)
