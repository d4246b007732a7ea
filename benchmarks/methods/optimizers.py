"""The optimizers that are compared, by name."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import optax

import bregjax
from benchmarks.cli.errors import BenchmarkError
from benchmarks.methods.recipes import Length, Make, Method, ToDensity, in_percent
from benchmarks.methods.regularization import Regularization, everywhere
from benchmarks.methods.schedules import Cosine, LearningRate
from benchmarks.methods.starts import ErdosRenyiStart, SparseStart, Start
from bregjax import baselines


def check_shares(option: str, shares: Sequence[float]) -> None:
    """Raises `BenchmarkError` unless shares are between 0 and 1, and differ in methods' names."""
    names = {in_percent(share) for share in shares}
    if any(not 0 < share < 1 for share in shares) or len(names) < len(shares):
        raise BenchmarkError(
            f"{option} must be between 0 and 1, and several must differ by 0.0001, got"
            f" {' '.join(map(str, shares))}."
        )


def check_rate(option: str, rate: float) -> None:
    """Raises `BenchmarkError` unless the learning rate is a number above zero."""
    if not 0 < rate < math.inf:
        raise BenchmarkError(f"{option} must be a number above 0, got {rate}.")


def steerable() -> tuple[Method, Method]:
    """AdaBreg and LinBreg for `Targeted`: they start with 1 % of the weights.

    Their λ is far too small, and steering raises it. The entries of each gradient are clipped:
    batch norm divides by √ε where a filter has no live weight, which makes the gradient 300 times
    as large, and larger still through several layers.
    """
    start = SparseStart(0.01, gain=0.7)
    slow, fast = Cosine(5e-3, warmup_epochs=1), Cosine(1.0, warmup_epochs=1)
    adaptive = adabreg(slow, everywhere(bregjax.l1(), 1e-2), start=start)
    plain = linbreg(fast, everywhere(bregjax.l1(), 1e-3), start=start, momentum=0.9)
    note = "sparse start"
    return (
        dataclasses.replace(clipped(adaptive, 0.1), note=note),
        dataclasses.replace(clipped(plain, 0.1), note=note),
    )


def linbreg_to_density(
    density: float, warmup_epochs: float, *, rate: float = 0.1, weight_decay: float = 0.0
) -> ToDensity:
    """LinBreg with momentum from the dense network: SGD and `bregjax.to_density` behind it.

    Clipping is for batch norm, as in `steerable`. On ResNet-20 with 1 % of the weights the network
    dies without it. With 5 %, clipping at 0.1 costs 2.7 points.
    """
    method = sgd(Cosine(rate, warmup_epochs=warmup_epochs), momentum=0.9)
    method = clipped(decayed(method, weight_decay), 0.3)
    return ToDensity(density, dataclasses.replace(method, family="LinBreg+m"))


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
    """LinBreg, without momentum or with heavy-ball or Nesterov momentum."""
    options = {"delta": delta, "momentum": momentum, "nesterov": nesterov}
    options |= {"keep_weights": keep_weights} if keep_weights else {}
    kind = "" if momentum is None else "+nesterov" if nesterov else "+m"
    return _regularized(
        f"LinBreg{kind}", bregjax.linbreg, learning_rate, regularization, options, start
    )


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
    return _regularized("AdaBreg", bregjax.adabreg, learning_rate, regularization, options, start)


def _regularized(
    family: str,
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: LearningRate,
    regularization: Regularization,
    options: dict[str, Any],
    start: Start | None,
) -> Method:
    """A method with penalties, made of one of our optimizers and its options."""

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        built = functools.partial(optimizer, rate, **options)
        return regularization.optimizer(built, length.steps, length.strength_share)

    settings = options | regularization.record()
    return Method(family, learning_rate, make, settings, start, strength=str(regularization))


def decayed(method: Method, weight_decay: float) -> Method:
    """The method with weight decay in front, only on the weights; with none it is as it was."""
    if not weight_decay:
        return method
    decay = optax.add_decayed_weights(weight_decay, bregjax.weight_mask)
    return _chained(decay, method, {"weight_decay": weight_decay})


def clipped(method: Method, clip: float) -> Method:
    """The method with every entry of the gradient kept between −clip and clip."""
    return _chained(optax.clip(clip), method, {"clip": clip})


def _chained(
    first: optax.GradientTransformation, method: Method, settings: dict[str, Any]
) -> Method:
    return dataclasses.replace(
        method,
        make=lambda rate, length: optax.chain(first, method.make(rate, length)),
        settings=method.settings | settings,
    )


def masked(method: Method, others: Method, mask: Callable[[Any], Any] | None) -> Method:
    """The method on the weights that the mask marks, by default all, and another on the others."""
    if mask is None:
        return method

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        parts: dict[Hashable, optax.GradientTransformation] = {
            True: method.make(rate, length),
            False: others.make(rate, length),
        }
        return optax.partition(parts, mask)

    return dataclasses.replace(method, make=make)


def multilevel(method: Method, m: int) -> Method:
    """The method with m coarse steps on its support after each full step."""
    return dataclasses.replace(
        method,
        note=f"m={m}",
        make=lambda rate, length: bregjax.multilevel(method.make(rate, length), m),
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
    return Method(
        "proximal SGD",
        learning_rate,
        # Without a dual no evidence is collected: a shorter training has the same strength.
        lambda rate, length: regularization.optimizer(
            functools.partial(bregjax.prox_sgd, rate, momentum=momentum), length.steps
        ),
        {"momentum": momentum} | regularization.record(),
        start,
        strength=str(regularization),
    )


def sgd(
    learning_rate: LearningRate,
    *,
    start: Start | None = None,
    momentum: float | None = None,
    nesterov: bool = False,
) -> Method:
    """SGD."""
    return Method(
        "SGD" if momentum is None else "SGD+m",
        learning_rate,
        lambda rate, _: optax.sgd(rate, momentum=momentum, nesterov=nesterov),
        {"strength": 0.0, "momentum": momentum, "nesterov": nesterov},
        start,
    )


def adam(
    learning_rate: LearningRate, *, start: Start | None = None, weight_decay: float = 0.0
) -> Method:
    """Adam, with decoupled weight decay if there is any."""
    settings = {"strength": 0.0} | _unless_zero(weight_decay=weight_decay)
    return Method("Adam", learning_rate, lambda rate, _: _adam(rate, weight_decay), settings, start)


def _adam(rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.adam(rate)
    return optax.adamw(rate, weight_decay=weight_decay, mask=bregjax.weight_mask)


def _sgd(
    rate: optax.ScalarOrSchedule, momentum: float | None, weight_decay: float
) -> optax.GradientTransformation:
    sgd = optax.sgd(rate, momentum=momentum)
    if not weight_decay:
        return sgd
    return optax.chain(optax.add_decayed_weights(weight_decay, bregjax.weight_mask), sgd)


def _unless_zero(**settings: float) -> dict[str, float]:
    """What is recorded of settings that older results do not have."""
    return {name: value for name, value in settings.items() if value}


def lasso(learning_rate: LearningRate, strength: float, *, momentum: float | None = None) -> Method:
    """SGD on the loss with λ times the ℓ1 norm of the weights added."""
    return Method(
        "lasso",
        learning_rate,
        lambda rate, _: baselines.lasso(rate, strength, momentum=momentum),
        {"strength": strength, "momentum": momentum},
        strength=f"λ={strength:g}",
    )


def one_shot_pruning(
    learning_rate: LearningRate,
    density: float,
    *,
    dense_share: float = 0.7,
    momentum: float | None = None,
) -> Method:
    """Dense training by SGD, then the smallest weights are pruned, then the others fine-tuned.

    Args:
      learning_rate: the learning rate of the whole training.
      density: the share of the weights that stay.
      dense_share: the share of the training before the pruning.
      momentum: the momentum of SGD.
    """

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        schedule = optax.piecewise_constant_schedule(
            1.0, {round(dense_share * length.steps): density}
        )
        return baselines.magnitude_pruning(optax.sgd(rate, momentum=momentum), schedule)

    settings = {"dense_share": dense_share, "momentum": momentum}
    return _told("pruning, fine-tuning", density, learning_rate, make, settings, late=True)


def gradual_pruning(
    learning_rate: LearningRate,
    density: float,
    *,
    start: float = 0.1,
    stop: float = 0.7,
    momentum: float | None = None,
    adaptive: bool = False,
    weight_decay: float = 0.0,
    l1_penalty: float = 0.0,
) -> Method:
    """Gradual magnitude pruning from the share ``start`` of the training to ``stop``.

    It is done with SGD, or with Adam if it is ``adaptive``. The gradient g of the weights θ becomes
    g + λ·sign(θ) until the pruning stops, with the ``l1_penalty`` λ, and SGD's g + μ·θ throughout,
    with the ``weight_decay`` μ. That of Adam is decoupled. Biases have neither.
    """
    if adaptive and momentum is not None:
        raise ValueError(f"Adam has its own momentum, got {momentum=} and {adaptive=}.")

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        inner = _adam(rate, weight_decay) if adaptive else _sgd(rate, momentum, weight_decay)
        if not l1_penalty:
            return inner
        last = round(stop * length.steps)
        strength = optax.piecewise_constant_schedule(l1_penalty, {last: 0.0})
        return optax.chain(baselines.add_penalty(bregjax.l1(), strength), inner)

    own = {"optimizer": "Adam"} if adaptive else {"momentum": momentum}
    own |= _unless_zero(weight_decay=weight_decay, l1_penalty=l1_penalty)
    family = "gradual pruning, Adam" if adaptive else "gradual pruning"
    return pruned(Method(family, learning_rate, make, own), density, start=start, stop=stop)


def pruned(method: Method, density: float, *, start: float = 0.1, stop: float = 0.7) -> Method:
    """Gradual magnitude pruning around any method, which gives it its name."""

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        every = max(1, round((stop - start) * length.steps / 50))
        first, last = (round(share * length.steps) for share in (start, stop))
        schedule = baselines.cubic_density_schedule(density, first, last, every=every)
        return baselines.magnitude_pruning(method.make(rate, length), schedule)

    settings = {"start": start, "stop": stop} | method.settings
    return _told(method.family, density, method.learning_rate, make, settings, late=True)


def set_training(
    learning_rate: LearningRate, density: float, *, momentum: float | None = None
) -> Method:
    """SET: the smallest weights are dropped, and as many random ones grown."""

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        inner = optax.sgd(rate, momentum=momentum)
        every = _topology_interval(length.steps)
        return baselines.set_training(inner, key=jax.random.key(0), every=every, stop=length.steps)

    start = ErdosRenyiStart(density)
    return _told("SET", density, learning_rate, make, {"momentum": momentum}, start)


def rigl(learning_rate: LearningRate, density: float, *, momentum: float | None = None) -> Method:
    """RigL: the smallest weights are dropped, and those with the largest gradients grown."""

    def make(rate: optax.ScalarOrSchedule, length: Length) -> optax.GradientTransformation:
        inner = optax.sgd(rate, momentum=momentum)
        every = _topology_interval(length.steps)
        return baselines.rigl(inner, every=every, stop=round(_RIGL_SHARE * length.steps))

    start, full = ErdosRenyiStart(density), _RIGL_SHARE / _RIGL_INTERVAL
    return _told("RigL", density, learning_rate, make, {"momentum": momentum}, start, full)


def sparse_baselines(
    learning_rate: LearningRate, density: float, *, momentum: float | None = None
) -> list[Method]:
    """Pruning at once and gradually, SET and RigL, all told the same density."""
    makers = (one_shot_pruning, gradual_pruning, set_training, rigl)
    return [make(learning_rate, density, momentum=momentum) for make in makers]


def _told(
    family: str,
    density: float,
    learning_rate: LearningRate,
    make: Make,
    settings: dict[str, Any],
    start: Start | None = None,
    full_gradients: float = 0.0,
    late: bool = False,
) -> Method:
    """A baseline that is told its density."""
    return Method(
        family,
        learning_rate,
        make,
        settings,
        start,
        full_gradients,
        target_density=density,
        late=late,
    )


_RIGL_INTERVAL = 100
_RIGL_SHARE = 0.75  # the support moves during this share of the training


def _topology_interval(steps: int) -> int:
    """RigL's 100 steps; fewer if the training is short."""
    return max(1, min(_RIGL_INTERVAL, steps // 50))
