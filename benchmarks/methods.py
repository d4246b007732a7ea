"""The methods that experiments compare: an optimizer, how it starts, and its settings."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bregjax
from benchmarks.errors import BenchmarkError
from benchmarks.regularization import Regularization, everywhere
from benchmarks.schedules import Cosine, LearningRate
from bregjax import baselines, leaf_name


class Start(Protocol):
    """Turns the dense initial parameters into those that training starts with."""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """The parameters, from a random key."""
        ...

    def record(self) -> dict[str, Any]:
        """The settings, for summary.json."""
        ...


def _with_biases(key: jax.Array, params: Any, scale: float) -> Any:
    """The parameters with biases drawn uniformly from [0, scale/√fan_in]."""
    leaves, treedef = jax.tree.flatten_with_path(params)
    leaves = {leaf_name(path): x for path, x in leaves}
    for index, (name, x) in enumerate(leaves.items()):
        layer, _, kind = name.rpartition("/")
        if kind == "bias":
            kernel = leaves.get(f"{layer}/kernel")
            fan_in = x.size if kernel is None else kernel.size // x.size
            drawn = jax.random.uniform(jax.random.fold_in(key, index), x.shape, x.dtype)
            leaves[name] = scale / math.sqrt(fan_in) * drawn
    return treedef.unflatten(list(leaves.values()))


@dataclasses.dataclass(frozen=True)
class SparseStart:
    """A random share of the weights, scaled so that the layers keep their output's variance.

    Convolutions keep whole kernels, dense layers entries, unless ``groups`` says otherwise. Biases
    are drawn uniformly from [0, bias/√fan_in], as the authors do: with bias 0 a unit that has no
    live weight sits in the corner of its ReLU, where no gradient ever wakes it.
    """

    density: float = 0.01
    gain: float = 1.0
    """a further factor on the surviving weights"""
    bias: float = 1.0
    """scale of the biases; for a norm, fan_in is the number of its features"""
    groups: dict[str, bregjax.Regularizer] = dataclasses.field(
        default_factory=lambda: {"dense": bregjax.l1(), "conv": bregjax.per_kernel()}
    )
    """what survives or not, by kind of layer"""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""
        kinds = bregjax.label_by_kind(params)
        for index, (kind, groups) in enumerate(self.groups.items()):
            mask = jax.tree.map(lambda label, kind=kind: label == kind, kinds)
            if not any(jax.tree.leaves(mask)):
                continue
            params = bregjax.sparsify(
                jax.random.fold_in(key, index), params, self.density, groups=groups, mask=mask
            )
            params = jax.tree.map(lambda x, mine: self.gain * x if mine else x, params, mask)
        return _with_biases(jax.random.fold_in(key, len(self.groups)), params, self.bias)

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {
            "initial_density": self.density,
            "initial_gain": self.gain,
            "initial_bias": self.bias,
        }


class _Single:
    """A recipe for one run with each seed."""

    @property
    def members(self) -> tuple[Self]:
        """The recipes of the runs that are trained together."""
        return (self,)

    def hyperparameters(self, seeds: int) -> Any:
        """What the optimizer is made of, run by run, where that is not the same for all."""
        del seeds
        return ()


@dataclasses.dataclass(frozen=True)
class LowRankStart:
    """The leading singular values of the random kernels; biases are drawn as in `SparseStart`."""

    share: float
    """of the largest possible rank, at least one singular value"""
    gain: float = 0.3
    """norm of a kernel, as a share of that of all its singular values. 1 would keep the variance of
    the layer's output, but these few directions are random, and large ones stay for good."""
    bias: float = 1.0
    """as in `SparseStart`"""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""

        def thin_out(x: jax.Array) -> jax.Array:
            if x.ndim < 2:
                return x
            rank = max(1, round(self.share * min(x.size // x.shape[-1], x.shape[-1])))
            kept = bregjax.nuclear(rank=rank).prox(x, 0.0)
            return self.gain * kept * jnp.sqrt(jnp.sum(x**2) / jnp.sum(kept**2))

        return _with_biases(key, jax.tree.map(thin_out, params), self.bias)

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {
            "initial_rank": self.share,
            "initial_gain": self.gain,
            "initial_bias": self.bias,
        }


@dataclasses.dataclass(frozen=True)
class Method(_Single):
    """An optimizer to be built once the length of the training is known."""

    name: str
    learning_rate: LearningRate
    make: Callable[[optax.ScalarOrSchedule, int], optax.GradientTransformation]
    """from the learning rate, or its schedule, and the number of steps to the optimizer"""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """what it is made of, for summary.json"""
    start: Start | None = None
    """None starts dense"""
    full_gradients: float = 1.0
    """the share of steps that need the gradient of weights that are zero, too"""

    def optimizer(self, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optimizer of a training of so many epochs."""
        steps = epochs * steps_per_epoch
        return self.learning_rate.build(
            lambda rate: self.make(rate, steps), epochs, steps_per_epoch
        )

    def record(self) -> dict[str, Any]:
        """All settings, for summary.json."""
        start = self.start.record() if self.start else {"initial_density": 1.0}
        return self.learning_rate.record() | start | self.settings


@dataclasses.dataclass(frozen=True)
class Targeted(_Single):
    """One of our methods, told the density that it ends with instead of a strength.

    `bregjax.steer` leads it there along a cubic ramp; over the last epochs the network has landed
    on the exact number of weights, which Adam tunes.
    """

    method: Method
    """starts from a small strength"""
    target_density: float
    initial_target: float = 0.5
    """where the ramp begins"""
    ramp: float = 0.6
    """share of the steered epochs, until the target is reached"""
    tuning: float = 0.2
    """share of the epochs after the landing"""
    tuning_rate: float = 1e-3
    """learning rate of Adam after the landing, decaying as a cosine"""

    @property
    def name(self) -> str:
        """Such as ``AdaBreg 5.0%`` or ``AdaBreg, m=9 5.0%``: the method's without the strength."""
        optimizer, more = self.method.name.partition(" ")[0], self.method.name.partition(", ")[2]
        return f"{', '.join(filter(None, (optimizer, more)))} {self.target_density:.1%}"

    @property
    def start(self) -> Start | None:
        """That of the method."""
        return self.method.start

    @property
    def full_gradients(self) -> float:
        """As in `Method`; the tuning needs none."""
        return (1 - self.tuning) * self.method.full_gradients

    def steered_epochs(self, epochs: int) -> int:
        """The epochs before the landing."""
        return epochs - max(1, round(self.tuning * epochs))

    def optimizer(self, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
        """See `Method`."""
        if epochs < 2:
            raise BenchmarkError(
                f"{self.name} needs an epoch before its landing and one after it: got --epochs"
                f" {epochs}."
            )
        steered = self.steered_epochs(epochs)
        target = optax.polynomial_schedule(
            self.initial_target,
            self.target_density,
            power=3,
            transition_steps=round(self.ramp * steered * steps_per_epoch),
        )
        return bregjax.landing(
            bregjax.steer(self.method.optimizer(steered, steps_per_epoch), target),
            Cosine(self.tuning_rate).build(optax.adam, epochs - steered, steps_per_epoch),
            steered * steps_per_epoch,
            density=self.target_density,
        )

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        return self.method.record() | own


@dataclasses.dataclass(frozen=True)
class Steered(_Single):
    """One of our methods with exactly the asked-for share of live weights at each step.

    `bregjax.steer` sets λ so that the share follows a cubic ramp from ``initial_target`` down to
    the target and stays there; the live weights keep their values when λ moves.
    """

    method: Method
    """keeps its weights when λ moves"""
    target_density: float
    initial_target: float = 0.5
    """where the ramp begins"""
    ramp: float = 0.6
    """share of the training, until the target is reached"""

    @property
    def name(self) -> str:
        """Such as ``AdaBreg 5.0%``: the method's without the strength."""
        optimizer, more = self.method.name.partition(" ")[0], self.method.name.partition(", ")[2]
        return f"{', '.join(filter(None, (optimizer, more)))} {self.target_density:.1%}"

    @property
    def start(self) -> Start | None:
        """That of the method."""
        return self.method.start

    @property
    def full_gradients(self) -> float:
        """As in `Method`."""
        return self.method.full_gradients

    def hyperparameters(self, seeds: int) -> Any:
        """The target of each run: an argument, so that all targets share one program."""
        return np.full(seeds, self.target_density, np.float32)

    def optimizer(
        self, epochs: int, steps_per_epoch: int
    ) -> Callable[[Any], optax.GradientTransformation]:
        """From a target to the optimizer."""
        steps = round(self.ramp * epochs * steps_per_epoch)

        def make(target: Any) -> optax.GradientTransformation:
            ramp = optax.polynomial_schedule(
                self.initial_target, target, power=3, transition_steps=steps
            )
            return bregjax.steer(self.method.optimizer(epochs, steps_per_epoch), ramp, exact=True)

        return make

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        return self.method.record() | own


@dataclasses.dataclass(frozen=True)
class Path:
    """One method at many strengths, side by side in one program."""

    name: str
    at: Callable[[Any], Method]
    """the method at a strength, which may be traced"""
    strengths: tuple[float, ...]

    @property
    def members(self) -> tuple[Method, ...]:
        """The method at each strength."""
        return tuple(map(self.at, self.strengths))

    def hyperparameters(self, seeds: int) -> Any:
        """The strength of each run, those of a strength together."""
        return np.repeat(np.asarray(self.strengths, np.float32), seeds)

    @property
    def start(self) -> Start | None:
        """That of the method."""
        return self.members[0].start

    def optimizer(
        self, epochs: int, steps_per_epoch: int
    ) -> Callable[[Any], optax.GradientTransformation]:
        """From a strength to the optimizer."""
        return lambda strength: self.at(strength).optimizer(epochs, steps_per_epoch)

    def record(self) -> dict[str, Any]:
        """See `Method`."""
        return self.members[0].record() | {"strengths": list(self.strengths)}


Recipe = Method | Targeted | Steered | Path
"""What an experiment trains with."""


def check_shares(option: str, shares: Sequence[float]) -> None:
    """Raises `BenchmarkError` unless the shares are such, and told apart in the methods' names."""
    names = {f"{share:.1%}" for share in shares}
    if any(not 0 < share < 1 for share in shares) or len(names) < len(shares):
        raise BenchmarkError(
            f"{option} must be between 0 and 1, and several must differ by 0.001, got"
            f" {' '.join(map(str, shares))}."
        )


def steerable() -> tuple[Method, Method]:
    """AdaBreg and LinBreg for `Targeted`: λ is far too small, and steering finds the right one.

    The entries of each gradient are clipped: batch norm divides by √ε where a filter has no live
    weight, which makes the gradient 300 times larger, and more through several layers.
    """
    start = SparseStart(0.01, gain=0.7)
    slow, fast = Cosine(5e-3, warmup_epochs=1), Cosine(1.0, warmup_epochs=1)
    adaptive = adabreg(slow, everywhere(bregjax.l1(), 1e-2), start=start)
    plain = linbreg(fast, everywhere(bregjax.l1(), 1e-3), start=start, momentum=0.9)
    return clipped(adaptive, 0.1), clipped(plain, 0.1)


def exactly_steered() -> tuple[Method, Method]:
    """AdaBreg and LinBreg for `Steered`, with the weight decay that the baselines have."""
    start = SparseStart(0.01, gain=0.7)
    slow, fast = Cosine(5e-3, warmup_epochs=1), Cosine(1.0, warmup_epochs=1)
    penalty = everywhere(bregjax.l1(), 1e-3)
    adaptive = adabreg(slow, penalty, start=start, weight_decay=0.05, keep_weights=True)
    plain = linbreg(fast, penalty, start=start, momentum=0.9, keep_weights=True)
    return clipped(adaptive, 0.1), decayed(clipped(plain, 0.1), 5e-4)


def densities_asked_for(method: Recipe, densities: np.ndarray) -> list[dict[str, Any]]:
    """What `results.Run` says of the target of each seed, from its densities after each epoch."""
    epochs, seeds = len(densities) - 1, densities.shape[1]
    target = method.record().get("target_density")
    if not isinstance(method, Targeted):
        return [{"target_density": target} for _ in range(seeds)]
    steered = densities[method.steered_epochs(epochs)]
    return [{"target_density": target, "steered_density": float(d)} for d in steered]


def linbreg(
    learning_rate: LearningRate,
    regularization: Regularization,
    *,
    start: Start | None,
    delta: float = 1.0,
    momentum: float | None = None,
    nesterov: bool = False,
    keep_weights: bool = False,
) -> Method:
    """LinBreg, with heavy-ball or Nesterov momentum or without."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        tx = functools.partial(
            bregjax.linbreg,
            rate,
            delta=delta,
            momentum=momentum,
            nesterov=nesterov,
            keep_weights=keep_weights,
        )
        return regularization.optimizer(tx, steps)

    settings = {"delta": delta, "momentum": momentum, "nesterov": nesterov}
    settings |= {"keep_weights": keep_weights} if keep_weights else {}
    settings |= regularization.record()
    kind = "" if momentum is None else "+nesterov" if nesterov else "+m"
    name = f"LinBreg{kind} {regularization}"
    return Method(name, learning_rate, make, settings, start)


def adabreg(
    learning_rate: LearningRate,
    regularization: Regularization,
    *,
    start: Start | None,
    delta: float = 1.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    keep_weights: bool = False,
) -> Method:
    """AdaBreg."""
    options = {"delta": delta}
    if weight_decay:
        options["weight_decay"] = weight_decay
    if eps != 1e-8:
        options["eps"] = eps
    if keep_weights:
        options["keep_weights"] = keep_weights

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        return regularization.optimizer(functools.partial(bregjax.adabreg, rate, **options), steps)

    settings = options | regularization.record()
    return Method(f"AdaBreg {regularization}", learning_rate, make, settings, start)


def decayed(method: Method, weight_decay: float) -> Method:
    """The method with weight decay in front, on the weights alone."""
    decay = optax.add_decayed_weights(weight_decay, bregjax.weight_mask)
    return _chained(decay, method, {"weight_decay": weight_decay})


def clipped(method: Method, clip: float) -> Method:
    """The method with every entry of the gradient kept between −clip and clip."""
    return _chained(optax.clip(clip), method, {"clip": clip})


def _chained(
    first: optax.GradientTransformation, method: Method, settings: dict[str, Any]
) -> Method:
    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        return optax.chain(first, method.make(rate, steps))

    return dataclasses.replace(method, make=make, settings=method.settings | settings)


def multilevel(method: Method, m: int) -> Method:
    """The method with m coarse steps, on its support, after each full one."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        return bregjax.multilevel(method.make(rate, steps), m)

    return dataclasses.replace(
        method,
        name=f"{method.name}, m={m}",
        make=make,
        settings=method.settings | {"m": m},
        full_gradients=1 / (m + 1),
    )


def prox_sgd(
    learning_rate: LearningRate,
    regularization: Regularization,
    *,
    start: Start | None = None,
    momentum: float | None = None,
) -> Method:
    """Proximal SGD."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        tx = functools.partial(bregjax.prox_sgd, rate, momentum=momentum)
        return regularization.optimizer(tx, steps)

    settings = {"momentum": momentum} | regularization.record()
    return Method(f"proximal SGD {regularization}", learning_rate, make, settings, start)


def sgd(
    learning_rate: LearningRate,
    *,
    start: Start | None = None,
    momentum: float | None = None,
    nesterov: bool = False,
) -> Method:
    """SGD."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return optax.sgd(rate, momentum=momentum, nesterov=nesterov)

    settings = {"strength": 0.0, "momentum": momentum, "nesterov": nesterov}
    return Method("SGD" if momentum is None else "SGD+m", learning_rate, make, settings, start)


def adam(learning_rate: LearningRate, *, start: Start | None = None) -> Method:
    """Adam."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return optax.adam(rate)

    return Method("Adam", learning_rate, make, {"strength": 0.0}, start)


def lasso(learning_rate: LearningRate, strength: float, *, momentum: float | None = None) -> Method:
    """SGD on the loss with λ times the ℓ1 norm of the weights added."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        del steps
        return baselines.lasso(rate, strength, momentum=momentum)

    settings = {"strength": strength, "momentum": momentum}
    return Method(f"lasso λ={strength:g}", learning_rate, make, settings)


@dataclasses.dataclass(frozen=True)
class ErdosRenyiStart:
    """A random share of all weights, spread over the layers by `erdos_renyi_sparsify`."""

    density: float

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""
        return baselines.erdos_renyi_sparsify(key, params, self.density)

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {"initial_density": self.density, "initial_layers": "Erdős-Rényi kernel"}


def one_shot_pruning(
    learning_rate: LearningRate,
    density: float,
    *,
    dense_share: float = 0.7,
    momentum: float | None = None,
) -> Method:
    """Dense training by SGD, then the smallest weights go, then the others are tuned.

    Args:
      learning_rate: over the whole training.
      density: the share of the weights that stay.
      dense_share: of the training, before the pruning.
      momentum: of SGD.
    """

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        schedule = optax.piecewise_constant_schedule(1.0, {round(dense_share * steps): density})
        return baselines.magnitude_pruning(optax.sgd(rate, momentum=momentum), schedule)

    settings = {"target_density": density, "dense_share": dense_share, "momentum": momentum}
    name = f"pruning, fine-tuning {density:.1%}"
    return Method(name, learning_rate, make, settings, full_gradients=0)


def gradual_pruning(
    learning_rate: LearningRate,
    density: float,
    *,
    start: float = 0.1,
    stop: float = 0.7,
    momentum: float | None = None,
) -> Method:
    """Gradual magnitude pruning of dense SGD between two shares of the training."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        every = max(1, round((stop - start) * steps / 50))
        schedule = baselines.cubic_density_schedule(
            density, round(start * steps), round(stop * steps), every=every
        )
        return baselines.magnitude_pruning(optax.sgd(rate, momentum=momentum), schedule)

    settings = {"target_density": density, "start": start, "stop": stop, "momentum": momentum}
    name = f"gradual pruning {density:.1%}"
    return Method(name, learning_rate, make, settings, full_gradients=0)


def set_training(
    learning_rate: LearningRate, density: float, *, momentum: float | None = None
) -> Method:
    """SET: the smallest weights are dropped, and as many grown at random."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        inner = optax.sgd(rate, momentum=momentum)
        every = _topology_interval(steps)
        return baselines.set_training(inner, key=jax.random.key(0), every=every, stop=steps)

    settings = {"target_density": density, "momentum": momentum}
    start = ErdosRenyiStart(density)
    return Method(f"SET {density:.1%}", learning_rate, make, settings, start, full_gradients=0)


def rigl(learning_rate: LearningRate, density: float, *, momentum: float | None = None) -> Method:
    """RigL: the smallest weights are dropped, those with the largest gradients grown."""

    def make(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
        inner = optax.sgd(rate, momentum=momentum)
        every = _topology_interval(steps)
        return baselines.rigl(inner, every=every, stop=round(_RIGL_SHARE * steps))

    settings = {"target_density": density, "momentum": momentum}
    start = ErdosRenyiStart(density)
    full = _RIGL_SHARE / _RIGL_INTERVAL
    return Method(f"RigL {density:.1%}", learning_rate, make, settings, start, full_gradients=full)


_RIGL_INTERVAL = 100
_RIGL_SHARE = 0.75  # of the training, while the support moves


def _topology_interval(steps: int) -> int:
    """RigL's 100 steps, fewer where the training is short."""
    return max(1, min(_RIGL_INTERVAL, steps // 50))
