"""What is wrong with a sparse training, in words."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bregjax._evidence import (
    DualReader,
    before_last_step,
    check_trained,
    duals_of_leaves,
    leaves_with_dual,
)
from bregjax._landing import LandingState
from bregjax._leaves import Layout, layouts_of, leaf_name, parameters_of, without_variables
from bregjax._plateau import PlateauState
from bregjax._prox import ProxState
from bregjax._regularizers._spectral import NuclearState
from bregjax._scope import LayerCounts
from bregjax._states import states_of
from bregjax._steering import SteerState
from bregjax._validation import check_array

_NEAR = 0.5
"""A sleeping weight with this share of the evidence that it needs is near waking."""
_NEARLY_ALL = 0.95
_GAP = 0.1
"""how far steering may be off its target, as a share of the target"""
_FEW_STEPS = 100
_ROUNDING = 1e-4
"""how far the parameters may be off the prox of their dual, as a share of their norm"""
_EARLIEST_END = 0.4
"""of a ramp, as a share of the steps"""


def diagnose(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    outputs: jax.Array | None = None,
    **extra_args: Any,
) -> list[str]:
    """Say in sentences what is wrong with a sparse training, and what helps.

    It finds: numbers that are not finite; parameters that differ from what the dual says, because
    something changes them after the step; layers without a live weight; units that no gradient has
    reached; a strength at which nothing is near waking, or at which nearly everything is awake;
    steering that is off its target, or whose target fell too early; and, in the outputs, dead
    networks and dead classes. Call it after some steps, and again at the end; it costs as much as
    three updates of the optimizer.

    Args:
      optimizer: what the network is trained with, as in `land`.
      state: its state; for a `flax.nnx.Optimizer`, its ``opt_state``.
      params: the parameters, or a Flax NNX model.
      outputs: the network's outputs for a batch of different examples, (examples, …, classes) or
        (examples,).
      **extra_args: passed to the optimizer's ``update``, where it needs any.

    Returns:
        The sentences; an empty list if nothing was found. Not for use under `jax.jit`.

    Raises:
        TypeError: if ``optimizer`` is not an `optax.GradientTransformation`, or ``params`` or
          ``outputs`` are not arrays of numbers.
        ValueError: if ``state`` is not of this optimizer and these parameters or has no dual, or
          ``outputs`` has no example.

    Example:
        A strength that is far too large:

        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.linbreg(0.1, bregjax.l1(), strength=1000.0)
        >>> params = {"kernel": jnp.zeros((2, 2)).at[0].set(1.0)}
        >>> state = tx.init(params)
        >>> updates, state = tx.update({"kernel": jnp.ones((2, 2))}, state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> for sentence in bregjax.diagnose(tx, state, params):
        ...     print(sentence)
        No sleeping weight is near waking: the first has 0.01 % of the evidence that it needs. Use a
        smaller strength, more steps, or adabreg_to_density.

    See Also:
        `sparsity_report`, a table of what lives.
    """
    state, params = without_variables((state, parameters_of(params)))
    check_trained(optimizer, state, params)
    found = duals_of_leaves(state, params)
    if all(dual is None for dual in found):
        raise ValueError(
            "state has no dual of params: diagnose is for linbreg, adabreg and the like."
        )
    paths = jax.tree.leaves_with_path(params)
    names = [leaf_name(path) or "the parameter" for path, _ in paths]
    duals = {
        name: np.asarray(dual)
        for name, dual in zip(names, found, strict=True)
        if dual is not None and dual.size
    }
    weights = {
        name: np.asarray(x, np.float32)
        for name, (_, x) in zip(names, paths, strict=True)
        if name in duals
    }
    everything = zip(names, (np.asarray(x, np.float32) for _, x in paths), strict=True)
    spoilt = dict.fromkeys(
        name for name, x in (*everything, *duals.items()) if not np.isfinite(x).all()
    )
    if spoilt:
        return [
            f"{_some(list(spoilt))} is not finite: a gradient was NaN or infinite, and the dual"
            " keeps it. Start again, with optax.apply_if_finite around the optimizer."
        ]
    reader = DualReader(optimizer, state, params, extra_args)
    try:
        evidence = dict(zip(names, map(np.asarray, reader.evidence()), strict=True))
    except NotImplementedError:  # it is singular values that sleep
        evidence = None
    steering = states_of(state, SteerState)
    return [
        *_of_what_comes_behind(optimizer, state, params, extra_args, names, duals),
        *_of_layers(
            weights, duals, layouts_of(dict(zip(names, jax.tree.leaves(params), strict=True)))
        ),
        *_of_floors(weights, steering, params, names),
        *_of_strength(weights, evidence, steering),
        *_of_steering(steering),
        *_of_counts(weights, state, params, names),
        *_of_outputs(outputs),
    ]


def _of_what_comes_behind(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    extra_args: dict[str, Any],
    names: list[str],
    duals: dict[str, np.ndarray],
) -> Iterator[str]:
    """Compares the parameters with what the dual said in the last step."""
    landed = any(int(part.wanted) for part in states_of(state, LandingState))
    if landed or states_of(state, PlateauState):  # fine-tuned, or the strength is not known
        return
    kept = [part.regularizer_state for part in states_of(state, ProxState)]
    if any(x is not None and not isinstance(x, NuclearState) for x in kept):
        return  # the prox may be random

    reader = DualReader(optimizer, before_last_step(state), params, extra_args)
    _, followed = reader.updates_at(jnp.ones([], jnp.float32))
    steering = zip(states_of(state, SteerState), states_of(followed, SteerState), strict=True)
    factors = {1.0} | {float(then.strength_scale / now.strength_scale) for then, now in steering}
    moves = [jax.tree.leaves(reader.updates_at(jnp.float32(x))[0]) for x in factors]
    changed = []
    for name, x, *gaps in zip(names, jax.tree.leaves(params), *moves, strict=True):
        if name in duals:
            # The dual of a small weight may be large, and then its rounding error is large too.
            share = max(_ROUNDING, 4 * float(jnp.finfo(x.dtype).eps))
            rounding = 16 * np.finfo(duals[name].dtype).eps * _norm(duals[name])
            if min(map(_norm, gaps)) > share * _norm(x) + rounding:
                changed.append(name)
    if changed:
        yield (
            f"{_some(changed)} is not what the dual says: something changes the weights behind the"
            " step, and the next step undoes it. Chain it in front of the optimizer; after other"
            " changes call tx.init again."
        )


def _of_layers(
    weights: dict[str, np.ndarray], duals: dict[str, np.ndarray], layouts: dict[str, Layout]
) -> Iterator[str]:
    dead = [name for name, x in weights.items() if not x.any()]
    if dead:
        yield (
            f"No weight of {_some(dead)} lives, so that nothing passes. Use a smaller strength or a"
            " larger density there."
        )
    unreached = {}
    for name, x in weights.items():
        outputs = layouts[name].out_axes or (-1,)
        rows = tuple(a for a in range(x.ndim) if a - x.ndim not in outputs)
        silent = ~(x.any(axis=rows) | duals[name].any(axis=rows))
        if silent.any():
            unreached[name] = f"{int(silent.sum())} of {silent.size} in {name}"
    if unreached:
        yield (
            "Some units have no live weight and have never had a gradient, so that they sleep for"
            f" ever: {_some(list(unreached.values()))}. Start with sparse_start, which gives them"
            " positive biases."
        )


def _of_floors(
    weights: dict[str, np.ndarray], steering: list[SteerState], params: Any, names: list[str]
) -> Iterator[str]:
    """Finds layers that only the floor of exact steering keeps alive."""
    starving = []
    for state in steering:
        if state.layer_scales is None:
            continue
        has_dual = leaves_with_dual(state.inner_state, params)
        mine = list(itertools.compress(names, has_dual))
        alive = {name: int(np.count_nonzero(weights[name])) for name in mine if name in weights}
        shapes = [weights[name].shape for name in alive]
        numbers = LayerCounts(shapes).floors(jnp.uint32(sum(alive.values()))) if shapes else []
        floors = dict(zip(alive, map(int, numbers), strict=True))
        scales = zip(mine, np.asarray(state.layer_scales), strict=True)
        starving += [
            f"{name} ({alive[name]:,} of {weights[name].size:,})"
            for name, scale in scales
            if name in alive and scale < state.strength_scale and alive[name] <= floors[name] + 1
        ]
    if starving:
        yield (
            f"Few weights of {_some(starving)} live, and they live only because each layer keeps"
            " some: the layer is about to starve. Use scope='erdos_renyi', a smaller learning rate,"
            " or leave it out by a mask."
        )


def _of_strength(
    weights: dict[str, np.ndarray],
    evidence: dict[str, np.ndarray] | None,
    steering: list[SteerState],
) -> Iterator[str]:
    total = sum(x.size for x in weights.values())
    # After a compaction there are fewer weights than the targets of exact steering are shares of.
    total = max(total, *(int(state.total) for state in steering), 0)
    alive = sum(int(np.count_nonzero(x)) for x in weights.values())
    exact = any(state.layer_scales is not None for state in steering)
    if evidence is None or alive == total or exact:  # exact steering sets λ by the count
        nearest = None
    else:
        asleep = (evidence[name][x == 0] for name, x in weights.items())
        nearest = max(float(x.max(initial=0)) for x in asleep)
    if nearest is not None and 0 < nearest < _NEAR:
        yield (
            "No sleeping weight is near waking: the first has"
            f" {_percent(nearest)} of the evidence that it needs. Use a smaller strength, more"
            " steps, or adabreg_to_density."
        )
    wanted = any(state.target >= _NEARLY_ALL for state in steering)
    if alive >= _NEARLY_ALL * total and not wanted:
        yield (
            f"{_percent(alive / total)} of the weights are awake. Use a larger strength, or"
            " adabreg_to_density."
        )


def _of_steering(steering: list[SteerState]) -> Iterator[str]:
    for state in steering:
        target, gap = float(state.target), float(state.gap)
        moved, count = int(state.moved), int(state.count)
        if 0 < moved < _EARLIEST_END * count and moved + 1 < count:
            yield (
                f"The target stands still since step {moved:,} of {count:,}: the ramp ended too"
                " early for weights to collect evidence. Let it fall over half of the steps or"
                f" more, and over {_FEW_STEPS} at least."
            )
        elif 0 < moved < _FEW_STEPS and moved + 1 < count:
            yield (
                f"The target fell over {moved:,} steps, which is too few for weights to collect"
                f" evidence. Train for more steps: the ramp should have {_FEW_STEPS} at least."
            )
        if gap < -_GAP * target:
            yield (
                f"Steering aimed at {_percent(target)} and had {_percent(target + gap)}: too few"
                " weights have evidence. Train longer, or start with more weights."
            )
        elif gap > _GAP * target:
            yield (
                f"Steering aimed at {_percent(target)} and had {_percent(target + gap)}: the"
                " strength has not caught up. Let the target fall earlier or more slowly, or use"
                " exact=True at every step."
            )


def _of_counts(
    weights: dict[str, np.ndarray], state: Any, params: Any, names: list[str]
) -> Iterator[str]:
    """Compares how many weights live with how many exact steering has left."""
    if any(int(part.wanted) for part in states_of(state, LandingState)):
        return
    for steering in states_of(state, SteerState):
        if steering.layer_scales is None or not int(steering.count):
            continue
        mine = itertools.compress(names, leaves_with_dual(steering.inner_state, params))
        alive = sum(int(np.count_nonzero(weights[name])) for name in mine if name in weights)
        total, target = int(steering.total), float(steering.target)
        left = (target + float(steering.gap)) * total
        if abs(alive - left) > max(1, _GAP * left):
            yield (
                f"{_percent(alive / total)} of the weights live, where exact steering has left"
                f" {_percent(left / total)}: something changes the weights behind the step. Chain"
                " it in front of the optimizer."
            )


def _of_outputs(outputs: jax.Array | None) -> Iterator[str]:
    if outputs is None:
        return
    check_array("outputs", outputs)
    if np.ndim(outputs) < 1 or not np.size(outputs) or np.iscomplexobj(outputs):
        raise ValueError(
            "outputs must have a dimension of examples, maybe one of classes behind it, and be"
            f" real, got outputs of shape {np.shape(outputs)}."
        )
    rows = np.asarray(outputs, np.float32)
    rows = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1)
    constant = np.ptp(rows, axis=0) == 0
    if constant.all():
        yield (
            "The network is dead: it puts out the same for every example. Start with sparse_start."
        )
    elif constant.any():
        classes = ", ".join(map(str, np.flatnonzero(constant)[:10]))
        yield (
            f"{int(constant.sum())} of {constant.size} outputs are the same for every example:"
            f" {classes}. Leave the last layer out by a mask, or give it a smaller strength."
        )


def _norm(x: Any) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64).ravel()))


def _some(names: list[str]) -> str:
    """Up to five of them."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
