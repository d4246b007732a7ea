"""Training on after a network was shrunk, and the way back to its old shapes."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from bregjax._evidence import DualReader, before_last_step, leaves_with_dual, with_duals_of
from bregjax._landing import LandingState
from bregjax._leaves import leaf_name
from bregjax._mirror import MirrorState
from bregjax._regularizers._spectral import NuclearState
from bregjax._shrinking._shrink import Shrunk
from bregjax._states import states_of
from bregjax._steering import SteerState
from bregjax._validation import check_arrays, check_same_shapes, check_state, check_transformation


def shrink_state(optimizer: optax.GradientTransformation, state: Any, shrunk: Shrunk) -> Any:
    r"""Take an optimizer's state to the network that `shrink_params` has left: compaction.

    Duals, momenta, supports and everything else that is shaped like the parameters keep only the
    entries of the indices that are left, :math:`s \leftarrow s[I_1 \times I_2 \times \dots]`.
    Counts, strengths and targets stay as they are. Then the duals of live weights are recomputed,
    :math:`v \leftarrow \theta/\delta + \lambda p` with :math:`p \in \partial J(\theta)`, because
    groups have lost the weights that read dead units. The same optimizer trains the smaller
    network, and its steps cost less.

    Up to rounding, the training goes on as it would have gone without compaction if three things
    hold: the removed units would have stayed asleep (as in the coarse steps of `multilevel`, after
    a `landing`, under `freeze_support`), their outputs were zero (``fold=False``), and the
    regularizer is `l1` or no longer acts. Otherwise the removed units cannot wake any more, and
    their constant outputs are trained as a part of the biases that they were folded into.

    Weights may live without effect, such as those that read dead units or lead to units which
    nothing reads. They go, too, and ``steer(…, exact=True)`` wakes no others in their place: λ
    would fall at once, and all weights jump. Its target is from then on a share of a total N that
    is smaller by the same factor as the number n of weights that live,
    :math:`N \leftarrow N\, n_{\text{after}} / n_{\text{before}}`. The density thus counts what it
    would count without compaction.

    Each compaction changes shapes, so the step is compiled again: do it only a few times, with
    ``round_to``.

    Args:
      optimizer: the optimizer of the training.
      state: its state, shaped like the network before.
      shrunk: what `shrink_params` returned.

    Returns:
        The state for ``shrunk.network``.

    Raises:
        ValueError: if an array of the state is neither shaped like its parameter nor broadcasts to
          it, or is a basis of `nuclear`; if outputs of dead units were folded into a parameter
          that has a dual; if a `landing` has not landed yet, or `steer` without ``exact=True``
          follows a density, because both would measure the smaller network.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["in"]) @ params["out"]
        >>> params = {"in": jnp.eye(4).at[:, 2:].set(0.0), "out": jnp.ones((4, 2))}
        >>> tx = optax.adam(0.1)
        >>> state = tx.init(params)
        >>> shrunk = bregjax.shrink_params(apply, params, jnp.ones((1, 4)))
        >>> state = bregjax.shrink_state(tx, state, shrunk)
        >>> print(shrunk.network["in"].shape, state[0].mu["in"].shape)
        (4, 2) (4, 2)
        >>> print(bregjax.unshrink(shrunk.network, shrunk)["out"].astype(int))
        [[1 1]
         [1 1]
         [0 0]
         [0 0]]

    Notes:
        The densities of `bregjax.baselines` are shares of the network that they see.

    See Also:
        `shrink_optimizer`, for Flax NNX; `unshrink`, the way back.
    """
    check_transformation("optimizer", optimizer)
    return gather_state(optimizer, state, _shrunk(shrunk).network, shrunk)


def gather_state(
    optimizer: optax.GradientTransformation, state: Any, params: Any, shrunk: Shrunk
) -> Any:
    """`shrink_state`, where the smaller network's parameters are ``params``."""
    made = "optimizer.init of what was shrunk"
    check_state("state", state, optimizer, _shapes_before(params, shrunk), made)
    for landing in states_of(state, LandingState):
        if landing.wanted == 0:
            raise ValueError("state is of a landing that has not landed yet: shrink it afterwards.")
    for steering in states_of(state, SteerState):
        if steering.total == 0 and not states_of(state, LandingState):
            raise ValueError(
                "state is of a steer that measures a density, which would be that of the smaller"
                " network: build it with exact=True."
            )
    if states_of(state, NuclearState):
        raise ValueError("state has bases of nuclear, which are of the larger matrices.")
    paths = jax.tree.leaves_with_path(params)
    for (path, _), has_dual in zip(paths, leaves_with_dual(state, params), strict=True):
        name = leaf_name(path)
        if has_dual and shrunk.report[name].folded:
            raise ValueError(
                f"{name} has taken in what dead units put out, and its dual has not: leave it out"
                " of the regularization by mask, as biases are by default."
            )

    def smaller(state: Any, params: Any) -> Any:
        state = _map_named(lambda x, name: _gather(x, name, shrunk), params, state)
        if not states_of(state, MirrorState) or states_of(state, LandingState):
            return state
        # Live groups have lost the weights that read dead units, so their norms have changed.
        reader = DualReader(optimizer, before_last_step(state), params, {})
        groups = zip(jax.tree.leaves(params), reader.evidence_of_groups(), strict=True)
        live = [_entries_of_live_groups(x, evidence) for x, evidence in groups]
        state = with_duals_of(state, reader.state_of_parameters())
        return _with_totals(state, params, live)

    return _in_one_program(smaller, state, params)


def _entries_of_live_groups(x: jax.Array, evidence: jax.Array) -> jax.Array:
    """How many entries they have; the groups' evidence has ones along their axes."""
    axes = tuple(axis for axis, n in enumerate(evidence.shape) if n == 1)
    return jnp.count_nonzero(jnp.broadcast_to(x.any(axis=axes, keepdims=True), x.shape))


def _with_totals(state: Any, params: Any, live: Sequence[jax.Array]) -> Any:
    """The state whose targets are met by as many entries as live now, so that λ stays."""

    def adapted(x: SteerState) -> SteerState:
        mine = leaves_with_dual(x.inner_state, params)
        now = sum((n.astype(jnp.float32) for n in itertools.compress(live, mine)), jnp.float32(0))
        total = x.total.astype(jnp.float32)
        before = (x.target + x.gap) * total
        known = (x.count > 0) & (before > 0)
        total = jnp.where(known, jnp.round(total * now / before).astype(jnp.uint32), x.total)
        return x._replace(total=total)

    return _map_steering(adapted, state)


def _map_steering(function: Callable[..., SteerState], state: Any, *rest: Any) -> Any:
    """Map over the states of `steer` in ``state``, and leave the others as they are."""
    return jax.tree.map(
        lambda x, *others: function(x, *others) if isinstance(x, SteerState) else x,
        state,
        *rest,
        is_leaf=lambda x: isinstance(x, SteerState),
    )


def unshrink_state(
    optimizer: optax.GradientTransformation, state: Any, shrunk: Shrunk, before: Any
) -> Any:
    r"""Take an optimizer's state back to the shapes that its network had before it was shrunk.

    Args:
      optimizer: the optimizer of the training.
      state: its state, of the smaller network.
      shrunk: what `shrink_params` returned.
      before: the state before it was shrunk, from which the removed units get their entries.

    Returns:
        The state for the network that `unshrink` gives.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> params = {"in": jnp.eye(2).at[1, 1].set(0.0), "out": jnp.ones((2, 1))}
        >>> shrunk = bregjax.shrink_params(
        ...     lambda params, x: x @ params["in"] @ params["out"], params, jnp.ones((1, 2))
        ... )
        >>> tx = optax.trace(0.9)
        >>> before = tx.init(params)
        >>> after = bregjax.unshrink_state(
        ...     tx, bregjax.shrink_state(tx, before, shrunk), shrunk, before
        ... )
        >>> print(after.trace["out"].shape)
        (2, 1)
    """
    check_transformation("optimizer", optimizer)
    params = _shrunk(shrunk).network
    check_state("state", state, optimizer, params, "optimizer.init(shrunk.network)")
    made = "optimizer.init of what was shrunk"
    check_state("before", before, optimizer, _shapes_before(params, shrunk), made)

    def larger(params: Any, state: Any, before: Any) -> Any:
        state = _map_named(
            lambda x, name, old: _scatter(x, name, shrunk, old), params, state, before
        )
        return _map_steering(lambda x, old: x._replace(total=old.total), state, before)

    return _in_one_program(larger, params, state, before)


def unshrink(params: Any, shrunk: Shrunk, before: Any = None) -> Any:
    r"""Take parameters back to the shapes that they had before `shrink` or `shrink_params`.

    .. math:: \theta[I_1 \times I_2 \times \dots] \leftarrow \theta_{\text{small}}

    Args:
      params: a tree of the smaller network's arrays, such as its parameters, its gradient or
        ``nnx.state(model, nnx.Param)``.
      shrunk: what `shrink_params` or `shrink` returned.
      before: the tree from which the removed units get their entries; zeros by default.

    Returns:
        The larger tree. With zeros, or where nothing was folded into biases, the larger network
        has the outputs of the smaller one.

    Raises:
        ValueError: if ``before`` is given and outputs of dead units were folded into biases, as
          these outputs would count twice.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> params = {"in": jnp.eye(3).at[2, 2].set(0.0), "out": jnp.ones((3, 1))}
        >>> shrunk = bregjax.shrink_params(
        ...     lambda params, x: x @ params["in"] @ params["out"], params, jnp.ones((1, 3))
        ... )
        >>> print(shrunk.network["out"].size, bregjax.unshrink(shrunk.network, shrunk)["out"].T)
        2 [[1. 1. 0.]]
    """
    check_arrays("params", params)
    shapes = _shapes_before(params, _shrunk(shrunk))
    folded = [array.name for array in shrunk.report.arrays if array.folded]
    if before is None:
        before = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    elif folded:
        raise ValueError(
            f"before must be None, as {', '.join(folded)} took in what dead units put out."
        )
    check_same_shapes("before", before, "what was shrunk", shapes)

    def larger(params: Any, before: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x, old: _scatter(x, leaf_name(path), shrunk, old), params, before
        )

    return _in_one_program(larger, params, before)


def _shrunk(shrunk: Any) -> Shrunk:
    """``shrunk``, if it is such."""
    if not isinstance(shrunk, Shrunk):
        raise TypeError(f"shrunk must be what shrink or shrink_params returned, got {shrunk=}.")
    return shrunk


def _shapes_before(params: Any, shrunk: Shrunk) -> Any:
    """The old shapes of the smaller network's arrays; raises `ValueError` for other arrays."""

    def before(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
        name = leaf_name(path)
        if name not in shrunk.kept or np.shape(x) != shrunk.report[name].after:
            raise ValueError(
                f"params must be of the network that shrunk has, got {name!r} of shape"
                f" {np.shape(x)}."
            )
        return jax.ShapeDtypeStruct(shrunk.report[name].before, jnp.result_type(x))

    return jax.tree_util.tree_map_with_path(before, params)


def _map_named(function: Callable[..., Any], params: Any, state: Any, *rest: Any) -> Any:
    """Map over the arrays in ``state`` that mirror a parameter, each with the parameter's name.

    The end of an array's path tells which parameter it mirrors. `optax.tree_map_params` does not
    serve here: it asks a partition for the labels of a tree without leaves.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def mapped(path: tuple, x: Any, *others: Any) -> Any:
        place = f"/{leaf_name(path)}"
        ends = [name for name in names if place.endswith(f"/{name}" if name else "")]
        return function(x, max(ends, key=len), *others) if ends and np.ndim(x) else x

    return jax.tree_util.tree_map_with_path(mapped, state, *rest)


def _in_one_program(function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of the trees, compiled as one program where all arrays share their devices.

    Otherwise each array's operations are compiled alone, and anew each time, as shapes are new.
    """
    places = {
        frozenset(x.devices())
        for x in jax.tree.leaves(trees)
        if isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.committed
    }
    return (jax.jit(function) if len(places) <= 1 else function)(*trees)


def _gather(x: Any, name: str, shrunk: Shrunk) -> jax.Array:
    """The entries that are left of an array shaped like a parameter, or broadcasting to it."""
    sizes = shrunk.report[name].before
    broadcasts = zip(np.shape(x), sizes, strict=False)
    if np.ndim(x) != len(sizes) or any(n not in (1, size) for n, size in broadcasts):
        raise ValueError(
            f"state has an array of shape {np.shape(x)} for {name} of shape {sizes}: it cannot be"
            " shrunk."
        )
    for axis, (kept, size) in enumerate(zip(shrunk.kept[name], sizes, strict=True)):
        if np.shape(x)[axis] == size > len(kept):
            x = jnp.take(x, kept, axis)
    return jnp.asarray(x)


def _scatter(x: Any, name: str, shrunk: Shrunk, before: Any) -> jax.Array:
    """The opposite of `_gather`."""
    places = [  # along an axis that broadcasts there is one
        kept if n == size else np.zeros(1, int)
        for kept, n, size in zip(
            shrunk.kept[name], np.shape(before), shrunk.report[name].before, strict=True
        )
    ]
    return jnp.asarray(before, jnp.result_type(x)).at[np.ix_(*places)].set(x)
