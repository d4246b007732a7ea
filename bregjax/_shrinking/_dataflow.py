"""What in a program depends on its inputs, and which indices of its arrays are one unit.

A program is run on an example. Each value carries two things besides: which of its entries are
known, that is the same for all inputs, and for each axis the unit of each index. A unit that a
network does not need shows where arrays are summed over its axis: its share of the sum is zero, as
its weights are, or known.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bregjax._shrinking._rules import Rules
from bregjax._shrinking._units import ANY
from bregjax._shrinking._values import Value

_INLINED = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
_LONGEST_LOOP = 64
"""turns of a loop that is followed; what goes through a longer one stays"""


class Dataflow(Rules):
    """Follows a program; afterwards ``units``, ``sums`` and ``leaves`` say what was found."""

    def __init__(
        self,
        program: core.ClosedJaxpr,
        leaves: Sequence[Any],
        inputs: Sequence[Any],
        *,
        choice: int = 0,
    ):
        super().__init__(choice)
        self.leaves = [self._parameter(index, x) for index, x in enumerate(leaves)]
        examples = [self._input(x) for x in inputs]
        constants = [self._constant(x) for x in program.consts]
        self.outputs = self._run(program.jaxpr, constants, [*self.leaves, *examples])
        for output in self.outputs:
            self._pin(output, "they are outputs of the network")

    def _parameter(self, index: int, x: Any) -> Value:
        units = [self.units.new(size) for size in np.shape(x)]
        return Value(x, np.ones(np.shape(x), bool), units, leaf=index)

    def _input(self, x: Any) -> Value:
        value = Value(x, np.zeros(np.shape(x), bool), [self.units.new(n) for n in np.shape(x)])
        self._pin(value, "they are axes of the inputs")
        return value

    def _constant(self, x: Any) -> Value:
        value = self._literal(x)
        value.units = [self.units.new(size) for size in np.shape(x)]
        self._pin(value, "they belong to a constant array of the program")
        return value

    def _literal(self, x: Any) -> Value:
        shape = np.shape(x)
        return Value(x, np.ones(shape, bool), [np.full(size, ANY) for size in shape])

    def _run(self, jaxpr: Any, constants: list[Value], arguments: list[Value]) -> list[Value]:
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        values |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(var: Any) -> Value:
            return self._literal(var.val) if isinstance(var, core.Literal) else values[var]

        for eqn in jaxpr.eqns:
            found = self._follow(eqn, [read(var) for var in eqn.invars])
            values |= dict(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _follow(self, eqn: Any, operands: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name in _INLINED and _INLINED[name] in eqn.params:
            return self._inline(eqn.params[_INLINED[name]], operands)
        if name == "scan" and eqn.params["length"] <= _LONGEST_LOOP:
            return self._unroll(eqn, operands)
        if name == "cond":
            return self._branch(eqn, operands)
        results = eqn.primitive.bind(*[value.array for value in operands], **eqn.params)
        results = results if eqn.primitive.multiple_results else [results]
        return self.apply(eqn, operands, results)

    def _inline(self, body: Any, operands: list[Value]) -> list[Value]:
        constants = [self._constant(x) for x in getattr(body, "consts", ())]
        return self._run(getattr(body, "jaxpr", body), constants, operands)

    def _branch(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """All branches, any of which may be taken."""
        index, *arguments = operands
        branches = [self._inline(body, arguments) for body in eqn.params["branches"]]
        taken = int(index.array)
        merged = []
        for values in zip(*branches, strict=True):
            units = values[taken].units
            known = values[taken].known
            for value in values:
                units = [self.units.unite(a, b) for a, b in zip(units, value.units, strict=True)]
                same = np.asarray(value.array) == np.asarray(values[taken].array)
                known = known & ((value.known & same) | index.known)
            merged.append(Value(values[taken].array, known, units))
        return merged

    def _unroll(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """A loop, one turn after the other."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        if "ft_in" in eqn.params:  # JAX 0.12
            count, carried, _ = map(len, eqn.params["ft_in"].elts)
        else:
            count, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        constants, carry = operands[:count], operands[count : count + carried]
        sliced = operands[len(constants) + len(carry) :]
        for value in sliced:
            self._pin(value, "a loop runs over them", [0])
        turns: list[list[Value]] = [[] for _ in range(length)]
        for turn in reversed(range(length)) if eqn.params["reverse"] else range(length):
            mine = [Value(x.array[turn], x.known[turn], x.units[1:]) for x in sliced]
            outputs = self._inline(body, [*constants, *carry, *mine])
            after, turns[turn] = outputs[: len(carry)], outputs[len(carry) :]
            for old, new in zip(carry, after, strict=True):
                for a, b in zip(old.units, new.units, strict=True):
                    self.units.unite(a, b)
            carry = after
        stacked = []
        for values in zip(*turns, strict=True):
            units = values[0].units
            for value in values[1:]:
                units = [self.units.unite(a, b) for a, b in zip(units, value.units, strict=True)]
            turn = self.units.new(length)
            self.units.pin(turn, "a loop runs over them")
            array = jnp.stack([value.array for value in values])
            stacked.append(Value(array, np.stack([v.known for v in values]), [turn, *units]))
        return [*carry, *stacked]
