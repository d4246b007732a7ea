import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from benchmarks.measure.multiply_adds import LayerCost, layer_costs, training_share
from benchmarks.models import ConvNet, resnet18, resnet20


def costs_of(build, shape: tuple[int, ...]) -> dict[str, LayerCost]:
    model = build(rngs=nnx.Rngs(0))
    model.eval()
    graphdef, params, other = nnx.split(model, nnx.Param, ...)

    def apply(params, inputs):
        return nnx.merge(graphdef, params, other)(inputs)

    return layer_costs(apply, params, jnp.zeros(shape))


def test_the_convnet_costs_what_its_layers_say():
    costs = costs_of(ConvNet, (1, 28, 28, 1))
    assert costs == {
        "conv1/kernel": LayerCost(24 * 24 * 25 * 64, first=True),
        "conv2/kernel": LayerCost(8 * 8 * 25 * 64 * 64, first=False),
        "linear1/kernel": LayerCost(1024 * 128, first=False),
        "linear2/kernel": LayerCost(128 * 10, first=False),
    }


def test_residual_networks_cost_what_is_known_of_them():
    # Published: 0.56 G for ResNet-18 on 32×32 images, 41 M for ResNet-20 with shortcuts that
    # have no weights; the padding is counted.
    eighteen = sum(cost.multiply_adds for cost in costs_of(resnet18, (1, 32, 32, 3)).values())
    assert eighteen == 555_422_720
    costs = costs_of(resnet20, (1, 32, 32, 3))
    assert [name for name, cost in costs.items() if cost.first] == ["stem/conv/kernel"]
    shortcuts = sum(c.multiply_adds for n, c in costs.items() if "shortcut" in n)
    assert sum(c.multiply_adds for c in costs.values()) - shortcuts == 40_551_040


def test_loops_and_shared_kernels_are_counted_every_time():
    def apply(kernel, x):
        def step(carry, _):
            return jnp.tanh(carry @ kernel["again"]), None

        x, _ = lax.scan(step, x @ kernel["once"], None, length=5)
        return jax.checkpoint(lambda x: x @ kernel["again"].T)(x)

    params = {"once": jnp.ones((3, 4)), "again": jnp.ones((4, 4))}
    costs = layer_costs(apply, params, jnp.ones((1, 3)))
    assert costs == {"once": LayerCost(12, True), "again": LayerCost(6 * 16, False)}


def test_products_of_two_activations_are_left_out_and_mixed_kernels_refused():
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    costs = layer_costs(lambda p, x: (x @ p["a"]).T @ (x @ p["b"]), params, jnp.ones((1, 3)))
    assert costs == {"a": LayerCost(9, True), "b": LayerCost(9, True)}
    with pytest.raises(ValueError, match=r"mixes the parameters \['a', 'b'\]"):
        layer_costs(lambda p, x: x @ (p["a"] + p["b"]), params, jnp.ones((1, 3)))


def test_the_share_of_a_training_is_the_sum_over_its_passes():
    costs = {"first": LayerCost(100, first=True), "second": LayerCost(10, first=False)}
    dense = {"first": [1, 1, 1], "second": [1, 1, 1]}
    assert training_share(costs, dense, 1.0) == pytest.approx(1)
    assert training_share(costs, dense, 0.0) == pytest.approx(1)
    sparse = {"first": [0.1, 0.1], "second": [0.5, 0.5]}
    full = (100 * (0.1 + 1) + 10 * (0.5 + 0.5 + 1)) / (100 * 2 + 10 * 3)
    frozen = (100 * (0.1 + 0.1) + 10 * (0.5 + 0.5 + 0.5)) / (100 * 2 + 10 * 3)
    assert training_share(costs, sparse, 1.0) == pytest.approx(full)
    assert training_share(costs, sparse, 0.25) == pytest.approx(0.25 * full + 0.75 * frozen)
    growing = {"first": [0.0, 1.0, 1.0], "second": [1, 1, 1]}
    expected = (100 * 2 * np.mean([0.5, 1]) + 30) / 230
    assert training_share(costs, growing, 0.0) == pytest.approx(expected)


def test_loops_in_loops_are_counted_every_time():
    def apply(kernel, x):
        def inner(carry, _):
            return jnp.tanh(carry @ kernel), None

        def outer(carry, _):
            return lax.scan(inner, carry, None, length=3)[0], None

        return lax.scan(outer, x, None, length=5)[0]

    costs = layer_costs(apply, jnp.ones((4, 4)), jnp.ones((1, 4)))
    assert costs == {"": LayerCost(5 * 3 * 16, False)}
