"""How many multiply-adds a training takes if it leaves out zeros."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from benchmarks.data import Dataset
from bregjax._leaves import leaf_name


class LayerCost(NamedTuple):
    """What one kernel costs in a dense forward pass."""

    multiply_adds: int
    """for one example"""
    first: bool
    """whether no parameter comes before it, so that the gradient of its input is not needed"""


def layer_costs(apply: Callable[[Any, Any], Any], params: Any, inputs: Any) -> dict[str, LayerCost]:
    """The cost of each kernel of a network, by the name of its leaf.

    It counts the matrix products and convolutions of a kernel with an activation, as they are
    written in the network's program; zeros that pad an image count as pixels. It does not count
    products of two activations, sums and pointwise operations.

    Args:
      apply: from the parameters and a batch of one example to the outputs.
      params: a tree of arrays or of their shapes.
      inputs: one example, or its shape, with a batch axis.

    Raises:
        ValueError: if a product mixes the kernels of several leaves.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    program = jax.make_jaxpr(apply)(params, inputs)
    sources = [_Source(frozenset([name]), False) for name in names]
    sources += [_Source(frozenset(), True) for _ in jax.tree.leaves(inputs)]
    found: list[tuple[str, LayerCost]] = []
    _follow(program.jaxpr, sources, 1, found)
    costs: dict[str, LayerCost] = {}
    for name, cost in found:
        before = costs.get(name, LayerCost(0, True))
        costs[name] = LayerCost(
            before.multiply_adds + cost.multiply_adds, before.first and cost.first
        )
    return costs


def network_costs(network: nnx.Module, dataset: Dataset) -> dict[str, LayerCost]:
    """`layer_costs` of a network, or of its shapes, for an image of the dataset."""
    graphdef, params, other = nnx.split(network, nnx.Param, ...)
    image = dataset.test.inputs[:1]

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), other)
        return nnx.merge(graphdef, params, zeros)(dataset.normalize(inputs))

    return layer_costs(apply, params, jax.ShapeDtypeStruct(image.shape, image.dtype))


def training_share(
    costs: Mapping[str, LayerCost], densities: Mapping[str, Sequence[float]], full_gradients: float
) -> float:
    r"""The multiply-adds of a sparse training as a share of those of a dense one.

    Let a layer have M multiply-adds and, at the time, density d, and let a share f of the steps
    need the gradient of sleeping weights too. Then on average a step takes

    .. math:: \underbrace{dM}_{\text{forward}} + \underbrace{dM}_{\text{input's gradient}}
        + \underbrace{(f + (1 - f) d) M}_{\text{weights' gradient}}

    for each example. A layer that reads the raw input has no second term. Dense training has d = 1.
    The density is interpolated linearly between the given values, so a sudden fall, as in pruning,
    is counted up to half an interval too late.

    Args:
      costs: the result of `layer_costs`.
      densities: for each kernel its densities during the training, at equal intervals.
      full_gradients: f.
    """
    spent = dense = 0.0
    for name, (multiply_adds, first) in costs.items():
        values = np.asarray(densities[name], float)
        density = float(np.mean((values[1:] + values[:-1]) / 2))
        passes = 1 if first else 2
        weights = full_gradients + (1 - full_gradients) * density
        spent += multiply_adds * (passes * density + weights)
        dense += multiply_adds * (passes + 1)
    return spent / dense


class _Source(NamedTuple):
    """What an array of the program was computed from."""

    params: frozenset[str]
    data: bool


def _union(sources: Iterable[_Source]) -> _Source:
    sources = list(sources)
    names = frozenset().union(*(source.params for source in sources))
    return _Source(names, any(source.data for source in sources))


def _follow(
    program: core.Jaxpr, inputs: Sequence[_Source], times: int, found: list[tuple[str, LayerCost]]
) -> list[_Source]:
    """Adds the costs in ``program`` to ``found``; returns the sources of its outputs."""
    nothing = _Source(frozenset(), False)
    known: dict[Any, _Source] = dict(zip(program.invars, inputs, strict=True))

    def source(x: Any) -> _Source:
        return nothing if isinstance(x, core.Literal) else known.get(x, nothing)

    for equation in program.eqns:
        mine = [source(x) for x in equation.invars]
        name = equation.primitive.name
        inner = _inner_programs(equation.params)
        if name in ("dot_general", "conv_general_dilated"):
            _record(equation, mine, times, found)
            outputs = [_union(mine)] * len(equation.outvars)
        elif name == "scan":
            outputs = _follow_scan(equation, mine, times, found)
        elif inner and all(len(p.invars) == len(mine) for p in inner) and name != "while":
            outputs = _follow(inner[0], mine, times, found)
        elif inner:
            raise ValueError(f"cannot count the multiply-adds inside {name!r}.")
        else:
            outputs = [_union(mine)] * len(equation.outvars)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [source(x) for x in program.outvars]


def _inner_programs(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    values = [params[key] for key in ("jaxpr", "call_jaxpr", "body_jaxpr") if key in params]
    values += params.get("branches", ())
    return [x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in values]


def _follow_scan(
    equation: Any, mine: list[_Source], times: int, found: list[tuple[str, LayerCost]]
) -> list[_Source]:
    # Releases of JAX differ in how they mark the inputs. An array that is scanned over has one axis
    # fewer inside the scan; the other inputs are constants, then the carry.
    body: Any = _inner_programs(equation.params)[0]
    whole = sum(
        i.aval.ndim == o.aval.ndim for i, o in zip(body.invars, equation.invars, strict=True)
    )
    carries = sum(
        i.aval.ndim == o.aval.ndim for i, o in zip(body.outvars, equation.outvars, strict=True)
    )
    constants = whole - carries
    outputs = _follow(body, mine, 0, [])
    # The carry of one round goes into the next one.
    for i in range(carries):
        mine[constants + i] = _union([mine[constants + i], outputs[i]])
    return _follow(body, mine, times * equation.params["length"], found)


def _record(
    equation: Any, mine: list[_Source], times: int, found: list[tuple[str, LayerCost]]
) -> None:
    left, right = equation.invars[:2]
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        size *= math.prod(left.aval.shape[axis] for axis in contracted)
    else:
        output_axis = equation.params["dimension_numbers"].rhs_spec[0]
        size *= math.prod(right.aval.shape) // right.aval.shape[output_axis]
    for kernel, other in (mine[:2], mine[1::-1]):
        if kernel.params and not kernel.data and other.data:
            if len(kernel.params) > 1:
                raise ValueError(f"a product mixes the parameters {sorted(kernel.params)}.")
            (name,) = kernel.params
            found.append((name, LayerCost(times * size, not other.params)))
