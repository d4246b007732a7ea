"""The network without its dead units, for plain functions of parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from bregjax._shrinking._dataflow import Dataflow
from bregjax._shrinking._plan import cut
from bregjax._shrinking._report import ShrinkReport, ShrunkArray
from bregjax._shrinking._traced import trace
from bregjax._validation import check_flag, check_whole


class Shrunk(NamedTuple):
    """What `shrink` and `shrink_params` return."""

    network: Any
    """the smaller model, or the smaller parameters"""
    report: ShrinkReport
    kept: dict[str, tuple[np.ndarray, ...]]
    """by the name of each array and axis the indices that are left: ``x[numpy.ix_(*kept[name])]``
    is what became of an array ``x``, up to what was folded into biases"""


def shrink_params(
    apply: Callable[..., Any],
    params: Any,
    *example: Any,
    round_to: int = 1,
    fold: bool = True,
) -> Shrunk:
    r"""Remove the dead units of a network that is a plain function of its parameters.

    A unit (neuron, filter, channel, head) goes where nothing depends on it: all weights that lead
    on from it are zero, or lead to units of which that is true; or all that lead to it are zero, so
    that it puts out the same for every input. What it puts out is folded into the bias of the layer
    behind it. The outputs stay what they were, up
    to rounding. It follows the program of ``apply`` as JAX traces it: through products,
    convolutions, pooling, norms that do not go over units, sums, concatenations, reshapes. Then it
    runs ``apply`` on the smaller parameters and compares; what comes out otherwise is left alone.

    Args:
      apply: from the parameters and the inputs to the outputs, in evaluation mode. It takes its
        sizes from the parameters' shapes, not from constants.
      params: a tree of arrays.
      *example: inputs, a few different examples. Where a network sums over places, such as tokens,
        there are as many as it will have later: so often counts what dead units put out.
      round_to: sizes that shrink are rounded up to multiples of this, such as 8.
      fold: whether units go that put out the same for every input, but not zero. Without it what
        goes has no part in the training either, see `shrink_state`.

    Returns:
        A `Shrunk`: ``network`` is the smaller parameters, for the same ``apply``; ``report`` prints
        as a table that also says which dead units stay, and why.

    Raises:
        ValueError: if ``round_to`` is not a whole number of at least 1, or ``example`` is empty.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> def apply(params, x):
        ...     hidden = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
        ...     return hidden @ params["out"]["kernel"] + params["out"]["bias"]
        >>> dense = lambda n, m: {"kernel": jnp.ones((n, m)), "bias": jnp.ones(m)}
        >>> params = {"in": dense(4, 10), "out": dense(10, 2)}
        >>> params["in"]["kernel"] = params["in"]["kernel"].at[:, 3:].set(0.0)
        >>> x = jax.random.normal(jax.random.key(0), (5, 4))
        >>> smaller = bregjax.shrink_params(apply, params, x)
        >>> print(smaller.report)
        array          before  after  dead units that stay
        ──────────────────────────────────────────────────
        in/bias            10      3
        in/kernel        4×10    4×3
        out/bias            2      2
        out/kernel       10×2    3×2
        ──────────────────────────────────────────────────
        parameters         72     23  31.9%
        multiply-adds     300     90  30.0%
        bytes             288     92  31.9%
        >>> print(jnp.allclose(apply(smaller.network, x), apply(params, x)))
        True

    See Also:
        `shrink`, for Flax NNX modules.
    """
    return shrink_tree(lambda tree: apply(tree, *example), apply, params, example, round_to, fold)


def shrink_tree(
    run: Callable[[Any], Any],
    apply: Callable[..., Any],
    params: Any,
    example: tuple,
    round_to: int,
    fold: bool,
) -> Shrunk:
    """`shrink_params` where a network of other sizes is run otherwise than ``apply`` does it."""
    check_whole("round_to", round_to, at_least=1)
    check_flag("fold", fold)
    program, names, leaves, treedef, inputs = trace(apply, params, example)
    if empty := [np.shape(x) for x in inputs if np.size(x) == 0]:
        raise ValueError(f"example must have entries, got an array of shape {empty[0]}.")

    def run_flat(smaller: list[Any]) -> Any:
        return run(treedef.unflatten(smaller))

    flows = [Dataflow(program, leaves, inputs)]
    for choice in range(1, flows[0].choices):
        flows.append(Dataflow(program, leaves, inputs, choice=choice))
    found = cut(flows, run_flat, round_to, fold)
    rows = []
    for index, (name, before, after) in enumerate(zip(names, leaves, found.leaves, strict=True)):
        notes = [
            f"{count} along axis {axis}: {why}"
            for (leaf, axis), reasons in found.reasons.items()
            for why, count in reasons.items()
            if leaf == index
        ]
        folded = index in found.folded
        rows.append(ShrunkArray(name, before.shape, after.shape, "; ".join(notes), folded))
    report = ShrinkReport(
        tuple(rows),
        (sum(x.size for x in leaves), sum(x.size for x in found.leaves)),
        (
            _multiply_adds(run, treedef.unflatten(leaves)),
            _multiply_adds(run, treedef.unflatten(found.leaves)),
        ),
        (sum(x.nbytes for x in leaves), sum(x.nbytes for x in found.leaves)),
    )
    return Shrunk(
        treedef.unflatten(found.leaves), report, dict(zip(names, found.kept, strict=True))
    )


def _multiply_adds(run: Callable[[Any], Any], params: Any) -> int:
    return _count(jax.make_jaxpr(run)(params).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        shapes = [var.aval.shape for var in eqn.invars if hasattr(var.aval, "shape")]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            length = math.prod(shapes[0][int(axis)] for axis in contracted)
            total += math.prod(eqn.outvars[0].aval.shape) * length
        elif eqn.primitive.name == "conv_general_dilated":
            filters = eqn.params["dimension_numbers"].rhs_spec[0]
            length = math.prod(size for axis, size in enumerate(shapes[1]) if axis != filters)
            zeros = math.prod(eqn.params["lhs_dilation"])  # that a transposed convolution puts in
            total += math.prod(eqn.outvars[0].aval.shape) * length // zeros
        parts = [_count(part) for part in core.jaxprs_in_params(eqn.params)]
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += max(parts) if eqn.primitive.name == "cond" else turns * sum(parts)
    return total
