"""Which weights are regularized, and how strongly: regularizers and strengths by kind of layer."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

import bregjax


@dataclasses.dataclass(frozen=True)
class Rising:
    """A strength λ that rises linearly over the first part of a training, then stays.

    While λ is small many weights may wake; as it rises, those with little evidence go back to
    sleep.
    """

    initial: float
    final: float
    share: float = 0.6
    """λ rises during this share of the training steps"""

    def __str__(self) -> str:
        return f"{_in_words(self.initial)}→{_in_words(self.final)}"


Strength = float | Rising


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A regularizer and its strength λ."""

    regularizer: bregjax.Regularizer
    strength: Strength

    def strength_over(self, steps: int, share: float = 1.0) -> optax.ScalarOrSchedule:
        """A share of λ, over a training of this many steps."""
        λ = self.strength
        if isinstance(λ, Rising):
            rise = round(λ.share * steps)
            return optax.linear_schedule(share * λ.initial, share * λ.final, rise)
        return share * λ


@dataclasses.dataclass(frozen=True)
class Regularization:
    """Which parameters get which penalty; those without one (biases, norms) are trained as usual.

    Args:
      penalties: by label.
      labels: from a tree of parameters to a tree of labels; the default labels each leaf with the
        kind of its layer, ``dense``, ``conv``, ``embedding`` or ``other``.
    """

    penalties: Mapping[str, Penalty]
    labels: Callable[[Any], Any] = bregjax.label_by_kind

    def optimizer(
        self,
        make: Callable[..., optax.GradientTransformation],
        steps: int,
        strength_share: float = 1.0,
    ) -> optax.GradientTransformation:
        """One optimizer for the whole network, for a training of this many steps.

        Args:
          make: one of our optimizers as a function of ``(regularizer, strength, mask=…)``.
          steps: the length of the training.
          strength_share: a factor on the strengths.
        """
        optimizers: dict[Hashable, optax.GradientTransformation] = {
            label: make(
                penalty.regularizer,
                penalty.strength_over(steps, strength_share),
                mask=lambda _: True,
            )
            for label, penalty in self.penalties.items()
        }
        optimizers[_PLAIN] = make(bregjax.none(), 0.0, mask=lambda _: False)

        def labels(params: Any) -> Any:
            return jax.tree.map(
                lambda label: label if label in self.penalties else _PLAIN, self.labels(params)
            )

        return optax.partition(optimizers, labels)

    def record(self) -> dict[str, Any]:
        """The settings, for summary.json."""
        strengths: dict[str, Any] = {}
        for label, penalty in self.penalties.items():
            value = penalty.strength
            strengths[label] = dataclasses.asdict(value) if isinstance(value, Rising) else value
        regularizers = {
            label: str(p.regularizer).lstrip("_") for label, p in self.penalties.items()
        }
        return {"regularizer": _only(regularizers), "strength": _only(strengths)}

    def __str__(self) -> str:
        """The strengths, as ``λ=0.5`` or ``λ=0.5/0.02``, in the order of the labels."""
        return "λ=" + "/".join(_in_words(p.strength) for p in self.penalties.values())


def everywhere(regularizer: bregjax.Regularizer, strength: Strength) -> Regularization:
    """The same penalty on all weights."""

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda mark: "weights" if mark else _PLAIN, bregjax.weight_mask(params))

    return Regularization({"weights": Penalty(regularizer, strength)}, labels)


_PLAIN = "plain"


def _in_words(strength: Any) -> str:
    """A number as a short text; the strength of a path is traced and has no number."""
    return f"{strength:g}" if isinstance(strength, float) else str(strength)


def _only(values: dict[str, Any]) -> Any:
    """The only value of a dictionary, or the dictionary if it has several."""
    return next(iter(values.values())) if len(values) == 1 else values
