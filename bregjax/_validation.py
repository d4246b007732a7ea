"""Checks of arguments that a user passes: each error names the argument and its value."""

import contextlib
import math
import numbers
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

_LARGEST_COUNT = 2**31 - 1


def check_range(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    schedule: bool = False,
) -> None:
    """Raises `ValueError` where a number is not finite or lies outside its range.

    Traced values pass: they are not known yet. Of a schedule, where one is allowed, the value at
    step 0 is checked.
    """
    if schedule and callable(value) and not isinstance(value, type):
        check_schedule(name, value, above=above, at_least=at_least, below=below, at_most=at_most)
        return
    if isinstance(value, Tracer):
        return
    if _is_array(value) and value.size == 1 and _has_numbers(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        kinds = "a number or an array of one" + (", or a schedule" if schedule else "")
        raise ValueError(f"{name} must be {kinds}, got {name}={shown(value)}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    rules = [
        (above is not None and not number > above, f"greater than {above}"),
        (at_least is not None and not number >= at_least, f"at least {at_least}"),
        (below is not None and not number < below, f"less than {below}"),
        (at_most is not None and not number <= at_most, f"at most {at_most}"),
        (not math.isfinite(number), "finite"),
    ]
    for broken, rule in rules:
        if broken:
            raise ValueError(f"{name} must be {rule}, got {name}={shown(value)}.")


def check_schedule(
    name: str, value: Callable[[Any], Any], counts: Sequence[int] = (0,), **limits: Any
) -> None:
    """Raises `ValueError` where a schedule's value at one of the steps breaks `check_range`."""
    with jax.numpy_dtype_promotion("standard"):
        for count in counts:
            with raised_by(f"{name}={shown(value)}"):
                at_count = value(jax.numpy.int32(count))
            check_range(f"{name}({count})", at_count, **limits)


@contextlib.contextmanager
def raised_by(what: str) -> Iterator[None]:
    """Adds a note to errors from a function that was passed as an argument, which names it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was raised by the argument {what}.")
        raise


def check_function(name: str, value: object) -> None:
    """Raises `TypeError` unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {name}={shown(value)}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises `ValueError` unless ``value`` is one of some strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {name}={shown(value)}."
        )


def real(value: Any) -> Any:
    """A Python integer as a float, because JAX takes only integers that fit into an int32."""
    return float(value) if isinstance(value, int) else value


def check_numbers(name: str, values: Any) -> None:
    """Raises `TypeError` unless ``values`` is a sequence of real numbers; they may be NaN."""
    numeric = (int, float, np.integer, np.floating)
    if _is_array(values) and values.ndim == 1 and _has_numbers(values):
        values = values.tolist()
    if not isinstance(values, Sequence) or not all(isinstance(x, numeric) for x in values):
        raise TypeError(f"{name} must be a sequence of numbers, got {name}={values!r}.")


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray))


def _has_numbers(value: Any) -> bool:
    return jax.numpy.issubdtype(value.dtype, np.number)


def known_number(name: str, value: Any, **limits: Any) -> Any:
    """The number, also where it comes as an array; raises `ValueError` where it is traced.

    With limits it is checked by `check_range` too.
    """
    if isinstance(value, Tracer):
        raise ValueError(f"{name} must be known while tracing, got {name}={shown(value)}.")
    if _is_array(value):
        if value.size != 1 or not _has_numbers(value):
            raise ValueError(f"{name} must be one number, got {name}={shown(value)}.")
        value = value.item()
    if limits:
        check_range(name, value, **limits)
    return value


def check_axes(name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
    """``value`` as a tuple; raises `ValueError` unless it is made of distinct integers."""
    axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    integers = all(isinstance(a, numbers.Integral) and not isinstance(a, bool) for a in axes)
    if not integers or len(set(axes)) != len(axes):
        raise ValueError(
            f"{name} must be an integer or a tuple of distinct integers, got {name}={shown(value)}."
        )
    return tuple(map(int, axes))


def check_arrays(name: str, tree: Any) -> None:
    """Raises `TypeError` unless all leaves of a tree are numbers or arrays of them."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        check_array(f"{name}{jax.tree_util.keystr(path)}", x)


def check_array(name: str, value: Any) -> None:
    """Raises `TypeError` unless ``value`` is a number or an array of them."""
    if _is_array(value) or isinstance(value, np.generic):
        fits = _has_numbers(value) or value.dtype == bool
    else:
        small = isinstance(value, int) and abs(value) <= _LARGEST_COUNT
        # Variables of Flax NNX have this method.
        fits = small or isinstance(value, (float, complex)) or hasattr(value, "__jax_array__")
    if not fits:
        raise TypeError(f"{name} must be an array of numbers, got {name}={shown(value)}.")


def check_same_shapes(name: str, tree: Any, like: str, expected: Any) -> None:
    """Raises `ValueError` unless a tree has the structure and shapes of the one called ``like``."""
    (one, mine), (other, theirs) = map(jax.tree.flatten, (tree, expected))
    if mine != theirs or list(map(np.shape, one)) != list(map(np.shape, other)):
        raise ValueError(
            f"{name} must have the structure and the shapes of {like}:"
            f" {differences(name, tree, expected)}."
        )


_LONGEST = 200
"""characters of a value that an error message shows as it is written"""


def shown(value: Any) -> str:
    """A value for an error message: as it is written, or where that is long its kind and shapes."""
    written = repr(value)
    if len(written) <= _LONGEST and "\n" not in written:
        return written
    if _is_array(value):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    kind, leaves = type(value).__name__, jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return textwrap.shorten(written, _LONGEST, placeholder=" …")
    shapes = {str(np.shape(x)): None for x in leaves}
    several = f"{', '.join(list(shapes)[:3])}{', …' if len(shapes) > 3 else ''}"
    return f"a {kind} with {len(leaves)} leaves of shapes {several}"


def differences(name: str, tree: Any, expected: Any) -> str:
    """In words where the structure or the shapes of a tree are not those that are expected."""
    mine, theirs = (
        {jax.tree_util.keystr(path): np.shape(x) for path, x in jax.tree.leaves_with_path(one)}
        for one in (tree, expected)
    )
    shapes = [key for key in mine if key in theirs and mine[key] != theirs[key]]
    said = [
        *(f"{name}{key} has shape {mine[key]} and not {theirs[key]}" for key in shapes),
        *(f"{name}{key} is missing" for key in theirs if key not in mine),
        *(f"{name}{key} is too much" for key in mine if key not in theirs),
    ]
    if not said:
        return f"{name} is a {type(tree).__name__} of other containers"
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")


def check_state(name: str, state: Any, optimizer: Any, params: Any, made: str) -> None:
    """Raises `ValueError` unless a state could be one of ``optimizer.init(params)``."""
    check_same_shapes(name, state, made, jax.eval_shape(optimizer.init, params))


def check_floating(path: tuple, leaf: object) -> None:
    """Raises `ValueError` where a parameter is not of a real floating dtype."""
    dtype = jax.numpy.result_type(leaf)
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        raise ValueError(
            f"params{jax.tree_util.keystr(path)} has dtype {dtype}; this step needs real"
            " floating-point parameters. Leave other leaves out with mask=…."
        )


def check_whole(name: str, value: object, *, at_least: int = 0) -> None:
    """Raises `ValueError` unless ``value`` is a whole number, large enough and within int32."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(
            f"{name} must be a whole number, at least {at_least}, got {name}={shown(value)}."
        )
    if int(value) > _LARGEST_COUNT:
        raise ValueError(f"{name} must be at most {_LARGEST_COUNT}, got {name}={shown(value)}.")


def check_flag(name: str, value: object) -> None:
    """Raises `ValueError` unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {name}={shown(value)}.")


def check_share(name: str, value: Any) -> None:
    """Raises `ValueError` unless it is True, False, a number in [0, 1], or a schedule of these."""
    share: Any = value
    if callable(value) and not isinstance(value, type):
        with raised_by(f"{name}={shown(value)}"):
            share = jax.numpy.asarray(value(jax.numpy.int32(0)))
        name = f"{name}(0)"
    if isinstance(share, (bool, np.bool_)) or (_is_array(share) and share.dtype == bool):
        share = float(share) if np.size(share) == 1 else share
    check_range(name, share, at_least=0, at_most=1)


def check_transformation(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """``value`` as a transformation that takes extra arguments; raises `TypeError` for others."""
    if not isinstance(value, optax.GradientTransformation):
        several = isinstance(value, optax.MultiSteps)
        advice = " Call its method gradient_transformation()." if several else ""
        raise TypeError(
            f"{name} must be an optax.GradientTransformation such as optax.adam(1e-3), got"
            f" {name}={shown(value)}.{advice}"
        )
    return optax.with_extra_args_support(value)


def check_key(name: str, value: Any, *, seed: bool = False) -> None:
    """Raises `ValueError` unless ``value`` is a PRNG key, or a seed where that is allowed."""
    if _is_array(value):
        new = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.ndim == 0 if new else (value.ndim == 1 and value.dtype == np.uint32):
            return
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if seed and whole and abs(int(value)) < 2**63:
        return
    kinds = "one PRNG key or an integer seed" if seed else "one PRNG key, such as jax.random.key(0)"
    hint = " Call the stream of random numbers for its next key." if callable(value) else ""
    raise ValueError(f"{name} must be {kinds}, got {name}={shown(value)}.{hint}")


def require_params(params: object) -> None:
    """Raises `ValueError` where `update` was called without the parameters."""
    if params is None:
        raise ValueError(
            "this transformation needs the parameters: call tx.update(updates, state, params);"
            " got params=None."
        )


def check_some(name: str, tree: Any) -> None:
    """Raises `ValueError` where a tree has no leaf, not even one that `optax.masked` left out."""
    if not jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)):
        raise ValueError(
            f"{name} must have at least one array, got {name}={shown(tree)}. With"
            " flax.nnx.Optimizer check that the model has variables of the type wrt."
        )


def check_updates(updates: Any, params: Any) -> None:
    """Raises `ValueError` unless there are parameters, and the updates are shaped like them."""
    require_params(params)
    check_some("params", params)
    if jax.tree.structure(params) != jax.tree.structure(updates):
        raise ValueError(
            "updates and params must have the same structure:"
            f" {differences('updates', updates, params)}."
        )

    def check_shapes(path: tuple, x: Any, update: Any) -> None:
        if np.shape(x) != np.shape(update):
            raise ValueError(
                "updates and params must have the same shapes:"
                f" params{jax.tree_util.keystr(path)} has {np.shape(x)}, its update"
                f" {np.shape(update)}."
            )

    jax.tree_util.tree_map_with_path(check_shapes, params, updates)


def check_update(updates: Any, state: Any, params: Any, kind: type) -> None:
    """`check_updates`; raises `TypeError` where ``state`` is not of this kind."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be a {kind.__name__}, as init returns it: call tx.update(updates, state,"
            f" params); got a {type(state).__name__}."
        )
    check_updates(updates, params)
