"""From a trained, dense network to a sparse one, by fine-tuning."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bregjax
from benchmarks import methods
from benchmarks.experiments.mnist import MnistExperiment
from benchmarks.experiments.units import GROUPS
from benchmarks.methods import Length, Method, Recipe
from benchmarks.methods.schedules import Cosine
from benchmarks.report import figures, results
from bregjax import baselines

_RATE = 1e-3
"""learning rate of Adam on the dense network"""


class _ThenState(NamedTuple):
    count: jax.Array
    first: Any
    second: Any


def _then(
    first: optax.GradientTransformation, second: optax.GradientTransformation, step: int
) -> optax.GradientTransformation:
    """``first`` until that step, then ``second``, whose state is made at that step."""

    def init(params: Any) -> _ThenState:
        return _ThenState(jnp.zeros([], jnp.int32), first.init(params), second.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _ThenState]:
        def before() -> tuple[Any, _ThenState]:
            moved, inner = first.update(updates, state.first, params)
            return moved, state._replace(first=inner)

        def after() -> tuple[Any, _ThenState]:
            begun = jax.lax.cond(
                state.count == step, lambda: second.init(params), lambda: state.second
            )
            moved, inner = second.update(updates, begun, params)
            return moved, state._replace(second=inner)

        moved, state = jax.lax.cond(state.count < step, before, after)
        return moved, state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromDense(MnistExperiment):
    """Fine-tune a trained, dense network until it is sparse: ours beside magnitude pruning.

    All methods begin with the same dense training by Adam and then fine-tune for the same number of
    epochs: AdaBreg, whose dual starts at the dense weights; gradual pruning with Adam; and pruning
    all at once, with Adam on what is left. --epochs counts both parts. With --groups whole neurons
    of the hidden layers die, by AdaBreg alone.
    """

    name: ClassVar[str] = "from_dense"

    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98)
    """The wanted shares of zeros among all weights, with --groups among those of hidden neurons."""
    groups: bool = False
    """Let whole neurons die instead of single weights."""
    epochs: int = 15
    tuning: float = 1 / 3
    """The share of the epochs that is used for fine-tuning."""
    rate: float = 5e-3
    """Largest learning rate of AdaBreg in the fine-tuning."""
    pruning_rate: float = 5e-3
    """Largest learning rate of Adam in the fine-tuning with pruning."""
    seeds: int = 5

    def methods(self) -> list[Recipe]:
        """Adam on the dense network throughout, and three ways to each density."""
        methods.check_shares("--sparsities", self.sparsities)
        methods.check_shares("--tuning", [self.tuning])
        methods.check_rate("--rate", self.rate)
        methods.check_rate("--pruning-rate", self.pruning_rate)
        densities = [round(1 - sparsity, 6) for sparsity in self.sparsities]
        ways = {"AdaBreg": self._adabreg}
        if not self.groups:
            ways |= {"gradual pruning": self._gradually, "one-shot pruning": self._at_once}
        return [
            self._tuned("Adam", None, lambda _, steps: _adam(steps)),
            *(self._tuned(way, density, ways[way]) for density in densities for way in ways),
        ]

    def _adabreg(self, density: float, steps: int) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, steps // 10, steps)
        if not self.groups:
            return bregjax.adabreg_to_density(density, steps, rate)
        ((hidden, neurons),) = GROUPS["mlp"].items()
        mask = bregjax.label_by_path({hidden: True}, default=False)
        return bregjax.adabreg_to_density(density, steps, rate, neurons, mask=mask)

    def _gradually(self, density: float, steps: int) -> optax.GradientTransformation:
        stop = round(0.8 * steps)
        schedule = baselines.cubic_density_schedule(density, 0, stop, every=max(1, stop // 50))
        return baselines.magnitude_pruning(_adam(steps, self.pruning_rate), schedule)

    def _at_once(self, density: float, steps: int) -> optax.GradientTransformation:
        at_once = optax.piecewise_constant_schedule(1.0, {1: density})
        return baselines.magnitude_pruning(_adam(steps, self.pruning_rate), at_once)

    def _tuned(
        self,
        family: str,
        density: float | None,
        tune: Callable[[Any, int], optax.GradientTransformation],
    ) -> Method:
        """Dense training, then what ``tune`` makes of the density and the steps that are left."""

        def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
            del rate
            tuning = round(self.tuning * length.steps)
            dense = length.steps - tuning
            return _then(_adam(dense), tune(density, tuning), dense)

        rate = self.rate if family == "AdaBreg" else self.pruning_rate
        rate = _RATE if density is None else rate
        settings = {"tuning": self.tuning, "tuning_rate": rate, "groups": self.groups}
        late = density is not None
        return Method(
            family, Cosine(_RATE), make, settings=settings, target_density=density, late=late
        )

    def draw(self, out: Path) -> None:
        """Accuracy over sparsity."""
        runs = [run for run in results.read_runs(out) if run.target_density is not None]
        figures.save(figures.accuracy_at_targets(runs, self.title), out, "accuracy_at_targets")


def _adam(steps: int, rate: float = _RATE) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))
