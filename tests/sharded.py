"""Every kind of transformation, and a training on a mesh to compare with that on one device."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from kinds import one_of_each_kind

import bregjax
from bregjax import baselines

SPECS = {
    "conv": {"kernel": jax.P(None, None, "data", "model")},
    "dense": {"kernel": jax.P("data", "model"), "bias": jax.P("model")},
}


def linbreg(regularizer, **options):
    return bregjax.linbreg(0.1, regularizer, 0.5, momentum=0.5, **options)


def landing(regularizer, groups):
    return bregjax.landing(linbreg(regularizer), optax.adam(0.1), 2, density=0.5, groups=groups)


NEURONS = bregjax.per_neuron()
TRANSFORMATIONS = {
    "l1": linbreg(bregjax.l1()),
    "keep_weights": linbreg(bregjax.l1(), keep_weights=True),
    "per_neuron": linbreg(NEURONS),
    "per_kernel": linbreg(bregjax.per_kernel()),
    "per_input_channel": linbreg(bregjax.per_input_channel()),
    "sparse_group": linbreg(bregjax.sparse_group(NEURONS)),
    "soft_bernoulli": linbreg(bregjax.soft_bernoulli(0.3, 0.1)),
    "nuclear": linbreg(bregjax.nuclear()),
    "nuclear, gram": linbreg(bregjax.nuclear(method="gram")),
    "nuclear, warm": linbreg(bregjax.nuclear(method="warm")),
    "nuclear, randomized": linbreg(bregjax.nuclear(method="randomized")),
    "adabreg": bregjax.adabreg(0.1, bregjax.l1(), 0.3, weight_decay=0.1),
    "prox_sgd": bregjax.prox_sgd(0.1, NEURONS, 0.5),
    "freeze_support": bregjax.freeze_support(optax.adam(0.1)),
    "multilevel": bregjax.multilevel(linbreg(bregjax.l1()), 2),
    "adabreg_to_density": bregjax.adabreg_to_density(0.3, 4, 0.1),
    "adabreg_to_density, groups": bregjax.adabreg_to_density(0.3, 4, 0.1, NEURONS),
    "steer": bregjax.steer(linbreg(bregjax.l1()), 0.3),
    "steer, exact": bregjax.steer(linbreg(bregjax.l1()), 0.3, exact=True),
    "steer, exact, groups": bregjax.steer(linbreg(NEURONS), 0.3, exact=True),
    "landing": landing(bregjax.l1(), None),
    "landing, groups": landing(NEURONS, NEURONS),
    "relax_on_plateau": bregjax.relax_on_plateau(
        linbreg(bregjax.l1()), optax.contrib.reduce_on_plateau()
    ),
    "grow_rank_on_plateau": bregjax.grow_rank_on_plateau(
        linbreg(bregjax.nuclear(method="gram")), 1, optax.contrib.reduce_on_plateau()
    ),
    "lasso": baselines.lasso(0.1, 0.5, momentum=0.5),
    "rigl": baselines.rigl(optax.adam(0.1), every=2, stop=9),
    "set_training": baselines.set_training(
        optax.sgd(0.1, momentum=0.5), key=jax.random.key(0), every=2, stop=9
    ),
    "magnitude_pruning": baselines.magnitude_pruning(optax.sgd(0.1), 0.3),
}
# These differ from another one by the regularizer, the rule or the optimizer inside.
_ALIKE = (
    "keep_weights",
    "per_input_channel",
    "nuclear, gram",
    "nuclear, randomized",
    "adabreg_to_density",
    "steer",
    "relax_on_plateau",
    "lasso",
    "magnitude_pruning",
)
each_kind = one_of_each_kind(TRANSFORMATIONS, TRANSFORMATIONS.keys() - set(_ALIKE))


def draw(seed):
    shapes = {
        "conv": {"kernel": (3, 3, 8, 16)},
        "dense": {"kernel": (16, 24), "bias": (24,)},
    }
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make_mesh(axis_type: AxisType) -> Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)


def placement(mesh: Mesh) -> Any:
    """Where each parameter of `draw` lies."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)


def steps(tx: optax.GradientTransformation, params: Any, state: Any, gradient: Any, count: int = 4):
    """The parameters and the state after so many steps with one gradient."""
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        for _ in range(count):
            updates, state = update(gradient, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
    return params, state


def train(tx: optax.GradientTransformation, params: Any, gradient: Any) -> Any:
    return steps(tx, params, jax.jit(tx.init)(params), gradient)[0]


def train_on(mesh: Mesh, tx: optax.GradientTransformation) -> Any:
    placed = placement(mesh)
    with jax.set_mesh(mesh):
        return train(tx, *jax.device_put((draw(0), draw(1)), (placed, placed)))


def assert_as_on_one_device(got: Any, tx: optax.GradientTransformation) -> None:
    """Equal up to rounding, with the same support."""
    expected = train(tx, draw(0), draw(1))
    for one, many in zip(*map(jax.tree.leaves, (expected, got)), strict=True):
        np.testing.assert_array_equal(np.asarray(many) != 0, np.asarray(one) != 0)
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=2e-6)
