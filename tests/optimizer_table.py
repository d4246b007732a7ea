"""Every optimizer with its arguments, and a small network to run it on."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kinds import one_of_each_kind

import bregjax

STEPS = 4


def mirror_prox_chain(
    learning_rate: Any, regularizer: Any, strength: Any, delta: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate),
        bregjax.mirror_step(regularizer, strength, delta),
        bregjax.prox_step(regularizer, strength, delta),
    )


def bregman_chain(
    learning_rate: Any, regularizer: Any, strength: Any, delta: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate),
        bregjax.bregman_step(regularizer, strength, delta),
    )


def prox_chain(
    learning_rate: Any, regularizer: Any, strength: Any, step_size: Any = 0.5
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate),
        bregjax.prox_step(regularizer, strength, step_size),
    )


def steer(
    learning_rate: Any, regularizer: Any, strength: Any
) -> optax.GradientTransformationExtraArgs:
    # The scale of this rule is exact: no rounding of the density comes into the parameters.
    rule = bregjax.discrepancy_rule(0.25)
    inner = bregjax.linbreg(learning_rate, regularizer, strength)
    return bregjax.steer(inner, 0.3, rule=rule, every=2)


def multilevel(
    learning_rate: Any, regularizer: Any, strength: Any
) -> optax.GradientTransformationExtraArgs:
    return bregjax.multilevel(
        bregjax.linbreg(learning_rate, regularizer, strength, momentum=0.5), 1
    )


def landing(
    learning_rate: Any, regularizer: Any, strength: Any
) -> optax.GradientTransformationExtraArgs:
    inner = bregjax.linbreg(learning_rate, regularizer, strength)
    return bregjax.landing(inner, optax.sgd(learning_rate, momentum=0.5), 2, density=0.3)


def freeze_support(
    learning_rate: Any, regularizer: Any, strength: Any
) -> optax.GradientTransformationExtraArgs:
    inner = bregjax.prox_sgd(learning_rate, regularizer, strength, momentum=0.5)
    return bregjax.freeze_support(inner)


@dataclasses.dataclass(frozen=True)
class Case:
    """A factory and its keyword arguments."""

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    regularizer: bregjax.Regularizer
    kwargs: dict[str, Any]

    def make(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(regularizer=self.regularizer, **(self.kwargs | changes))

    def inject(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        factory = optax.inject_hyperparams(self.factory)
        return factory(regularizer=self.regularizer, **(self.kwargs | changes))

    @property
    def has_dual(self) -> bool:
        return self.factory not in (bregjax.prox_sgd, prox_chain, freeze_support)

    @property
    def is_adam(self) -> bool:
        return self.factory is bregjax.adabreg

    def promotion(self) -> Any:
        """Strict, but for Optax's Adam, which raises a float to an integer power."""
        return jax.numpy_dtype_promotion("standard" if self.is_adam else "strict")


def case(factory: Any, regularizer: Any, strength: Any = 1.0, rate: Any = 0.2, **kwargs: Any):
    return Case(factory, regularizer, {"learning_rate": rate, "strength": strength, **kwargs})


def falling_rate(count: Any) -> jax.Array:
    return 0.4 * 0.5 ** (jnp.asarray(count, float) / 2)


def rising_strength(count: Any) -> jax.Array:
    return jnp.minimum(0.5 + jnp.asarray(count, float) / 3, 1.5)


CASES = {
    "linbreg": case(bregjax.linbreg, bregjax.l1()),
    "linbreg_delta": case(bregjax.linbreg, bregjax.l1(), delta=0.5),
    "linbreg_heavy_ball": case(bregjax.linbreg, bregjax.l1(), momentum=0.5),
    "linbreg_nesterov": case(bregjax.linbreg, bregjax.l1(), momentum=0.5, nesterov=True),
    "linbreg_schedules": case(bregjax.linbreg, bregjax.l1(), rising_strength, falling_rate),
    "linbreg_none": case(bregjax.linbreg, bregjax.none()),
    "linbreg_nonneg_l1": case(bregjax.linbreg, bregjax.nonneg_l1(), 0.5),
    "linbreg_group_l2": case(bregjax.linbreg, bregjax.group_l2(axis=0), 0.5),
    "linbreg_per_neuron": case(bregjax.linbreg, bregjax.per_neuron(), 0.3),
    "linbreg_per_kernel": case(bregjax.linbreg, bregjax.per_kernel(), 0.5, momentum=0.5),
    "linbreg_per_filter": case(bregjax.linbreg, bregjax.per_filter(), 0.3),
    "linbreg_per_input_channel": case(bregjax.linbreg, bregjax.per_input_channel(), 0.3),
    "linbreg_batched": case(bregjax.linbreg, bregjax.batched(bregjax.l1()), 0.3),
    "linbreg_sparse_group": case(bregjax.linbreg, bregjax.sparse_group(bregjax.per_neuron()), 0.2),
    "linbreg_nuclear": case(bregjax.linbreg, bregjax.nuclear(), 1.5),
    "linbreg_nuclear_warm": case(bregjax.linbreg, bregjax.nuclear(method="warm"), 1.5),
    "linbreg_soft_bernoulli": case(bregjax.linbreg, bregjax.soft_bernoulli(0.2), 0.5),
    "adabreg": case(bregjax.adabreg, bregjax.l1(), 0.5),
    "adabreg_per_kernel": case(bregjax.adabreg, bregjax.per_kernel(), 0.5, delta=2.0),
    "adabreg_schedules": case(bregjax.adabreg, bregjax.l1(), rising_strength, falling_rate),
    "prox_sgd": case(bregjax.prox_sgd, bregjax.l1(), 2.0),
    "prox_sgd_heavy_ball": case(bregjax.prox_sgd, bregjax.per_neuron(), 0.5, momentum=0.5),
    "prox_sgd_nesterov": case(
        bregjax.prox_sgd, bregjax.per_filter(), 0.5, momentum=0.5, nesterov=True
    ),
    "prox_sgd_schedules": case(bregjax.prox_sgd, bregjax.l1(), rising_strength, falling_rate),
    "prox_sgd_soft_bernoulli": case(bregjax.prox_sgd, bregjax.soft_bernoulli(0.2)),
    "mirror_prox_chain": case(mirror_prox_chain, bregjax.l1(), delta=0.5),
    "mirror_prox_chain_schedules": case(
        mirror_prox_chain, bregjax.l1(), rising_strength, falling_rate
    ),
    "bregman_chain": case(bregman_chain, bregjax.l1(), delta=0.5),
    "prox_chain": case(prox_chain, bregjax.l1(), rising_strength),
    "steer": case(steer, bregjax.l1()),
    "multilevel": case(multilevel, bregjax.l1()),
    # With a schedule, whose count stops at the landing: no row for the tests with constants.
    "landing": case(landing, bregjax.l1(), rising_strength),
    "freeze_support": case(freeze_support, bregjax.l1(), 2.0),
}


all_cases = pytest.mark.parametrize("name", CASES)
# The rows whose states and steps differ; the others have another regularizer, schedule or δ.
_KINDS = (
    "linbreg_heavy_ball",
    "linbreg_per_neuron",
    "linbreg_nuclear_warm",
    "linbreg_soft_bernoulli",
    "linbreg_schedules",
    "adabreg",
    "prox_sgd_heavy_ball",
    "mirror_prox_chain",
    "steer",
    "multilevel",
    "landing",
    "freeze_support",
)


def each_kind(names: Iterable[str] = CASES) -> pytest.MarkDecorator:
    """One row of each kind; the others are slow tests."""
    return one_of_each_kind(names, _KINDS)


def is_scheduled(name: str) -> bool:
    return any(callable(value) for value in CASES[name].kwargs.values())


def network(seed: int = 0, dtype: Any = None, width: int = 4) -> dict:
    """Weights of two layers; half of them, and whole input and output channels, are zero.

    There are no vectors: the blocks of the table regularize every leaf they see.
    """
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> jax.Array:
        values = rng.normal(size=shape) * (rng.random(shape) < 0.5)
        values[..., 0] = 0
        values[..., 0, :] = 0
        return jnp.asarray(values, dtype)

    return {
        "conv": {"kernel": weights(3, 3, width, width)},
        "dense": {"kernel": weights(2 * width, width)},
    }


def gradients(params: Any, seed: int = 1, steps: int = STEPS) -> list:
    """Given gradients, large enough that weights cross the threshold both ways."""
    rng = np.random.default_rng(seed)
    drift = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    return [
        jax.tree.map(
            lambda x, d: jnp.asarray(3 * d + rng.normal(size=x.shape), x.dtype), params, drift
        )
        for _ in range(steps)
    ]


def apply_updates(params: Any, updates: Any) -> Any:
    # optax.apply_updates adds bfloat16 and float32, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates)


def run(
    tx: optax.GradientTransformation, params: Any, grads: Sequence[Any], state: Any = None
) -> list[tuple[Any, Any]]:
    """Parameters and state at the start and after a step with each gradient, without jit."""
    history = [(params, tx.init(params) if state is None else state)]
    for gradient in grads:
        history.append(step_with(tx)(*history[-1], gradient))
    return history


def step_with(tx: optax.GradientTransformation) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradient, state, params)
        return apply_updates(params, updates), state

    return step


def scan(tx: optax.GradientTransformation, params: Any, grads: Sequence[Any]) -> tuple[Any, Any]:
    """Parameters and state after all steps, as one program."""

    def step(carry: Any, gradient: Any) -> tuple[Any, None]:
        params, state = carry
        return step_with(tx)(params, state, gradient), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]


def plain(tree: Any) -> Any:
    """PRNG keys as the integers they are made of."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def assert_equal(actual: Any, expected: Any) -> None:
    """The same structure, and the same bits in each leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, plain(actual), plain(expected))


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """The same structure, the same leaves up to rounding, and the same zeros."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def check(x: Any, y: Any) -> None:
        x, y = np.asarray(x), np.asarray(y)
        # In double precision, too, steer keeps its scalars in float32.
        rounding = max(tolerance, 1e-6) if x.dtype == np.float32 else tolerance
        np.testing.assert_allclose(x, y, rtol=rounding, atol=rounding)
        np.testing.assert_array_equal(x == 0, y == 0)

    jax.tree.map(check, plain(actual), plain(expected))
