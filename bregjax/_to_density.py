"""Sparse training that needs to know only the density and the number of steps."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bregjax._leaves import Mask
from bregjax._mirror import bregman_step
from bregjax._optimizers import adam_before, on_weights
from bregjax._regularizers._base import Regularizer, check_regularizer, has_state
from bregjax._regularizers._elementwise import l1, none
from bregjax._scope import Scope
from bregjax._steering import steer
from bregjax._validation import check_whole, known_number


class Defaults(NamedTuple):
    """What is done in a training of T steps where it is not told otherwise.

    `benchmarks` writes it beside its results.
    """

    rate: float
    """the largest learning rate of `adabreg_to_density`"""
    warmup: float
    """the share of the steps after which it is reached"""
    kept: float
    """the share of a change of λ that live weights do not feel while it shrinks them"""
    ramp: float
    """the share of the steps after which the density is reached"""
    shrinking: float = 0.5
    """the share of the steps in which λ shrinks live weights"""
    memory: float = 0.05
    """the share of the steps after which 1/e of the evidence is left"""


def defaults_for(steps: int, regularizer: Regularizer) -> Defaults:
    """The same for groups and for single weights, which feel less of λ, but at their rates."""
    if regularizer.has_groups:
        return Defaults(rate=min(0.02, 0.5 / math.sqrt(steps)), warmup=0.1, kept=0.0, ramp=0.8)
    # What is taken of live weights is in proportion to a step of theirs at every length: the random
    # walk of evidence, and with it λ, grows like the root of the steps that are remembered.
    kept = max(0.0, 1 - math.sqrt(steps / _ALL_IS_FELT))
    # From 6/T on a weight can travel by 3; 600 steps and more have a larger rate.
    rate = min(0.02, max(6 / steps, 0.085 / math.cbrt(steps)))
    # In a short training the network has to learn first what its weights are worth.
    ramp = min(0.8, max(0.5, 8 / math.cbrt(steps)))
    return Defaults(rate=rate, warmup=0.3, kept=kept, ramp=ramp)


_ALL_IS_FELT = 25_000
"""the steps from which on single weights feel all of a change of λ"""
_UNIT = 1e-3
"""the strength that steering multiplies; its value does not matter"""


def to_density(
    density: float,
    steps: int,
    regularizer: Regularizer | None = None,
    *,
    initial_density: float = 1.0,
    scope: Scope = "global",
    keep_weights: optax.ScalarOrSchedule | None = None,
    evidence_decay: float | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The last link of a chain: the optimizer in front of it ends with that share of the weights.

    It is chained last, ``optax.chain(optax.adamw(…), bregjax.to_density(0.1, steps))``, and nothing
    else changes: the rate, its schedule, the decay, clipping and momentum stay in front, as they
    are. The updates that arrive are collected by a `bregman_step`, whose dual keeps the evidence of
    sleeping weights, and after each step exactly ``round(d_t * n)`` of the n regularized weights
    live: those with the most evidence, and more where several have the same. In a training of T
    steps the share at step t is

    .. math:: d_t = d + (d_0 - d)\,\bigl(1 - \min(t / rT,\, 1)\bigr)^3

    with :math:`r = 8/\sqrt[3]T`, but at least 1/2 and at most 0.8, as in up to 1,000 steps; with
    groups it is 0.8.

    The network begins as it is: with random weights, or trained. To train sparsely from the first
    step, prepare the network by `sparse_start` and set ``initial_density``.

    In the first half of the steps live weights feel some of each rise of λ: it takes the same from
    all of them, and only the gradient of the loss gives it back. A weight that the loss can do
    without is not pulled back, however large it was, and dies. So the support is chosen as along
    the path of the lasso, where entries compete by what they are worth for the loss, and not as in
    pruning by their size at some moment. They feel all of it in trainings of 25,000 steps and more,
    and :math:`\sqrt{T/25000}` of it in shorter ones, which is always about a tenth of a step: λ is
    as large as what sleeping weights have collected of late, and where that is noise it grows like
    the root of the steps. (Were it no noise, as with one batch for all steps, λ would take as much
    as Adam gives back, also from the weights that matter.) In the second half live weights keep
    their values, which takes the shrinkage back, as one refits the lasso on its support, and
    weights still change places, one for one. All the while the dual forgets old evidence, so that λ
    is no larger in long trainings.

    It is ``steer(bregman_step(…, keep_weights=…), optax.polynomial_schedule(…), exact=True,
    evidence_decay=…)`` on the weights. Build this yourself if you want another ramp.

    In front of batch norm groups need ``keep_weights=True``. Batch norm makes up for any shrinkage,
    so λ may shrink filters to almost nothing, and its running variance, which falls by a share of
    itself at each step, does not follow: the trained network is right in training mode and wrong
    in evaluation mode.

    Args:
      density: d, the share of the regularized entries that live in the end, in (0, 1].
      steps: T, the number of updates of the whole training, at least 1. The learning rate in front
        of it should have fallen to zero, or nearly, after as many.
      regularizer: its groups live or die whole; `l1` by default. The last group may exceed the
        share. With ``per_neuron()`` and the like leave the output layer out by ``mask``, or whole
        classes die.
      initial_density: d₀, where the ramp begins, at least ``density`` and at most 1.
      scope: which weights compete, as in `steer`: all of them, but each layer keeps a few, or those
        of each layer for a number of its own.
      keep_weights: the share of a change of λ that live weights do not feel, as in `mirror_step`.
        The default is a schedule: :math:`\max(0, 1 - \sqrt{T/25000})`, or 0 with groups, for half
        of the steps, and then 1.
      evidence_decay: what is left of the evidence after a step, as in `steer`. The default is
        exp(−20/T).
      mask: which leaves are regularized and counted, as in `linbreg`; the updates of the others
        pass as they are.

    Returns:
        A transformation with a `SteerState`. It needs ``params``, and nothing may come behind it.

    Raises:
        ValueError: if ``density``, ``steps``, ``initial_density`` or ``evidence_decay`` is out of
          range, or the regularizer is `none` or has a state, as `nuclear`; at ``init``, if ``mask``
          marks no leaf.
        TypeError: if ``regularizer`` is not a `Regularizer`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 50))
        >>> targets = inputs[:, 3] - 2 * inputs[:, 7]
        >>> loss = lambda w: jnp.mean((inputs @ w[:, 0] - targets) ** 2)
        >>> schedule = optax.cosine_decay_schedule(0.05, 300)
        >>> tx = optax.chain(optax.sgd(schedule, momentum=0.9), bregjax.to_density(0.04, 300))
        >>> w = jnp.zeros((50, 1))
        >>> state = tx.init(w)
        >>> @jax.jit
        ... def step(w, state):
        ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
        ...     return optax.apply_updates(w, updates), state
        >>> for _ in range(300):
        ...     w, state = step(w, state)
        >>> print(jnp.flatnonzero(w))
        [3 7]

    See Also:
        `adabreg_to_density`, which brings Adam and its learning rate along; `diagnose`, which says
        in words what is wrong with a training; `steer`; `land`.
    """
    density = known_number("density", density, above=0, at_most=1)
    check_whole("steps", steps, at_least=1)
    first = known_number("initial_density", initial_density, at_least=density, at_most=1)
    regularizer = l1() if regularizer is None else regularizer
    check_regularizer(regularizer)
    if has_state(regularizer) or regularizer == none():
        raise ValueError(
            "regularizer must put entries or groups to sleep, each at a strength of its own, got"
            f" {regularizer=}. Ranks follow steer(…, measure=relative_rank)."
        )
    defaults = defaults_for(steps, regularizer)
    ramp = round(defaults.ramp * steps)
    target = optax.polynomial_schedule(first, density, power=3, transition_steps=ramp)
    if keep_weights is None:
        keep_weights = _after(round(defaults.shrinking * steps), defaults.kept)
    if evidence_decay is None:
        evidence_decay = math.exp(-1 / (defaults.memory * steps))
    step = on_weights(bregman_step(regularizer, _UNIT, keep_weights=keep_weights), mask)
    return steer(step, target, exact=True, scope=scope, evidence_decay=evidence_decay)


def adabreg_to_density(
    density: float,
    steps: int,
    learning_rate: optax.ScalarOrSchedule | None = None,
    regularizer: Regularizer | None = None,
    *,
    initial_density: float = 1.0,
    weight_decay: float | jax.Array = 0.0,
    scope: Scope = "global",
    keep_weights: optax.ScalarOrSchedule | None = None,
    evidence_decay: float | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBreg that ends with the wanted share of the weights, without a strength to choose.

    It is Adam with a learning rate that is known to go well, and behind it `to_density`, whose page
    tells how the weights are chosen:

    .. code-block:: python

        optax.chain(optax.adamw(learning_rate), to_density(density, steps))

    Fine-tune a trained network with a smaller learning rate, but groups with no less than half of
    the default: λ shrinks all of them until the weakest die, and the network has to learn that
    again.

    Args:
      density: d, the share of the regularized entries that live in the end, in (0, 1].
      steps: T, the number of updates of the whole training, at least 1.
      learning_rate: a number or a schedule; the default rises over the first 30 % of the steps to
        :math:`0.085/\sqrt[3]{T}`, such as 0.0085 for 1,000 steps and 0.0039 for 10,000, and falls
        to zero as a cosine. In less than 600 steps it is 6/T, but at most 0.02. With groups it
        rises over the first tenth to :math:`0.5/\sqrt T`, but at most 0.02, because λ takes more
        from the live ones.
      regularizer: J, as in `to_density`, where what follows is explained, too.
      initial_density: d₀, where the ramp begins.
      weight_decay: ω ≥ 0, the decoupled decay of live weights, as in `optax.adamw`.
      scope: which weights compete.
      keep_weights: the share of a change of λ that live weights do not feel.
      evidence_decay: what is left of the evidence after a step.
      mask: which leaves are regularized, counted and decayed.

    Returns:
        The optimizer, with a `SteerState`. Put clipping in front of it, in an `optax.chain`.

    Raises:
        As `to_density`; ValueError if ``learning_rate`` or ``weight_decay`` is negative.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 50))
        >>> targets = inputs[:, 3] - 2 * inputs[:, 7]
        >>> loss = lambda w: jnp.mean((inputs @ w[:, 0] - targets) ** 2)
        >>> tx = bregjax.adabreg_to_density(0.04, steps=300, learning_rate=0.02)
        >>> w = jnp.zeros((50, 1))
        >>> state = tx.init(w)
        >>> @jax.jit
        ... def step(w, state):
        ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
        ...     return optax.apply_updates(w, updates), state
        >>> for _ in range(300):
        ...     w, state = step(w, state)
        >>> print(jnp.flatnonzero(w))
        [3 7]

    See Also:
        `to_density`, behind any other optimizer; `diagnose`, which says in words what is wrong with
        a training; `land`.
    """
    step = to_density(
        density,
        steps,
        regularizer,
        initial_density=initial_density,
        scope=scope,
        keep_weights=keep_weights,
        evidence_decay=evidence_decay,
        mask=mask,
    )
    if learning_rate is None:
        defaults = defaults_for(steps, l1() if regularizer is None else regularizer)
        warmup = max(1, round(defaults.warmup * steps))
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, defaults.rate, warmup, max(steps, 2)
        )
    return adam_before(step, optax.scale_by_adam(), learning_rate, weight_decay, mask)


def _after(last: int, before: float) -> optax.Schedule:
    """A share up to the step with this count, then 1."""
    return lambda count: jnp.where(jnp.asarray(count) > last, 1.0, before)
