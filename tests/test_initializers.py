import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bregjax

KEY = jax.random.key(0)
CONV = (3, 3, 4, 6)


@dataclasses.dataclass(frozen=True)
class Columns(bregjax.Regularizer):
    """Of somebody who counts axes from the end."""

    def value(self, x):
        return bregjax.per_neuron().value(x)

    def prox(self, x, step):
        return bregjax.per_neuron().prox(x, step)

    def subgradient(self, x):
        return bregjax.per_neuron().subgradient(x)

    def group_axes(self, ndim):
        return (-2,)


# groups, shape, number of groups, axes of one group
GROUPINGS = [
    (None, (10, 8), 80, ()),
    (bregjax.l1(), CONV, 216, ()),
    (bregjax.per_neuron(), (10, 8), 8, (0,)),
    (Columns(), (10, 8), 8, (0,)),
    (bregjax.batched(Columns()), (1, 10, 8), 8, (0, 1)),
    (bregjax.per_kernel(), CONV, 24, (0, 1)),
    (bregjax.per_filter(), CONV, 6, (0, 1, 2)),
    (bregjax.per_input_channel(), CONV, 4, (0, 1, 3)),
    (bregjax.group_l2(axis=1), (10, 8), 10, (1,)),
]


@pytest.mark.parametrize(("groups", "shape", "number", "axes"), GROUPINGS)
@pytest.mark.parametrize("density", [0.001, 0.1, 0.3, 0.5, 0.99, 1.0])
def test_exact_number_of_whole_groups_survives(groups, shape, number, axes, density):
    # Ones show the factor, and that survivors are alive in every entry.
    init = bregjax.sparse_initializer(density, jax.nn.initializers.ones, groups=groups)
    kernel = np.asarray(init(KEY, shape))
    kept = max(1, round(density * number))
    live = np.any(kernel != 0, axis=axes)
    assert (live.size, live.sum()) == (number, kept)
    np.testing.assert_array_equal(np.all(kernel != 0, axis=axes), live)
    np.testing.assert_allclose(kernel[kernel != 0], np.sqrt(number / kept), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(("groups", "live"), [(None, 15680), (bregjax.per_neuron(), 15680)])
def test_the_count_is_exact_for_what_narrow_dtypes_draw(groups, live, dtype):
    kernel = bregjax.sparse_initializer(0.1, groups=groups)(KEY, (784, 200), dtype)
    assert kernel.dtype == dtype
    assert int((kernel != 0).sum()) == live


def test_without_rescaling_survivors_keep_their_values():
    init = bregjax.sparse_initializer(0.25, jax.nn.initializers.ones, rescale=False)
    kernel = init(KEY, (8, 8))
    assert jnp.sum(kernel == 1) == 16
    assert jnp.sum(kernel == 0) == 48


def test_full_density_is_a_draw_of_the_base():
    base = jax.nn.initializers.normal(0.5)
    kernel = bregjax.sparse_initializer(1.0, base)(KEY, (200, 200))
    assert jnp.all(kernel != 0)
    np.testing.assert_allclose(jnp.std(kernel), 0.5, rtol=4 / np.sqrt(2 * 40_000))


@pytest.mark.parametrize("groups", [bregjax.l1(), bregjax.per_input_channel()])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_variance_is_that_of_he_normal(groups, density):
    fan_in, fan_out = 1000, 500
    kernel = bregjax.sparse_initializer(density, groups=groups)(KEY, (fan_in, fan_out))
    survivors = density * fan_in * fan_out
    # The sample variance of n normal numbers deviates by √(2/n); four deviations are allowed.
    variance = jnp.mean(kernel**2)
    np.testing.assert_allclose(variance, 2 / fan_in, rtol=4 * np.sqrt(2 / survivors))
    # So the layer's output has the variance of the dense one's.
    outputs = jax.random.normal(jax.random.key(1), (2000, fan_in)) @ kernel
    np.testing.assert_allclose(jnp.mean(outputs**2), 2.0, rtol=0.03)


def test_every_group_survives_equally_often():
    init = bregjax.sparse_initializer(0.25, jax.nn.initializers.ones, groups=bregjax.per_neuron())
    kernels = jax.vmap(lambda key: init(key, (3, 8)))(jax.random.split(KEY, 2000))
    share = np.mean(np.asarray(kernels[:, 0] != 0), axis=0)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_survivors_are_an_unbiased_sample_of_the_base():
    init = bregjax.sparse_initializer(0.5, jax.nn.initializers.uniform(1.0), rescale=False)
    kernel = np.asarray(init(KEY, (200, 200)))
    alive = kernel[kernel != 0]
    assert abs(alive.mean() - 0.5) < 4 * np.sqrt(1 / 12 / alive.size)


def test_determined_by_the_key():
    init = bregjax.sparse_initializer(0.3)
    np.testing.assert_array_equal(init(KEY, (9, 9)), init(KEY, (9, 9)))
    assert not np.array_equal(init(KEY, (9, 9)) != 0, init(jax.random.key(1), (9, 9)) != 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_initializer_keeps_the_dtype(dtype):
    assert bregjax.sparse_initializer(0.3)(KEY, (9, 9), dtype).dtype == dtype


def test_initializer_under_jit_and_vmap():
    init = bregjax.sparse_initializer(0.3, jax.nn.initializers.ones)
    keys = jax.random.split(KEY, 3)
    kernels = jax.jit(jax.vmap(lambda key: init(key, (6, 5))))(keys)
    for key, kernel in zip(keys, kernels, strict=True):
        np.testing.assert_array_equal(kernel != 0, init(key, (6, 5)) != 0)
        assert jnp.sum(kernel != 0) == 9


def test_kernel_init_of_flax_layers():
    init = bregjax.sparse_initializer(0.25)
    linear = nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0))
    assert jnp.sum(linear.kernel[...] != 0) == 8
    filters = bregjax.sparse_initializer(0.5, groups=bregjax.per_filter())
    conv = nnx.Conv(3, 8, (3, 3), kernel_init=filters, rngs=nnx.Rngs(0))
    assert jnp.sum(bregjax.live_groups(conv.kernel[...], bregjax.per_filter())) == 4
    variables = nn.Dense(4, kernel_init=init).init(KEY, jnp.ones((1, 8)))
    assert jnp.sum(variables["params"]["kernel"] != 0) == 8


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (0, "density must be greater than 0, got density=0"),
        (-0.1, "got density=-0.1"),
        (1.01, "density must be at most 1, got density=1.01"),
        (float("nan"), "got density=nan"),
        ("1 %", "got density='1 %'"),
    ],
)
def test_bad_density(density, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.sparse_initializer(density)
    with pytest.raises(ValueError, match=re.escape(message)):
        bregjax.sparsify(KEY, {"w": jnp.ones((2, 2))}, density)


def test_density_as_an_array_is_a_number_and_traced_an_error():
    init = bregjax.sparse_initializer(jnp.float32(0.25))  # pyright: ignore[reportArgumentType]
    assert int(jnp.sum(init(KEY, (4, 4)) != 0)) == 4
    with pytest.raises(ValueError, match="density must be at most 1"):
        bregjax.sparse_initializer(np.array(2.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="density must be known while tracing, got density="):
        jax.jit(lambda density: bregjax.sparsify(KEY, {"w": jnp.ones((2, 2))}, density))(0.5)


def test_groups_that_are_no_regularizer():
    for groups in (bregjax.l1, "kernel", 0):
        with pytest.raises(TypeError, match="groups"):
            bregjax.sparse_initializer(0.5, groups=groups)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="groups"):
            bregjax.sparsify(KEY, {}, 0.5, groups=groups)  # pyright: ignore[reportArgumentType]


def tree(dtype=jnp.float32) -> dict:
    return {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4), dtype), "bias": jnp.ones(4, dtype)},
        "dense": {"kernel": jnp.ones((8, 5), dtype), "bias": jnp.ones(5, dtype)},
    }


def test_sparsify_thins_kernels_and_leaves_biases():
    params = tree()
    sparse = bregjax.sparsify(KEY, params, 0.25)
    assert jax.tree.structure(sparse) == jax.tree.structure(params)
    for layer, kept in (("conv", 18), ("dense", 10)):
        kernel = sparse[layer]["kernel"]
        assert jnp.sum(kernel != 0) == kept
        np.testing.assert_allclose(kernel[kernel != 0], 2.0, rtol=1e-6)
        np.testing.assert_array_equal(sparse[layer]["bias"], 1.0)


def test_sparsify_by_kernels_without_rescaling():
    sparse = bregjax.sparsify(KEY, tree(), 0.5, groups=bregjax.per_kernel(), rescale=False)
    assert jnp.sum(bregjax.live_groups(sparse["conv"]["kernel"], bregjax.per_kernel())) == 4
    assert jnp.sum(sparse["conv"]["kernel"]) == 36
    assert jnp.sum(sparse["dense"]["kernel"]) == 20


@pytest.mark.parametrize("callable_mask", [True, False])
def test_sparsify_obeys_the_mask(callable_mask):
    mask = bregjax.label_by_path({"dense/*": True}, default=False)
    sparse = bregjax.sparsify(KEY, tree(), 0.2, mask=mask if callable_mask else mask(tree()))
    assert jnp.sum(sparse["dense"]["bias"] != 0) == 1
    assert jnp.sum(sparse["dense"]["kernel"] != 0) == 8
    np.testing.assert_array_equal(sparse["conv"]["kernel"], 1.0)


def test_sparsify_rejects_a_mask_of_another_structure():
    with pytest.raises(ValueError, match="mask must have the structure of params"):
        bregjax.sparsify(KEY, tree(), 0.2, mask={"dense": True})


def test_sparsify_draws_anew_for_each_leaf():
    params = {"a": jnp.ones((30, 30)), "b": jnp.ones((30, 30))}
    sparse = bregjax.sparsify(KEY, params, 0.5)
    agreement = jnp.mean((sparse["a"] != 0) == (sparse["b"] != 0))
    assert abs(agreement - 0.5) < 4 * 0.5 / 30


def test_sparsify_keeps_dtypes_and_is_determined_by_the_key():
    sparse = bregjax.sparsify(KEY, tree(jnp.bfloat16), 0.25)
    assert {x.dtype for x in jax.tree.leaves(sparse)} == {jnp.dtype(jnp.bfloat16)}
    again = jax.jit(lambda key, params: bregjax.sparsify(key, params, 0.25))(
        KEY, tree(jnp.bfloat16)
    )
    for a, b in zip(jax.tree.leaves(sparse), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = bregjax.sparsify(jax.random.key(1), tree(jnp.bfloat16), 0.25)
    assert not np.array_equal(sparse["dense"]["kernel"], other["dense"]["kernel"])


def test_sparsify_an_nnx_model_in_place_and_linen_parameters():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    dense = model.kernel[...]
    nnx.update(model, bregjax.sparsify(KEY, nnx.state(model, nnx.Param), 0.25))
    sparse = model.kernel[...]
    assert jnp.sum(sparse != 0) == 8
    np.testing.assert_allclose(sparse, jnp.where(sparse != 0, 2 * dense, 0), rtol=1e-6)
    params = nn.Dense(4).init(KEY, jnp.ones((1, 8)))["params"]
    assert jnp.sum(bregjax.sparsify(KEY, params, 0.25)["kernel"] != 0) == 8


def test_an_empty_array_stays_as_it_is():
    empty = {"kernel": jnp.zeros((0, 3))}
    assert bregjax.sparsify(jax.random.key(0), empty, 0.5)["kernel"].shape == (0, 3)
