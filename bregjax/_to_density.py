"""Sparse training that needs to know only the density and the number of steps."""

import math

import jax.numpy as jnp
import optax

from bregjax._leaves import Mask
from bregjax._optimizers import adabreg
from bregjax._regularizers._base import Regularizer, check_regularizer, has_state
from bregjax._regularizers._elementwise import l1, none
from bregjax._steering import steer
from bregjax._validation import check_whole, known_number

_RAMP = 0.8
"""the share of the steps after which the density is reached"""
_SHRINKING = 0.5
"""the share of the steps in which λ shrinks live groups"""
_MEMORY = 0.05
"""the share of the steps after which 1/e of the evidence for groups is left"""
_RATE, _LARGEST_RATE = 1e-2, 2e-2
_DISTANCES = 0.25, 0.5
"""what a weight travels over the steps if the signs of its gradients are random, rate · √steps: at
least, and at most"""
_WARMUP = 0.1
"""the share of the steps after which the learning rate is largest"""
_UNIT = 1e-3
"""the strength that steering multiplies; its value does not matter"""


def adabreg_to_density(
    density: float,
    steps: int,
    learning_rate: optax.ScalarOrSchedule | None = None,
    regularizer: Regularizer | None = None,
    *,
    initial_density: float = 1.0,
    keep_weights: bool | optax.Schedule | None = None,
    evidence_decay: float | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBreg that ends with the wanted share of the weights, without a strength to choose.

    After each step exactly ``round(d_t * n)`` of the n regularized weights live: those with the
    most evidence in their dual, and more where several have the same. In a training of T steps the
    share at step t is

    .. math:: d_t = d + (d_0 - d)\,\bigl(1 - \min(t / 0.8\,T,\, 1)\bigr)^3.

    The network begins as it is: with random weights, or trained. Fine-tune with a smaller learning
    rate, but groups with no less than half of the default: λ shrinks all groups until the weakest
    die, and the network has to learn that again. The dual starts at the weights.
    To train sparsely from the first step, prepare the network by `sparse_start` and set
    ``initial_density``.

    It is ``steer(adabreg(…, keep_weights=True), optax.polynomial_schedule(…), exact=True)``; where
    weights live and die in groups, λ shrinks them in the first half of the steps, so that little is
    left of a group when it dies, and the dual forgets old evidence, so that λ stays small enough
    for live groups to learn (see `steer`). Build this yourself if you want another ramp or
    `linbreg`.

    In front of batch norm groups need ``keep_weights=True``. Batch norm makes up for any shrinkage,
    so λ may shrink filters to almost nothing, and its running variance, which falls by a share of
    itself at each step, does not follow: the trained network is right in training mode and wrong
    in evaluation mode.

    Args:
      density: d, the share of the regularized entries that live in the end, in (0, 1].
      steps: T, the number of updates of the whole training, at least 1.
      learning_rate: a number or a schedule; the default rises over the first tenth of the steps
        and falls to zero as a cosine. Its largest value is 0.01, but at least 0.25/√T and at most
        0.5/√T, and never above 0.02. With groups it is min(0.02, 0.5/√T), because λ shrinks the
        live ones, which have to be learnt again.
      regularizer: its groups live or die whole; `l1` by default. The last group may exceed the
        share. With ``per_neuron()`` and the like leave the output layer out by ``mask``, or whole
        classes die.
      initial_density: d₀, where the ramp begins, at least ``density`` and at most 1.
      keep_weights: whether live weights keep their values when λ changes, as in `adabreg`. The
        default is True for single weights; for groups it is a schedule, False for half of the
        steps and then True.
      evidence_decay: what is left of the evidence after a step, as in `steer`. The default is 1 for
        single weights and exp(−20/T) for groups.
      mask: which leaves are regularized and counted, as in `linbreg`.

    Returns:
        The optimizer, with a `SteerState`. Put clipping in front of it, in an `optax.chain`.

    Raises:
        ValueError: if ``density``, ``steps``, ``initial_density`` or ``evidence_decay`` is out of
          range, or the regularizer is `none` or has a state, as `nuclear`; at ``init``, if ``mask``
          marks no leaf.
        TypeError: if ``regularizer`` is not a `Regularizer`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> inputs = jax.random.normal(jax.random.key(0), (30, 50))
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
        `diagnose`, which says in words what is wrong with a training; `steer`; `land`.
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
    if learning_rate is None:
        warmup = max(1, round(_WARMUP * steps))
        least, most = (min(distance / math.sqrt(steps), _LARGEST_RATE) for distance in _DISTANCES)
        rate = most if regularizer.has_groups else min(max(_RATE, least), most)
        learning_rate = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, 2))
    ramp = round(_RAMP * steps)
    target = optax.polynomial_schedule(first, density, power=3, transition_steps=ramp)
    if keep_weights is None:
        # Entries that die are next to zero anyway. Groups are not, their norms are much alike. But
        # a live group is the small difference of its dual and λ times the root of its size: a
        # change of λ does damage that a small learning rate cannot repair.
        keep_weights = _after(round(_SHRINKING * steps)) if regularizer.has_groups else True
    if evidence_decay is None:
        evidence_decay = math.exp(-1 / (_MEMORY * steps)) if regularizer.has_groups else 1.0
    inner = adabreg(learning_rate, regularizer, _UNIT, keep_weights=keep_weights, mask=mask)
    return steer(inner, target, exact=True, evidence_decay=evidence_decay)


def _after(last: int) -> optax.Schedule:
    """False up to the step with this count, then True."""
    return lambda count: jnp.asarray(count) > last
