"""How large a network would be without its dead units, told from its parameters alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bregjax._leaves import leaf_name
from bregjax._shrinking._dataflow import Dataflow
from bregjax._shrinking._traced import trace
from bregjax._shrinking._units import ANY
from bregjax._shrinking._values import Product
from bregjax._validation import check_choice

Currency = Literal["parameters", "multiply_adds", "bytes"]


def shrunk_share_params(
    apply: Callable[..., Any], params: Any, *example: Any, of: Currency = "parameters"
) -> Callable[[Any], jax.Array]:
    r"""Make the measure of how large a network would be after `shrink_params`, of what it was.

    .. math:: \frac{\sum_A \prod_{a \in A} \#\{\text{live units along } a\}}
        {\sum_A \prod_{a \in A} \#\{\text{units along } a\}}

    A runs over the arrays (``"parameters"``, and ``"bytes"``, where each has its item size), or
    over the products and convolutions of the program (``"multiply_adds"``), a over their axes. A
    unit lives if some weight that leads to it and some weight that leads on from it are not zero.

    It is a target in another currency than entries: ``steer(…, measure=…)`` follows it, and
    ``land(…, measure=…)`` ends below it.

    Args:
      apply: from the parameters and the inputs to the outputs, as in `shrink_params`.
      params: a tree of arrays; of them the shapes count here.
      *example: inputs.
      of: what is counted.

    Returns:
        A function from parameters to a share in (0, 1], float32, shape (). Jittable. It takes
        trees that have some of the arrays of ``params``, under the same names; the others count as
        alive.

    Raises:
        ValueError: if ``of`` is none of the three; by the function, if no array has such a name.

    Example:
        >>> import jax, jax.numpy as jnp, bregjax
        >>> apply = lambda params, x: jax.nn.relu(x @ params["in"]) @ params["out"]
        >>> params = {"in": jnp.ones((4, 10)), "out": jnp.ones((10, 2))}
        >>> share = bregjax.shrunk_share_params(apply, params, jnp.ones((1, 4)))
        >>> print(share({"in": params["in"].at[:, 5:].set(0.0), "out": params["out"]}))
        0.5

    Notes:
        It takes for granted that what dead units put out can be folded into biases. A unit that is
        the product of several layers (a gate, an attention head) counts as alive until all of them
        are zero there, or what leads on from it is; so do units that only dead units listen to, and
        what a loop runs over. Biases of stacked layers count as weights. At least one unit stays
        along each axis.

    See Also:
        `shrunk_share`, for Flax NNX; `live_groups`, to count groups.
    """
    check_choice("of", of, get_args(Currency))
    program, names, leaves, _, inputs = trace(apply, params, example)
    # Ones, so that nothing is dead: what is one unit does not depend on the numbers.
    flow = Dataflow(program, [jnp.ones_like(x) for x in leaves], inputs)
    if of == "multiply_adds":
        products = flow.products
    else:
        products = [
            Product(leaf.units, x.dtype.itemsize if of == "bytes" else 1)
            for leaf, x in zip(flow.leaves, leaves, strict=True)
        ]
    return _Share(flow, names, products)


class _Share:
    """The share of the products' turns that is left, from parameters by their names."""

    def __init__(self, flow: Dataflow, names: Sequence[str], products: Sequence[Product]):
        self._products = [
            ([flow.units.roots(units) for units in product.units], product.places)
            for product in products
        ]
        self._whole = sum(math.prod(map(len, axes)) * places for axes, places in self._products)
        listening = [(part.weights, flow.units.roots(part.units)) for part in flow.sums]
        self._ends: dict[str, list[tuple[int, np.ndarray, np.ndarray, bool]]] = {}
        """by name, for each axis: which, where units may go, these, and whether weights lead on"""
        for index, (name, leaf) in enumerate(zip(names, flow.leaves, strict=True)):
            heard = [roots for weights, roots in listening if weights == index]
            for axis, units in enumerate(leaf.units if len(leaf.units) > 1 else ()):
                roots = flow.units.roots(units)
                free = np.flatnonzero([flow.units.reason(root) is None for root in roots.tolist()])
                leads_on = any(np.array_equal(roots, other) for other in heard)
                self._ends.setdefault(name, []).append((axis, free, roots[free], leads_on))
        self._count = flow.units.count

    def __call__(self, params: Any) -> jax.Array:
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = [leaf_name(path) for path, _ in paths]
        if self._ends and not any(name in self._ends for name in names):
            raise ValueError(f"params has {names[:3]}, but the network {list(self._ends)[:3]}.")
        reached: list[jax.Array] = [jnp.zeros(self._count, bool) for _ in range(2)]
        named: list[jax.Array] = [jnp.zeros(self._count, bool) for _ in range(2)]
        for name, (_, x) in zip(names, paths, strict=True):
            for axis, free, roots, leads_on in self._ends.get(name, ()):
                others = tuple(a for a in range(jnp.ndim(x)) if a != axis)
                alive = jnp.any(x != 0, axis=others)[free]
                reached[leads_on] = reached[leads_on].at[roots].max(alive)
                named[leads_on] = named[leads_on].at[roots].set(True)
        live = (reached[0] | ~named[0]) & (reached[1] | ~named[1])

        def count(roots: np.ndarray) -> jax.Array:
            known = roots[roots != ANY]
            left = jnp.sum(live[known], dtype=jnp.float32) + float(len(roots) - len(known))
            return jnp.maximum(left, 1.0)

        left = jnp.float32(0)
        for axes, places in self._products:
            turns = jnp.float32(places / self._whole)
            for roots in axes:
                turns = turns * count(roots)
            left = left + turns
        return left
