"""The methods that experiments compare: a name, an optimizer and what it was built from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import bregjax


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer to be built once the number of steps is known."""

    name: str
    make: Callable[[optax.ScalarOrSchedule, int], optax.GradientTransformation]
    """from the learning rate, or its schedule, and the number of steps to the optimizer"""
    learning_rate: float
    settings: dict[str, Any]
    """what else goes into summary.json"""
    cosine: bool = False
    """whether the learning rate decays to zero as a cosine"""

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimizer for a training of so many steps."""
        if self.cosine:
            return self.make(optax.cosine_decay_schedule(self.learning_rate, steps), steps)
        return self.make(self.learning_rate, steps)

    def record(self) -> dict[str, Any]:
        """All settings, for summary.json."""
        decay = "cosine" if self.cosine else "constant"
        return {"learning_rate": self.learning_rate, "schedule": decay} | self.settings


def linbreg(
    learning_rate: float,
    strength: float,
    *,
    delta: float = 1.0,
    momentum: float | None = None,
    cosine: bool = False,
) -> Method:
    """LinBreg with ℓ1 on the weights."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return bregjax.linbreg(rate, bregjax.l1(), strength, delta=delta, momentum=momentum)

    settings = {"strength": strength, "delta": delta, "momentum": momentum}
    return Method(f"LinBreg λ={strength:g}", make, learning_rate, settings, cosine)


def adabreg(
    learning_rate: float,
    strength: float,
    *,
    initial_strength: float | None = None,
    rise: float = 0.6,
    delta: float = 1.0,
    cosine: bool = False,
) -> Method:
    """AdaBreg with ℓ1 on the weights.

    With an ``initial_strength`` λ rises from there, linearly over the share ``rise`` of the
    training: many weights may wake early, and those without evidence go to sleep again.
    """

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        current = strength
        if initial_strength is not None:
            current = optax.linear_schedule(initial_strength, strength, round(rise * steps))
        return bregjax.adabreg(rate, bregjax.l1(), current, delta=delta)

    settings = {"strength": strength, "delta": delta}
    if initial_strength is None:
        return Method(f"AdaBreg λ={strength:g}", make, learning_rate, settings, cosine)
    settings |= {"initial_strength": initial_strength, "rise": rise}
    name = f"AdaBreg λ={initial_strength:g}→{strength:g}"
    return Method(name, make, learning_rate, settings, cosine)


def prox_sgd(learning_rate: float, strength: float, *, cosine: bool = False) -> Method:
    """Proximal SGD with ℓ1 on the weights."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return bregjax.prox_sgd(rate, bregjax.l1(), strength)

    name = f"proximal SGD λ={strength:g}"
    return Method(name, make, learning_rate, {"strength": strength}, cosine)


def sgd(learning_rate: float, *, cosine: bool = False) -> Method:
    """Plain SGD."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return optax.sgd(rate)

    return Method("SGD", make, learning_rate, {"strength": 0.0}, cosine)
