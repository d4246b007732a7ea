"""A network that is a plain function of its parameters, as a program on an example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from bregjax._leaves import leaf_name
from bregjax._validation import check_arrays, check_function, raised_by


class Traced(NamedTuple):
    """What `trace` found."""

    program: core.ClosedJaxpr
    """from the parameters, leaf by leaf, and the inputs"""
    names: list[str]
    leaves: list[jax.Array]
    treedef: Any
    """of the parameters"""
    inputs: list[Any]


def trace(apply: Callable[..., Any], params: Any, example: tuple) -> Traced:
    """The program of ``apply(params, *example)``; raises what names the wrong argument."""
    check_function("apply", apply)
    check_arrays("params", params)
    paths, treedef = jax.tree.flatten_with_path(params)
    leaves = [jnp.asarray(x) for _, x in paths]
    inputs, inputs_treedef = jax.tree.flatten(example)

    def flat(leaves: list[Any], *inputs: Any) -> Any:
        return apply(treedef.unflatten(leaves), *inputs_treedef.unflatten(inputs))

    with raised_by("apply or model, called with params and example"):
        program = jax.make_jaxpr(flat)(leaves, *inputs)
    return Traced(program, [leaf_name(path) for path, _ in paths], leaves, treedef, inputs)
