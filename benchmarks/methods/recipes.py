"""Recipes: an optimizer with its learning rate and start, one that is told a density, or a path."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import optax

import bregjax
from benchmarks.cli.errors import BenchmarkError
from benchmarks.methods.schedules import Cosine, LearningRate
from benchmarks.methods.starts import Start
from bregjax._scope import Scope
from bregjax._to_density import defaults_for


class Length(NamedTuple):
    """How long a training is."""

    steps: int
    steps_per_epoch: int
    strength_share: float = 1.0
    """a factor on the strengths, for a training that is shorter than the one they are meant for: a
    weight wakes when the evidence that it has collected over the steps exceeds λ"""


Make = Callable[[optax.ScalarOrSchedule, Length], optax.GradientTransformation]
"""From the learning rate, or its schedule, and the length of the training to the optimizer."""


class _Single:
    """A recipe for one run with each seed."""

    @property
    def members(self) -> tuple[Self]:
        """The recipes of the runs that one program trains together."""
        return (self,)

    def hyperparameters(self, seeds: int) -> Any:
        """The parameters of the optimizer that differ from run to run."""
        del seeds
        return ()

    def defaults(self, steps: int) -> dict[str, Any]:
        """What the library chooses in a training of this length, for summary.json."""
        del steps
        return {}


@dataclasses.dataclass(frozen=True)
class Method(_Single):
    """An optimizer to be built once the length of the training is known."""

    family: str
    """the family of optimizers, such as ``LinBreg+m``"""
    learning_rate: LearningRate
    make: Make
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """for summary.json"""
    start: Start | None = None
    """None starts with the dense network"""
    full_gradients: float = 1.0
    """the share of steps that also need the gradient of weights that are zero"""
    strength: str = ""
    """in words, such as ``λ=0.1``"""
    note: str = ""
    """what tells it from others of its family, such as ``m=9``"""
    target_density: float | None = None
    """the density that was asked for"""
    late: bool = False
    """whether the network has this density only near the end"""

    @property
    def kind(self) -> str:
        """The name without strength and target: in figures over targets each kind has a line."""
        return _label(self.family, note=self.note)

    @property
    def name(self) -> str:
        """Such as ``AdaBreg λ=0.1, m=9`` or ``RigL 5.0%``."""
        return _label(self.family, self.strength, self.note, self.target_density)

    def optimizer(
        self, epochs: int, steps_per_epoch: int, strength_share: float = 1.0
    ) -> optax.GradientTransformation:
        """The optimizer of a training of this length, with a share of the strengths."""
        length = Length(epochs * steps_per_epoch, steps_per_epoch, strength_share)
        return self.learning_rate.build(
            lambda rate: self.make(rate, length), epochs, steps_per_epoch
        )

    def record(self) -> dict[str, Any]:
        """All settings, for summary.json."""
        start = _start_of(self.start)
        target = {} if self.target_density is None else {"target_density": self.target_density}
        return self.learning_rate.record() | start | target | self.settings


def _start_of(start: Start | None) -> dict[str, Any]:
    """The settings of a start, for summary.json."""
    return start.record() if start else {"initial_density": 1.0}


def _label(family: str, strength: str = "", note: str = "", target: float | None = None) -> str:
    words = f"{family} {strength}" if strength else family
    words = f"{words}, {note}" if note else words
    return words if target is None else f"{words} {in_percent(target)}"


def in_percent(share: float) -> str:
    """Such as ``5.0%``, or ``1.67%`` where one decimal is not enough."""
    return f"{share:.2%}".replace("0%", "%")


@dataclasses.dataclass(frozen=True)
class Targeted(_Single):
    """Steered close to the density, landed on it exactly, and then fine-tuned by Adam.

    The method starts with a small strength, and `bregjax.steer` leads it along a cubic ramp.
    """

    method: Method
    target_density: float
    initial_target: float = 0.5
    """where the ramp begins"""
    ramp: float = 0.6
    """the share of the steered epochs after which the target is reached"""
    tuning: float = 0.2
    """the share of the epochs after the landing"""
    tuning_rate: float = 1e-3
    """learning rate of Adam after the landing, decaying as a cosine"""
    late: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """As in `Method`."""
        return self.method.kind

    @property
    def name(self) -> str:
        """Such as ``AdaBreg, m=9 5.0%``: the method's name with the target, not the strength."""
        return _label(self.method.family, note=self.method.note, target=self.target_density)

    @property
    def start(self) -> Start | None:
        """That of the method."""
        return self.method.start

    @property
    def full_gradients(self) -> float:
        """As in `Method`; the fine-tuning needs none."""
        return (1 - self.tuning) * self.method.full_gradients

    def steered_epochs(self, epochs: int) -> int:
        """The epochs before the landing."""
        return epochs - max(1, round(self.tuning * epochs))

    def optimizer(
        self, epochs: int, steps_per_epoch: int, strength_share: float = 1.0
    ) -> optax.GradientTransformation:
        """See `Method`."""
        if epochs < 2:
            raise BenchmarkError(
                f"{self.name} needs an epoch before its landing and one after it: got --epochs"
                f" {epochs}."
            )
        steered = self.steered_epochs(epochs)
        steps = steered * steps_per_epoch
        target = optax.polynomial_schedule(
            self.initial_target,
            self.target_density,
            power=3,
            transition_steps=round(self.ramp * steps),
        )
        return bregjax.landing(
            bregjax.steer(self.method.optimizer(steered, steps_per_epoch, strength_share), target),
            Cosine(self.tuning_rate).build(optax.adam, epochs - steered, steps_per_epoch),
            steps,
            density=self.target_density,
        )

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        return self.method.record() | own


@dataclasses.dataclass(frozen=True)
class ToDensity(_Single):
    """`bregjax.adabreg_to_density`, or another optimizer and `bregjax.to_density` behind it."""

    target_density: float
    around: Method | None = None
    """the optimizer in front instead of Adam, which also gives the family"""
    mask: Callable[[Any], Any] | None = None
    """which weights become sparse"""
    groups: Mapping[str, bregjax.Regularizer] | None = None
    """instead of the mask: by patterns of the weights' names, regularizers whose groups live or die
    as a whole; in the end the target is the density of each pattern's weights"""
    note: str = ""
    """what tells it from others, such as ``compact``"""
    initial_target: float = 1.0
    """where the ramp begins"""
    learning_rate: LearningRate | None = None
    """None leaves it to the optimizer"""
    keep_weights: float | None = None
    """the share of a change of λ that live weights do not feel; None leaves it to the optimizer"""
    evidence_decay: float | None = None
    """what is left of the evidence after a step; None leaves it to the optimizer"""
    scope: Scope = "global"
    """which weights compete"""
    start: ClassVar[Start | None] = None
    full_gradients: ClassVar[float] = 1.0
    late: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """As in `Method`."""
        return _label(self._family, note=self.note)

    @property
    def _family(self) -> str:
        return "AdaBreg" if self.around is None else self.around.family

    @property
    def name(self) -> str:
        """Such as ``AdaBreg 10.0%``."""
        return _label(self._family, note=self.note, target=self.target_density)

    def optimizer(
        self, epochs: int, steps_per_epoch: int, strength_share: float = 1.0
    ) -> optax.GradientTransformation:
        """See `Method`."""
        del strength_share  # there is no strength
        steps = epochs * steps_per_epoch
        rate = self.learning_rate and self.learning_rate.schedule(steps, steps_per_epoch)
        options: dict[str, Any] = {
            "initial_density": self.initial_target,
            "keep_weights": self.keep_weights,
            "evidence_decay": self.evidence_decay,
            "scope": self.scope,
        }
        if self.around is not None:
            sparse = bregjax.to_density(self.target_density, steps, mask=self.mask, **options)
            return optax.chain(self.around.optimizer(epochs, steps_per_epoch), sparse)
        make = functools.partial(
            bregjax.adabreg_to_density, self.target_density, steps, rate, **options
        )
        if self.groups is None:
            return make(mask=self.mask)
        optimizers: dict[Hashable, optax.GradientTransformation] = {
            pattern: make(
                regularizer=groups, mask=bregjax.label_by_path({pattern: True}, default=False)
            )
            for pattern, groups in self.groups.items()
        }
        first, *_ = self.groups  # its optimizer also trains what is in no group
        labels = bregjax.label_by_path({pattern: pattern for pattern in self.groups}, default=first)
        return optax.partition(optimizers, labels)

    def defaults(self, steps: int) -> dict[str, Any]:
        """See `Method`."""
        given = {"rate", "warmup"} if self.learning_rate or self.around else set()
        given |= {"kept", "shrinking"} if self.keep_weights is not None else set()
        given |= {"memory"} if self.evidence_decay is not None else set()
        chosen = {
            pattern: {
                name: value
                for name, value in defaults_for(steps, groups)._asdict().items()
                if name not in given
            }
            for pattern, groups in (self.groups or {"*": bregjax.l1()}).items()
        }
        return {"defaults": chosen}

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        groups = {p: str(groups).lstrip("_") for p, groups in (self.groups or {}).items()}
        regularizer = {"regularizer": groups} if groups else {}
        target = {"target_density": self.target_density, "initial_target": self.initial_target}
        rate = self.learning_rate.record() if self.learning_rate else {}
        rate = self.around.record() if self.around else rate
        told = {"keep_weights": self.keep_weights, "evidence_decay": self.evidence_decay}
        told = {name: value for name, value in told.items() if value is not None}
        told |= {} if self.scope == "global" else {"scope": self.scope}
        return rate | _start_of(self.start) | target | told | regularizer


@dataclasses.dataclass(frozen=True)
class Path:
    """One method at many strengths, trained side by side in one program."""

    name: str
    at: Callable[[Any], Method]
    """the method at a strength, which may be traced"""
    strengths: tuple[float, ...]
    late: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """As in `Method`."""
        return self.members[0].kind

    @property
    def members(self) -> tuple[Method, ...]:
        """The method at each strength."""
        return tuple(map(self.at, self.strengths))

    def hyperparameters(self, seeds: int) -> Any:
        """The strength of each run; runs of the same strength are neighbours."""
        return np.repeat(np.asarray(self.strengths, np.float32), seeds)

    @property
    def start(self) -> Start | None:
        """That of the method."""
        return self.members[0].start

    def optimizer(
        self, epochs: int, steps_per_epoch: int, strength_share: float = 1.0
    ) -> Callable[[Any], optax.GradientTransformation]:
        """From a strength to the optimizer."""
        return lambda strength: self.at(strength).optimizer(epochs, steps_per_epoch, strength_share)

    def defaults(self, steps: int) -> dict[str, Any]:
        """See `Method`."""
        return self.members[0].defaults(steps)

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        return self.members[0].record() | {"strengths": list(self.strengths)}


Recipe = Method | Targeted | ToDensity | Path
"""What trains the networks of an experiment."""
