"""Learning rates over a training: constant, cosine, or halved on a plateau of the loss."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

MakeOptimizer = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
"""From a learning rate, which may be traced or a schedule, to the optimizer."""


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """How the learning rate of an optimizer changes while it trains."""

    learning_rate: float
    """the first rate, or the largest"""

    def schedule(self, steps: int, steps_per_epoch: int) -> optax.ScalarOrSchedule:
        """The rate, or its schedule, over a training of this many steps."""
        del steps, steps_per_epoch
        return self.learning_rate

    def build(
        self, make: MakeOptimizer, epochs: int, steps_per_epoch: int
    ) -> optax.GradientTransformation:
        """The optimizer of a training of ``epochs`` epochs."""
        return make(self.schedule(epochs * steps_per_epoch, steps_per_epoch))

    def record(self) -> dict[str, Any]:
        """The settings, for summary.json."""
        return {"schedule": type(self).__name__.lower()} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Constant(LearningRate):
    """The same rate throughout."""


@dataclasses.dataclass(frozen=True)
class Cosine(LearningRate):
    """A linear rise from zero over the warm-up, then a cosine down to the end.

    With ``flat`` the rate stays at its largest until that share of the training is over. With
    ``distance`` it is at most distance/√steps: so far goes a weight over the whole training if the
    signs of its gradients are random.

    Proximal SGD wants ``final`` above zero. Its threshold is λ times the rate of the step, so at
    the end of a cosine to zero nothing removes the small weights that larger steps brought in.
    """

    warmup_epochs: float = 0.0
    final: float = 0.0
    """the rate at the end, as a share of ``learning_rate``"""
    flat: float = 0.0
    distance: float | None = None

    def schedule(self, steps: int, steps_per_epoch: int) -> optax.Schedule:
        """See `LearningRate`; the warm-up takes at most half of the training."""
        warmup = round(min(self.warmup_epochs * steps_per_epoch, steps / 2))
        decay_from = max(warmup, round(self.flat * steps))
        rate = self.learning_rate
        if self.distance is not None:
            rate = min(rate, self.distance / math.sqrt(steps))
        rise = optax.linear_schedule(0.0 if warmup else rate, rate, warmup)
        decay_steps = max(1, steps - decay_from)
        decay = optax.cosine_decay_schedule(rate, decay_steps, self.final)
        return optax.join_schedules([rise, decay], [decay_from])


class PlateauState(NamedTuple):
    """The states of `optax.contrib.reduce_on_plateau` and of the optimizer."""

    plateau: Any
    inner_state: Any


@dataclasses.dataclass(frozen=True)
class Plateau(LearningRate):
    """The published schedule: the rate is cut when the training loss stalls.

    The rate is multiplied by ``factor`` after more than ``patience`` epochs in a row whose mean
    training loss is not below ``1 - threshold`` times the best one so far. This is PyTorch's
    ``ReduceLROnPlateau`` with a relative threshold and without cooldown, except that PyTorch skips
    reductions smaller than 1e-8.
    """

    factor: float = 0.5
    patience: int = 5
    threshold: float = 0.01

    def build(
        self, make: MakeOptimizer, epochs: int, steps_per_epoch: int
    ) -> optax.GradientTransformation:
        """See `LearningRate`; the optimizer's update needs the loss as ``value``."""
        del epochs
        # Optax cuts after `patience` bad epochs, PyTorch after more than that.
        follow = optax.contrib.reduce_on_plateau(
            self.factor,
            patience=self.patience + 1,
            rtol=self.threshold,
            accumulation_size=steps_per_epoch,
        )
        inner = optax.with_extra_args_support(
            optax.inject_hyperparams(lambda learning_rate: make(learning_rate))(
                learning_rate=self.learning_rate
            )
        )

        def init(params: Any) -> PlateauState:
            return PlateauState(follow.init(params), inner.init(params))

        def update(
            updates: Any, state: Any, params: Any = None, **extra_args: Any
        ) -> tuple[Any, PlateauState]:
            rate = self.learning_rate * state.plateau.scale
            inner_state = state.inner_state._replace(hyperparams={"learning_rate": rate})
            _, plateau = follow.update({}, state.plateau, value=extra_args["value"])
            updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
            return updates, PlateauState(plateau, inner_state)

        return optax.GradientTransformationExtraArgs(init, update)
