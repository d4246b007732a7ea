import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

import bregjax
from benchmarks import models
from benchmarks.models import layers
from benchmarks.models.densenet import DenseLayer

# A small network of every family, with the shape of its images.
SMALL = {
    "mlp": (functools.partial(models.MLP, (36, 16, 10)), (6, 6, 1)),
    "convnet": (models.ConvNet, (28, 28, 1)),
    "lenet5": (models.LeNet5, (28, 28, 1)),
    "resnet": (functools.partial(models.ResNet, (1, 1), (4, 6)), (8, 8, 3)),
    "autoencoder": (functools.partial(models.Autoencoder, 36, 3), (6, 6, 1)),
    "densenet": (functools.partial(models.DenseNet, 2, 4, image_shape=(6, 6, 1)), (6, 6, 1)),
}
small = pytest.mark.parametrize(("make", "shape"), SMALL.values(), ids=SMALL.keys())


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def filled(make, seed=0):
    """The model with NumPy's random numbers in every variable: zeros of biases hide errors."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        kernel = 1.4 * rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]))
        values = rng.uniform(0.5, 1.5, x.shape) if path[-2].key in ("var", "scale") else kernel
        return jnp.asarray(values, jnp.float32)

    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.tree.map_with_path(draw, state))


@jax.jit
def apply(model, images):
    return model(images)


def convolve(x, kernel, bias: Any = 0.0, padding=0):
    """Cross-correlation in float64, of NHWC images with an HWIO kernel."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, np.asarray(kernel, np.float64)) + bias


def affine(x, layer):
    return x @ np.asarray(layer.kernel, np.float64) + np.asarray(layer.bias)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        # The MLP of the paper.
        (functools.partial(models.MLP, (784, 200, 80, 10)), 173_890),
        (models.ConvNet, (25 + 1) * 64 + (25 * 64 + 1) * 64 + 1025 * 128 + 129 * 10),
        # The weights of Caffe's LeNet-5, and its biases.
        (models.LeNet5, 430_500 + 20 + 50 + 500 + 10),
        # The usual PyTorch versions for CIFAR-10.
        (models.resnet18, 11_173_962),
        # Option A, as in He et al.'s table 6, plus two 1×1 convolutions and their normalizations.
        (models.resnet20, 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        (models.Autoencoder, 6 * 785 * 784 + (1 + 2 + 3 + 4 + 5 + 6)),
        (functools.partial(models.Autoencoder, skips=False), 6 * 785 * 784),
        # The published DenseNet less the normalizations that it never applies.
        (models.DenseNet, 28_229 - 122),
    ],
)
def test_the_number_of_parameters_is_the_known_one(make, count):
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


@small
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_shapes_and_dtypes(make, shape, dtype):
    def run(images):
        model = make(dtype=dtype, rngs=nnx.Rngs(0))
        return model(images), nnx.state(model)

    outputs, state = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert outputs.shape == ((2, *shape) if make is SMALL["autoencoder"][0] else (2, 10))
    assert outputs.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (models.resnet18, (32, 32, 3)),
        (models.resnet20, (32, 32, 3)),
        (models.DenseNet, (28, 28, 1)),
    ],
)
def test_the_large_networks_accept_their_images(make, shape):
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    logits = nnx.eval_shape(lambda x: make(classes=7, rngs=nnx.Rngs(0))(x), images)
    assert logits.shape == (5, 7)


def matrix_products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # closed, or as jax.checkpoint keeps it
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


@small
def test_every_matrix_product_is_in_the_dtype_of_the_computation(make, shape):
    def run(images):
        return make(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(images)

    products = list(matrix_products(jax.make_jaxpr(run)(jnp.ones((2, *shape))).jaxpr))
    assert len(products) >= 2
    assert {x.aval.dtype for p in products for x in p.invars} == {jnp.dtype("bfloat16")}


def test_kernels_have_hes_variance_and_biases_are_zero():
    net = models.ConvNet(rngs=nnx.Rngs(0))
    np.testing.assert_allclose(net.conv2.kernel[...].var(), 2 / (25 * 64), rtol=0.02)
    np.testing.assert_allclose(net.linear1.kernel[...].var(), 2 / 1024, rtol=0.02)
    variables = nnx.to_flat_state(nnx.state(net))
    assert not any(x[...].any() for path, x in variables if path[-1] == "bias")


def test_a_dense_layer_counts_all_its_sources_as_fan_in():
    layer = DenseLayer(5, 12, 12, rngs=nnx.Rngs(0))
    kernels = np.stack([kernel[...] for kernel in layer.kernels])
    assert kernels.shape == (5, 3, 3, 12, 12)
    np.testing.assert_allclose(kernels.var(), 2 / (5 * 9 * 12), rtol=0.05)
    assert not layer.bias[...].any()


@small
def test_seeds_under_vmap_are_the_single_models(make, shape):
    images = normal(2, 3, *shape)
    pairs = [nnx.split(filled(make, seed)) for seed in range(2)]
    graphdef, states = pairs[0][0], [state for _, state in pairs]

    def run(state, images):
        model = nnx.merge(graphdef, state)
        model.train()
        outputs = model(images)
        model.eval()
        return outputs, model(images), jax.tree.leaves(nnx.state(model))

    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *x: jnp.stack(x), *states), images)
    alone = jax.jit(run)
    for index in range(2):
        jax.tree.map(
            lambda x, y, i=index: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-4),
            together,
            alone(states[index], images[index]),
        )


def test_batch_statistics_move_in_training_only():
    make, shape = SMALL["resnet"]
    graphdef, state = nnx.split(filled(make))

    @functools.partial(jax.jit, static_argnames="training")
    def run(state, images, *, training):
        model = nnx.merge(graphdef, state)
        (model.train if training else model.eval)()
        return model(images), nnx.state(model)

    def statistics(state):
        return jax.tree.leaves(nnx.filter_state(state, nnx.BatchStat))

    images = 3 + 2 * normal(8, *shape)
    before, same = run(state, images, training=False)
    assert all((a == b).all() for a, b in zip(*map(statistics, (state, same)), strict=True))
    _, moved = run(state, images, training=True)
    assert all((a != b).any() for a, b in zip(*map(statistics, (state, moved)), strict=True))
    after, _ = run(moved, images, training=False)
    assert not np.allclose(before, after)
    # In evaluation an image's logits do not depend on its batch.
    part, _ = run(moved, images[:2], training=False)
    np.testing.assert_allclose(after[:2], part, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_float32_statistics_and_returns_its_inputs_dtype():
    norm = layers.BatchNorm(3, rngs=nnx.Rngs(0))
    x = (300 + normal(64, 4, 4, 3)).astype(jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)
    # In evaluation the running mean, here 30.0…, is not rounded to bfloat16 (steps of 1/8).
    norm.var[...] = jnp.full(3, 1e-4)
    norm.mean[...] = jnp.full(3, 30.03125)
    norm.eval()
    shifted = norm(jnp.full((1, 1, 1, 3), 30.0, jnp.bfloat16))
    np.testing.assert_allclose(np.float32(shifted), -0.03125 / np.sqrt(1e-4 + 1e-5), rtol=1e-2)


def test_batch_norm_divides_the_gradient_of_a_dead_filter_by_the_root_of_epsilon():
    layer = layers.ConvNorm(3, 4, 3, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = layer.conv.kernel[...].at[..., 2:].set(0)
    images, direction = normal(8, 6, 6, 3), normal(8, 6, 6, 4, seed=2)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def through(kernel, target, *, norm):
        new = nnx.merge(graphdef, params, rest, copy=True)
        new.conv.kernel[...] = kernel
        return jnp.vdot((new if norm else new.conv)(images), target)

    kernel = layer.conv.kernel[...]
    gradient = jax.grad(functools.partial(through, norm=True))(kernel, direction)
    centred = direction - direction.mean((0, 1, 2))
    plain = jax.grad(functools.partial(through, norm=False))(kernel, centred)
    np.testing.assert_allclose(gradient[..., 2:], 1e-5**-0.5 * plain[..., 2:], rtol=1e-3)
    live, dead = (jnp.linalg.norm(gradient[..., part]) for part in (slice(2), slice(2, None)))
    assert dead > 100 * live


@pytest.mark.parametrize("name", ["mlp", "densenet"])
def test_final_relu_makes_logits_nonnegative_and_is_off_by_default(name):
    make, images = SMALL[name][0], normal(20, 6, 6, 1)
    plain = apply(filled(make), images)
    published = apply(filled(functools.partial(make, final_relu=True)), images)
    assert plain.min() < 0
    np.testing.assert_array_equal(published, np.maximum(plain, 0))


def test_convnet_is_the_computation_of_its_description():
    model = filled(models.ConvNet)
    x = images = normal(2, 28, 28, 1)
    for layer in (model.conv1, model.conv2):
        x = relu(convolve(x, layer.kernel[...], layer.bias[...]))  # here ReLU first, then pooling
        x = np.max([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0)
    x = affine(relu(affine(x.reshape(2, -1), model.linear1)), model.linear2)
    np.testing.assert_allclose(apply(model, images), x, rtol=1e-4, atol=1e-5)


def test_lenet5_has_no_relu_but_that_of_the_dense_layer():
    model = filled(models.LeNet5)
    x = images = normal(2, 28, 28, 1)
    for layer in (model.conv1, model.conv2):
        x = convolve(x, layer.kernel[...], layer.bias[...])
        x = np.max([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0)
        assert x.min() < 0
    x = affine(relu(affine(x.reshape(2, -1), model.linear1)), model.linear2)
    np.testing.assert_allclose(apply(model, images), x, rtol=1e-4, atol=1e-5)


def test_residual_blocks_are_the_computation_of_their_description():
    """In evaluation mode; a convolution of stride 2 is padded evenly, as in PyTorch."""
    model = filled(SMALL["resnet"][0])
    model.eval()

    def conv_norm(x, layer, stride=1):
        kernel, norm = layer.conv.kernel[...], layer.norm
        x = convolve(x, kernel, padding=kernel.shape[0] // 2)[:, ::stride, ::stride]
        x = (x - norm.mean[...]) / np.sqrt(np.asarray(norm.var[...], np.float64) + 1e-5)
        return x * norm.scale[...] + norm.bias[...]

    images = normal(2, 8, 8, 3)
    x = relu(conv_norm(images, model.stem))
    first, second = model.blocks
    x = relu(x + conv_norm(relu(conv_norm(x, first.first)), first.second))
    y = conv_norm(relu(conv_norm(x, second.first, 2)), second.second)
    x = relu(y + conv_norm(x, second.shortcut, 2))
    np.testing.assert_allclose(
        apply(model, images), affine(x.mean((1, 2)), model.head), rtol=1e-4, atol=1e-5
    )


def test_autoencoder_is_the_computation_of_its_description():
    model = filled(SMALL["autoencoder"][0])
    images = normal(5, 6, 6, 1)
    states = [np.asarray(images, np.float64).reshape(5, 36)]
    for block in model.blocks:
        skips = np.asarray(block.skips[...], np.float64)
        assert len(skips) == len(states)
        weighted = sum(s * x for s, x in zip(skips, states, strict=True))
        states.append(relu(affine(states[-1], block.linear)) + weighted)
    np.testing.assert_allclose(
        apply(model, images), states[-1].reshape(images.shape), rtol=1e-4, atol=1e-5
    )
    assert states[-1].min() < 0


def test_skips_start_without_effect_are_trainable_and_can_be_selected():
    images = normal(5, 6, 6, 1)
    model = models.Autoencoder(36, 3, rngs=nnx.Rngs(0))
    plain = models.Autoencoder(36, 3, skips=False, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model(images), plain(images))
    grads = nnx.grad(lambda model: jnp.mean((model(images) - images) ** 2))(model)
    assert all((block.skips[...] != 0).all() for block in grads["blocks"].values())
    params = nnx.state(model, nnx.Param)
    labels = bregjax.label_by_path({"*/skips": "skips"}, default="other")(params)
    assert jax.tree.leaves(labels).count("skips") == 3
    assert sum(jax.tree.leaves(bregjax.weight_mask(params))) == 3


def test_densenet_is_a_convolution_of_the_concatenated_sources():
    model = filled(SMALL["densenet"][0])
    images = normal(3, 6, 6, 1)
    states = convolve(images, model.stem.kernel[...], padding=1)
    for target in model.targets:
        kernel = np.concatenate([k[...] for k in target.kernels], axis=2)
        state = relu(convolve(states, kernel, target.bias[...], padding=1))
        states = np.concatenate([states, state], axis=-1)
    logits = affine(states[..., -1].reshape(3, -1), model.head)
    np.testing.assert_allclose(apply(model, images), logits, rtol=1e-4, atol=1e-5)


def test_densenet_names_the_connections_that_survive():
    model = filled(functools.partial(models.DenseNet, 3, 4))
    norms = np.asarray(model.connection_norms())
    np.testing.assert_array_equal(norms > 0, np.tri(4))
    kernel = np.asarray(model.targets[2].kernels[1][...])
    np.testing.assert_allclose(norms[2, 1], np.linalg.norm(kernel.ravel()))
    model.targets[2].kernels[1][...] = jnp.zeros((3, 3, 4, 4))
    alive = np.tri(4)
    alive[2, 1] = 0
    np.testing.assert_array_equal(model.connection_norms() > 0, alive)


def test_one_group_norm_over_all_axes_removes_whole_connections():
    model = filled(functools.partial(models.DenseNet, 3, 4))
    model.targets[1].kernels[0][...] *= 1e-3
    group = bregjax.group_l2((0, 1, 2, 3))
    for target in model.targets:
        for kernel in target.kernels:
            kernel[...] = group.prox(kernel[...], 0.01)
    alive = np.tri(4)
    alive[1, 0] = 0
    np.testing.assert_array_equal(model.connection_norms() > 0, alive)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_small_conv_net_against_numpy(normalized):
    net = filled(functools.partial(models.SmallConvNet, 6, normalized=normalized))
    net.eval()
    images = normal(3, 6, 6, 1)

    def layer(x, block, stride):
        plain = block.conv if normalized else block
        bias = 0.0 if normalized else np.asarray(plain.bias, np.float64)
        x = convolve(x, plain.kernel, bias, padding=1)[:, ::stride, ::stride]
        if normalized:
            mean, var, scale, shift = (
                np.asarray(getattr(block.norm, name), np.float64)
                for name in ("mean", "var", "scale", "bias")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * scale + shift
        return relu(x)

    expected = layer(layer(images, net.conv1, 1), net.conv2, 2).reshape(3, -1)
    # Up to 7 in size; one is 0.008 where they cancel, and float32 rounds at the size of the terms.
    expected = affine(expected, net.linear)
    np.testing.assert_allclose(apply(net, images), expected, rtol=2e-5, atol=1e-6)


def test_the_transformer_looks_back_and_not_ahead():
    net = filled(functools.partial(models.Transformer, vocabulary=9, length=7, width=8, heads=2))
    tokens = jax.random.randint(jax.random.key(0), (2, 7), 0, 9)
    logits = apply(net, tokens)
    assert logits.shape == (2, 7, 9)
    changed = apply(net, tokens.at[:, 3].set((tokens[:, 3] + 1) % 9))
    np.testing.assert_allclose(changed[:, :3], logits[:, :3], rtol=1e-5)
    # All later ones see it, also where the token before them is the same.
    assert np.abs(changed[:, 3:] - logits[:, 3:]).max(axis=-1).min() > 1e-3
