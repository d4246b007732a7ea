"""What each operation does to what is known, and to the units of its operands."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bregjax._shrinking._units import ANY, Units
from bregjax._shrinking._values import Bias, Factor, Product, Sum, Value

_SAME_SHAPE = {"convert_element_type", "copy", "stop_gradient", "reduce_precision"}
_ONE_BY_ONE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
clz complex conj cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt
igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt
lt_to max min mul mulhi name ne neg nextafter not or polygamma population_count pow real
regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
"""
_ELEMENTWISE = frozenset(_ONE_BY_ONE.split())
"""one by one, as an operation that keeps the shape may still let indices see each other: a loop"""
_CUMULATIONS = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
_POOLS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"}


class Rules:
    """A rule for each operation: from the equation, its operands and its result to the value.

    Where a reshape flattens several axes of which units could go, only one can keep its units; and
    where it splits an axis in several, the slices along only one of these can become units.
    ``choice`` says which: the first is 0.
    """

    def __init__(self, choice: int):
        self._choice = choice
        self.choices = 1
        """how many axes a reshape had to choose from"""
        self.units = Units()
        self.sums: list[Sum] = []
        self.biases: list[Bias] = []
        self.products: list[Product] = []

    def apply(self, eqn: Any, operands: list[Value], results: list[Any]) -> list[Value]:
        """The values of an operation's results."""
        name = eqn.primitive.name
        rule: Callable[..., Any] | None = getattr(self, f"rule_{name}", None)
        if name in _REDUCTIONS or name in ("argmax", "argmin"):
            rule = self.rule_reduction
        elif name in _CUMULATIONS:
            rule = self.rule_cumulation
        elif name in _POOLS:
            rule = self.rule_pool
        elif name in _SAME_SHAPE:
            rule = self.rule_same_shape
        elif name in _ELEMENTWISE and self._is_elementwise(operands, results):
            rule = self._elementwise
        if rule is None:
            return [self._opaque(name, operands, result) for result in results]
        if name in ("split", "unstack"):
            return rule(eqn, operands, results)
        return [rule(eqn, operands, results[0])]

    def _pin(self, value: Value, why: str, axes: Sequence[int] | None = None) -> None:
        for axis in range(len(value.units)) if axes is None else axes:
            self.units.pin(value.units[axis], why)

    @staticmethod
    def _is_elementwise(operands: list[Value], results: list[Any]) -> bool:
        if len(results) != 1 or not operands:
            return False
        shape = np.shape(results[0])
        shapes = [np.shape(value.array) for value in operands]
        fits = (
            not mine
            or (
                len(mine) == len(shape)
                and all(a in (1, b) for a, b in zip(mine, shape, strict=True))
            )
            for mine in shapes
        )
        return all(fits) and np.broadcast_shapes(*shapes) == shape

    def _opaque(self, name: str, operands: list[Value], result: Any) -> Value:
        for value in operands:
            self._pin(value, f"they go through {name}")
        known = all(bool(value.known.all()) for value in operands)
        value = Value(
            result,
            np.full(np.shape(result), known),
            [self.units.new(size) for size in np.shape(result)],
        )
        self._pin(value, f"they come from {name}")
        return value

    def _elementwise(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        name, shape = eqn.primitive.name, np.shape(result)
        known = np.ones(shape, bool)
        units = [np.full(size, ANY) for size in shape]
        for value in operands:
            known = known & value.known
            for axis, mine in enumerate(value.units):
                if len(mine) == shape[axis]:
                    units[axis] = self.units.unite(units[axis], mine)
        if name == "mul" or (name == "div" and len(operands) == 2):
            factors = operands if name == "mul" else operands[:1]
            for value in factors:
                known = known | (value.known & (np.asarray(value.array) == 0))
        sums = ()
        if name in ("add", "sub", "add_any"):
            sums = self._added_up(-1.0 if name == "sub" else 1.0, *operands)
        return Value(result, known, units, sums=sums)

    def _added_up(self, sign: float, left: Value, right: Value) -> tuple[tuple[float, Sum], ...]:
        """The sums in left ± right; none behind a bias, which is noted."""
        for bias, other in ((right, left), (left, right)):
            if bias.leaf is not None and other.sums:
                signed = tuple((sign * mine, part) for mine, part in other.sums)
                self.biases.append(Bias(bias.leaf, signed))
                return ()
        return left.sums + tuple((sign * mine, part) for mine, part in right.sums)

    def rule_same_shape(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        del eqn
        (value,) = operands
        return dataclasses.replace(value, array=result)

    def rule_reduction(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        (value,) = operands
        axes = tuple(int(a) for a in eqn.params["axes"])
        self._pin(value, f"{eqn.primitive.name} goes over them", axes)
        units = [u for axis, u in enumerate(value.units) if axis not in axes]
        return Value(result, value.known.all(axis=axes), units)

    def rule_cumulation(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        (value,) = operands
        axis = eqn.params["axis"]
        self._pin(value, f"they go through {eqn.primitive.name}", [axis])
        known = value.known.all(axis=axis, keepdims=True)
        return Value(result, np.broadcast_to(known, np.shape(result)), value.units)

    def rule_pool(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        if len(operands) > 2:
            return self._opaque(eqn.primitive.name, operands, result)
        value, params = operands[0], eqn.params
        window = params["window_dimensions"]
        known = lax.reduce_window(
            value.known.astype(np.int32),
            np.int32(1),
            lax.min,
            window,
            params["window_strides"],
            params["padding"],
            params.get("base_dilation"),
            params.get("window_dilation"),
        )
        shape, units = np.shape(result), []
        for axis, of_axis in enumerate(value.units):
            if window[axis] == 1 and len(of_axis) == shape[axis]:
                units.append(of_axis)
            else:
                self.units.pin(of_axis, "a window goes over them")
                units.append(np.full(shape[axis], ANY))
        return Value(result, np.asarray(known, bool), units)

    def rule_broadcast_in_dim(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        value, shape = operands[0], np.shape(result)
        places = [int(d) for d in eqn.params["broadcast_dimensions"]]
        units = [np.full(size, ANY) for size in shape]
        for axis, place in enumerate(places):
            if value.known.shape[axis] == shape[place]:
                units[place] = value.units[axis]
        known = lax.broadcast_in_dim(jnp.asarray(value.known), shape, places)
        return Value(result, np.asarray(known), units, leaf=value.leaf)

    def rule_transpose(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        order = eqn.params["permutation"]
        (value,) = operands
        known, units = value.known.transpose(order), [value.units[a] for a in order]
        return Value(result, known, units, value.leaf, value.sums)

    def rule_squeeze(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        return self.rule_reshape(eqn, operands, result)

    def rule_reshape(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
            return self._opaque("reshape", operands, result)
        value, shape = operands[0], np.shape(result)
        units: list[np.ndarray | None] = [None] * len(shape)
        for before, after in _matching_axes(value.known.shape, shape):
            flat = self._merged([value.units[axis] for axis in before])
            for axis, found in zip(
                after, self._split(flat, [shape[a] for a in after]), strict=True
            ):
                units[axis] = found
        done = [np.full(shape[a], ANY) if u is None else u for a, u in enumerate(units)]
        known = value.known.reshape(shape)
        if _without_ones(value.known.shape) == _without_ones(shape):
            return Value(result, known, done, value.leaf, value.sums)
        return Value(result, known, done)

    def _merged(self, axes: list[np.ndarray]) -> np.ndarray:
        """The units of a flattened axis: those of an axis that may lose some."""
        if len(axes) == 1:
            return axes[0]
        sizes = [len(units) for units in axes]
        free = [place for place, units in enumerate(axes) if self._may_shrink(units)]
        if not free:
            if all((units == ANY).all() for units in axes if len(units) > 1):
                return np.full(math.prod(sizes), ANY)
            merged = self.units.new(math.prod(sizes))  # all of it is pinned: it stays whole
            self.units.pin(merged, "they are flattened with others that stay")
            return merged
        chosen = self._chosen(free)
        for place in free:
            if place != chosen:
                self.units.pin(axes[place], "they are flattened with others")
        shaped = axes[chosen].reshape([-1 if axis == chosen else 1 for axis in range(len(axes))])
        return np.broadcast_to(shaped, sizes).reshape(-1)

    def _chosen(self, axes: list[int]) -> int:
        self.choices = max(self.choices, len(axes))
        return axes[min(self._choice, len(axes) - 1)]

    def _may_shrink(self, units: np.ndarray) -> bool:
        roots = self.units.roots(units)
        return any(r != ANY and self.units.reason(r) is None for r in np.unique(roots).tolist())

    def _split(self, flat: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
        """The units of the axes that a flat one is split into."""
        if [size for size in sizes if size != 1] == [len(flat)] or len(flat) == 1:
            return [flat if size == len(flat) else np.full(size, ANY) for size in sizes]
        table = self.units.roots(flat).reshape(sizes)
        found = []
        for axis, size in enumerate(sizes):
            rows = np.moveaxis(table, axis, 0).reshape(size, -1)
            same = (rows == rows[:, :1]).all()
            found.append(rows[:, 0] if same else np.full(size, ANY))
        if all((units == ANY).all() for units in found):
            # All in one slice of an axis, such as a head, become one unit.
            axis = self._chosen([axis for axis, size in enumerate(sizes) if size > 1])
            rows = np.moveaxis(table, axis, 0).reshape(sizes[axis], -1)
            for row in rows:
                self.units.unite(row, np.full(len(row), row[0]))
            found[axis] = self.units.roots(rows[:, 0])
        return found

    def rule_concatenate(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        axis = eqn.params["dimension"]
        known = np.concatenate([value.known for value in operands], axis=axis)
        units = []
        for place in range(known.ndim):
            parts = [value.units[place] for value in operands]
            if place == axis:
                units.append(np.concatenate(parts))
            else:
                for part in parts[1:]:
                    parts[0] = self.units.unite(parts[0], part)
                units.append(parts[0])
        return Value(result, known, units)

    def rule_slice(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        (value,) = operands
        params = eqn.params
        strides = params["strides"] or [1] * value.known.ndim
        cuts = tuple(
            slice(int(a), int(b), int(s))
            for a, b, s in zip(
                params["start_indices"], params["limit_indices"], strides, strict=True
            )
        )
        units = [u[cut] for u, cut in zip(value.units, cuts, strict=True)]
        return Value(result, value.known[cuts], units)

    def rule_split(self, eqn: Any, operands: list[Value], results: list[Any]) -> list[Value]:
        (value,) = operands
        axis, sizes = eqn.params["axis"], eqn.params["sizes"]
        ends = np.cumsum(sizes)[:-1]
        knowns = np.split(value.known, ends, axis)
        parts = np.split(value.units[axis], ends)
        return [
            Value(result, known, [*value.units[:axis], part, *value.units[axis + 1 :]])
            for result, known, part in zip(results, knowns, parts, strict=True)
        ]

    def rule_unstack(self, eqn: Any, operands: list[Value], results: list[Any]) -> list[Value]:
        (value,) = operands
        axis = eqn.params["axis"] % value.known.ndim
        self._pin(value, "they are taken apart", [axis])
        units = [u for place, u in enumerate(value.units) if place != axis]
        return [
            Value(result, np.take(value.known, index, axis), list(units))
            for index, result in enumerate(results)
        ]

    def rule_rev(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        (value,) = operands
        axes = tuple(eqn.params["dimensions"])
        units = [u[::-1] if axis in axes else u for axis, u in enumerate(value.units)]
        return Value(result, np.flip(value.known, axes), units)

    def rule_pad(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        value, filler = operands
        config = eqn.params["padding_config"]
        known = lax.pad(jnp.asarray(value.known), jnp.asarray(filler.known.all()), config)
        units = []
        for axis, of_axis in enumerate(value.units):
            padded = any(config[axis])
            if padded:
                self.units.pin(of_axis, "they are padded")
            units.append(np.full(np.shape(result)[axis], ANY) if padded else of_axis)
        return Value(result, np.asarray(known), units)

    def rule_gather(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        table, indices = operands
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        shape = table.known.shape
        collapsed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        self._pin(table, "they are looked up", collapsed)
        self._pin(indices, "they are indices")
        units = [np.full(size, ANY) for size in np.shape(result)]
        kept = [axis for axis in range(len(shape)) if axis not in collapsed]
        for place, axis in zip(numbers.offset_dims, kept, strict=True):
            if sizes[axis] == shape[axis]:
                units[place] = table.units[axis]
            else:
                self.units.pin(table.units[axis], "they are looked up")
        constant = _constant_along(table, collapsed)
        if not all(sizes[axis] == shape[axis] for axis in kept):
            constant = np.zeros_like(constant)
        places = list(numbers.offset_dims)
        known = np.broadcast_to(
            np.expand_dims(constant, [a for a in range(len(np.shape(result))) if a not in places]),
            np.shape(result),
        )
        everything = bool(table.known.all() and indices.known.all())
        return Value(result, known | everything, units)

    def rule_dynamic_slice(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        value = operands[0]
        cut = [a for a, n in enumerate(eqn.params["slice_sizes"]) if n < value.known.shape[a]]
        self._pin(value, "they are looked up", cut)
        units = [
            np.full(n, ANY) if axis in cut else value.units[axis]
            for axis, n in enumerate(np.shape(result))
        ]
        known = np.expand_dims(_constant_along(value, tuple(cut)), cut)
        everything = all(bool(operand.known.all()) for operand in operands)
        return Value(result, np.broadcast_to(known | everything, np.shape(result)), units)

    def rule_dot_general(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        left, right = operands
        contracted, batched = eqn.params["dimension_numbers"]
        contracted = tuple(tuple(map(int, axes)) for axes in contracted)
        batched = tuple(tuple(map(int, axes)) for axes in batched)
        numbers: Any = (contracted, batched)
        units = [
            self.units.unite(left.units[a], right.units[b]) for a, b in zip(*batched, strict=True)
        ]
        free: list[list[int]] = []
        for side, value in enumerate(operands):
            taken = (*contracted[side], *batched[side])
            free.append([a for a in range(value.known.ndim) if a not in taken])
            units += [value.units[a] for a in free[side]]

        def product(a: Any, b: Any) -> jax.Array:
            return lax.dot_general(a, b, numbers, precision=lax.Precision.HIGHEST)

        known = _known_of_product(product, left, right)
        outputs = [[*batched[side], *free[side]] for side in range(2)]
        found = []
        for a, b in zip(*contracted, strict=True):
            self.units.unite(left.units[a], right.units[b])
            found.append(self._sum(product, operands, (a, b), outputs, units))
        if len(found) > 1:  # what two axes share would be counted twice
            for part in found:
                part.known[:] = False
        self.sums += found
        self.products.append(Product([*units, *(part.units for part in found)]))
        return Value(result, known, units, sums=tuple((1.0, part) for part in found))

    def rule_conv_general_dilated(self, eqn: Any, operands: list[Value], result: Any) -> Value:
        image, kernel = operands
        params = eqn.params
        numbers = params["dimension_numbers"]
        groups = params["feature_group_count"]
        channels, filters, inputs = numbers.lhs_spec[1], numbers.rhs_spec[0], numbers.rhs_spec[1]
        units = [np.full(size, ANY) for size in np.shape(result)]
        units[numbers.out_spec[0]] = image.units[numbers.lhs_spec[0]]
        units[numbers.out_spec[1]] = kernel.units[filters]
        self._pin(image, "a convolution slides over them", numbers.lhs_spec[2:])
        self._pin(kernel, "they are places in a convolution kernel", numbers.rhs_spec[2:])

        def product(a: Any, b: Any) -> jax.Array:
            return lax.conv_general_dilated(
                a,
                b,
                params["window_strides"],
                params["padding"],
                params["lhs_dilation"],
                params["rhs_dilation"],
                numbers,
                groups,
                params["batch_group_count"],
                lax.Precision.HIGHEST,
            )

        known = _known_of_product(product, image, kernel)
        places = math.prod(kernel.known.shape[a] for a in numbers.rhs_spec[2:])
        places /= math.prod(params["lhs_dilation"])  # the others meet zeros between the entries
        self.products.append(Product([*units, kernel.units[inputs]], places))
        if params["batch_group_count"] != 1:
            return self._opaque("a convolution with batch groups", operands, result)
        if groups != 1:
            if kernel.known.shape[inputs] == 1 and kernel.known.shape[filters] == groups:
                # Depthwise: each channel is a unit of its own.
                units[numbers.out_spec[1]] = self.units.unite(
                    image.units[channels], kernel.units[filters]
                )
            else:
                why = "the convolution has groups of channels"
                self._pin(image, why, [channels])
                self._pin(kernel, why, [filters, inputs])
            return Value(result, known, units)
        self.units.unite(image.units[channels], kernel.units[inputs])
        outputs = [[numbers.lhs_spec[0]], [filters]]
        found = self._sum(product, operands, (channels, inputs), outputs, units)
        self.sums.append(found)
        return Value(result, known, units, sums=((1.0, found),))

    def _sum(
        self,
        product: Callable[[Any, Any], jax.Array],
        operands: list[Value],
        axes: tuple[int, int],
        outputs: list[list[int]],
        output_units: list[np.ndarray],
    ) -> Sum:
        """The sum over an axis of both operands, of which the output has the axes ``outputs``."""
        factors = []
        for value, axis, kept in zip(operands, axes, outputs, strict=True):
            zero = value.known & (np.asarray(value.array) == 0)
            rest = tuple(a for a in range(zero.ndim) if a != axis and a not in kept)
            zero = zero.all(axis=rest, keepdims=True).transpose(axis, *kept, *rest)
            factors.append(
                Factor(zero.reshape(zero.shape[: 1 + len(kept)]), [value.units[a] for a in kept])
            )
        steady = np.zeros(operands[0].known.shape[axes[0]], bool)
        data = 0 if operands[1].known.all() else 1
        weights = operands[1 - data]
        if weights.known.all():
            value, axis = operands[data], axes[data]
            others = tuple(a for a in range(value.known.ndim) if a != axis)
            steady = value.known.all(axis=others)

        def share(chosen: np.ndarray) -> jax.Array:
            value, axis = operands[data], axes[data]
            shape = [-1 if a == axis else 1 for a in range(value.known.ndim)]
            arrays = [operand.array for operand in operands]
            arrays[data] = np.where(chosen.reshape(shape), value.array, 0)
            return product(*arrays)

        units = operands[0].units[axes[0]]
        units = np.where(units == ANY, operands[1].units[axes[1]], units)
        leaf = weights.leaf if weights.known.all() else None
        return Sum(units, share, factors, steady, output_units, leaf)


def _constant_along(value: Value, axes: tuple[int, ...]) -> np.ndarray:
    """Which entries are known and the same at all places of these axes."""
    array = np.asarray(value.array)
    same = (array == array.max(axes, keepdims=True)).all(axes)
    return value.known.all(axes) & same


def _known_of_product(
    product: Callable[[Any, Any], jax.Array], left: Value, right: Value
) -> np.ndarray:
    """Which entries are sums of known products alone; what is known to be zero hides the other."""

    def doubt(value: Value) -> tuple[np.ndarray, np.ndarray]:
        unknown = ~value.known
        present = unknown | (np.asarray(value.array) != 0)
        return unknown.astype(np.float32), present.astype(np.float32)

    (unknown, present), (other_unknown, other_present) = doubt(left), doubt(right)
    doubts = product(unknown, other_present) + product(present, other_unknown)
    return np.asarray(doubts) == 0


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _matching_axes(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of one size in groups of equal products, as few as there can be."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        a, b, i, j = i, j, min(i + 1, len(before)), min(j + 1, len(after))
        while (left := math.prod(before[a:i])) != (right := math.prod(after[b:j])):
            if (left < right and i < len(before)) or j == len(after):
                i += 1
            else:
                j += 1
        groups.append((list(range(a, i)), list(range(b, j))))
    return groups
