"""What is known of the arrays of a program while it is followed."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


@dataclasses.dataclass
class Value:
    """An array of the program."""

    array: Any
    known: Any
    """booleans of the shape of the array: which entries do not depend on the inputs"""
    units: list[np.ndarray]
    """for each axis the unit of each index"""
    leaf: int | None = None
    """which of the parameters it is, up to its shape and the order of its axes"""
    sums: "tuple[tuple[float, Sum], ...]" = ()
    """the sums that were added up to it, with their signs"""


@dataclasses.dataclass
class Factor:
    """One of the two arrays of a product that is summed over an axis."""

    zero: np.ndarray
    """which entries are zero whatever the inputs are; the axis is the first, and the others are
    those that the output has, too"""
    units: list[np.ndarray]
    """of these others"""


@dataclasses.dataclass(eq=False)
class Sum:
    """A product of two arrays that is summed over an axis."""

    units: np.ndarray
    """of the axis"""
    share: Callable[[np.ndarray], jax.Array]
    """from a mask of the axis to what the indices in it add, as far as that is known"""
    factors: list[Factor]
    known: np.ndarray
    """for each index whether what it adds is the same for all inputs and examples"""
    output_units: list[np.ndarray]
    weights: int | None
    """the parameter that is summed over, if one of the two arrays is one"""

    def nothing(self, unread: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """For each index whether it adds nothing to what is read, whatever the inputs are."""
        found = np.zeros(len(self.units), bool)
        for factor in self.factors:
            zero = factor.zero
            for place, units in enumerate(factor.units, 1):
                shape = [-1 if axis == place else 1 for axis in range(zero.ndim)]
                zero = zero | unread(units).reshape(shape)
            found |= zero.all(axis=tuple(range(1, zero.ndim)))
        return found


class Bias(NamedTuple):
    """A parameter where it is added to sums: what these lack can be added to it."""

    leaf: int
    sums: tuple[tuple[float, Sum], ...]
    """with the signs that they have beside it"""


@dataclasses.dataclass
class Product:
    """What a product or a convolution costs: as many multiply-adds as its loops have turns."""

    units: list[np.ndarray]
    """of the axes that it runs over, but for the places in a convolution kernel"""
    places: float = 1
    """in a convolution kernel"""
