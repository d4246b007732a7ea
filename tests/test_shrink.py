"""Networks without their dead units: smaller, and the same function of fresh inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bregjax
from benchmarks.models.convolution import convolution

DEAD = 0.5


class Case(NamedTuple):
    build: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    layers: Sequence[str] = ()
    """whose outputs are killed at random"""
    shrinks: bool = True
    tokens: int | None = None


class Layers(nnx.Module):
    """Layers by name, and a function of them and of the inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: nnx.Module):
        self.forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs):
        return self.forward(self, *inputs)


def build(forward: Callable[..., Any], **makers: Callable[[nnx.Rngs], nnx.Module]):
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return Layers(forward, **{name: maker(rngs) for name, maker in makers.items()})

    return make


def of(layer: Any, *args: Any, **kwargs: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    return lambda rngs: layer(*args, **kwargs, rngs=rngs)


linear = functools.partial(of, nnx.Linear)
conv = functools.partial(of, nnx.Conv, kernel_size=(3, 3))


def chain(*functions: Callable | None):
    """relu between named layers a, b, c …, or the functions given."""

    def forward(m: Any, x: jax.Array) -> jax.Array:
        for name, function in zip("abcdefgh", functions, strict=False):
            x = getattr(m, name)(x)
            x = function(x) if function else x
        return x

    return forward


def flat(x: jax.Array) -> jax.Array:
    return nnx.relu(x).reshape(x.shape[0], -1)


def mean_pool(x: jax.Array) -> jax.Array:
    return nnx.relu(x).mean((1, 2))


def pooled(x: jax.Array) -> jax.Array:
    return nnx.max_pool(nnx.relu(x), (2, 2), strides=(2, 2))


def averaged(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))


def residual(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    return m.d(nnx.relu(x + m.c(nnx.relu(m.b(x)))))


def projected(m: Any, x: jax.Array) -> jax.Array:
    return m.d(flat(m.shortcut(x) + m.b(nnx.relu(m.a(x)))))


def dense_block(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    x = jnp.concatenate([x, nnx.relu(m.b(x))], axis=-1)
    x = jnp.concatenate([x, nnx.relu(m.c(x))], axis=-1)
    return m.d(flat(x))


def branches(m: Any, x: jax.Array) -> jax.Array:
    return m.c(jnp.concatenate([nnx.relu(m.a(x)), nnx.tanh(m.b(x))], axis=-1))


def gated(m: Any, x: jax.Array) -> jax.Array:
    value, gate = jnp.split(m.a(x), 2, axis=-1)
    return m.b(value * nnx.sigmoid(gate))


def two_gates(m: Any, x: jax.Array) -> jax.Array:
    return m.c(m.a(x) * nnx.silu(m.b(x)))


def shared(m: Any, x: jax.Array) -> jax.Array:
    x = nnx.relu(m.a(x))
    return m.c(nnx.relu(m.b(nnx.relu(m.b(x)))))


def bag(m: Any, tokens: jax.Array) -> jax.Array:
    return m.b(nnx.relu(m.a(m.embed(tokens).mean(1))))


def tied(m: Any, tokens: jax.Array) -> jax.Array:
    return m.embed.attend(m.b(nnx.relu(m.a(m.embed(tokens)))))


def block(m: Any, x: jax.Array) -> jax.Array:
    x = x + m.attention(m.norm1(x))
    return x + m.b(nnx.gelu(m.a(m.norm2(x))))


def stacked(layer: Callable[[nnx.Rngs], nnx.Module]) -> Callable[[nnx.Rngs], nnx.Module]:
    """Three layers in one, with an axis of layers in front of each array."""
    return nnx.split_rngs(splits=3)(nnx.vmap(layer, in_axes=(0,), out_axes=0))


def scanned(m: Any, x: jax.Array) -> jax.Array:
    @nnx.scan(in_axes=(0, 0, 0, 0, nnx.Carry), out_axes=nnx.Carry)
    def run(norm: Any, attention: Any, a: Any, b: Any, x: jax.Array) -> jax.Array:
        x = x + attention(norm(x))
        return x + b(nnx.relu(a(x)))

    return run(m.norm, m.attention, m.a, m.b, x)


def recurrent(m: Any, x: jax.Array) -> jax.Array:
    def step(h, x):
        h = nnx.relu(m.a(x) + m.b(h))
        return h, h

    start = jnp.zeros((x.shape[0], m.b.kernel[...].shape[0]))
    h, hs = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return m.c(h) + m.c(hs[0])


def scaled(m: Any, x: jax.Array) -> jax.Array:
    return m.b(nnx.relu(m.norm(m.a(x))))


def two_inputs(m: Any, x: jax.Array) -> jax.Array:
    left, right = x[:, :4], x[:, 4:]
    return m.c(nnx.relu(m.a(left)) - 2 * jnp.abs(m.b(right)))


CASES = {
    "mlp": Case(
        build(chain(nnx.relu, nnx.relu, None), a=linear(6, 20), b=linear(20, 16), c=linear(16, 3)),
        (6,),
        "ab",
    ),
    "mlp without biases": Case(
        build(
            chain(nnx.relu, None), a=linear(6, 20, use_bias=False), b=linear(20, 3, use_bias=False)
        ),
        (6,),
        "a",
    ),
    "sigmoids, which put out a half": Case(
        build(chain(nnx.sigmoid, None), a=linear(6, 20), b=linear(20, 3)), (6,), "a"
    ),
    "softplus, gelu": Case(
        build(
            chain(nnx.softplus, nnx.gelu, None),
            a=linear(6, 20),
            b=linear(20, 12),
            c=linear(12, 3),
        ),
        (6,),
        "ab",
    ),
    "dropout": Case(
        build(
            chain(nnx.relu, None, None), a=linear(6, 20), b=of(nnx.Dropout, 0.5), c=linear(20, 3)
        ),
        (6,),
        "a",
    ),
    "conv, flatten": Case(
        build(chain(nnx.relu, flat, None), a=conv(2, 8), b=conv(8, 6), c=linear(384, 3)),
        (8, 8, 2),
        "ab",
    ),
    "conv without padding": Case(
        build(
            chain(nnx.relu, flat, None),
            a=conv(2, 8, padding="VALID"),
            b=conv(8, 6, padding="VALID"),
            c=linear(96, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "strided": Case(
        build(chain(nnx.relu, flat, None), a=conv(2, 8, strides=2), b=conv(8, 6), c=linear(96, 3)),
        (8, 8, 2),
        "ab",
    ),
    "dilated": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8, kernel_dilation=2),
            b=conv(8, 6),
            c=linear(6, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "one-dimensional": Case(
        build(
            chain(nnx.relu, flat, None),
            a=of(nnx.Conv, 3, 8, kernel_size=3),
            b=of(nnx.Conv, 8, 4, kernel_size=3),
            c=linear(32, 3),
        ),
        (8, 3),
        "ab",
    ),
    "depthwise": Case(
        build(
            chain(nnx.relu, nnx.relu, mean_pool, None),
            a=conv(2, 8, use_bias=False),
            b=conv(8, 8, feature_group_count=8, use_bias=False),
            c=of(nnx.Conv, 8, 6, kernel_size=(1, 1)),
            d=linear(6, 3),
        ),
        (8, 8, 2),
        "ac",
    ),
    "groups of channels stay": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8),
            b=conv(8, 8, feature_group_count=2),
            c=linear(8, 3),
        ),
        (8, 8, 2),
        "a",
        shrinks=False,
    ),
    "transposed": Case(
        build(
            chain(nnx.relu, mean_pool, None),
            a=conv(2, 8),
            b=of(nnx.ConvTranspose, 8, 4, kernel_size=(3, 3)),
            c=linear(4, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "batch norm": Case(
        build(
            chain(None, nnx.relu, None, flat, None),
            a=conv(2, 8, use_bias=False),
            b=of(nnx.BatchNorm, 8),
            c=conv(8, 6, use_bias=False),
            d=of(nnx.BatchNorm, 6),
            e=linear(384, 3),
        ),
        (8, 8, 2),
        "ac",
    ),
    "pools": Case(
        build(chain(pooled, averaged, None), a=conv(2, 8), b=conv(8, 6), c=of(nnx.Linear, 6, 3)),
        (8, 8, 2),
        "ab",
    ),
    "residual": Case(
        build(residual, a=linear(6, 16), b=linear(16, 20), c=linear(20, 16), d=linear(16, 3)),
        (6,),
        "b",
    ),
    "residual with projection": Case(
        build(projected, a=conv(2, 8), b=conv(8, 6), shortcut=conv(2, 6), d=linear(384, 3)),
        (8, 8, 2),
        "a",
    ),
    "concatenated channels": Case(
        build(dense_block, a=conv(2, 6), b=conv(6, 4), c=conv(10, 4), d=linear(896, 3)),
        (8, 8, 2),
        "abc",
    ),
    "branches": Case(
        build(branches, a=linear(6, 10), b=linear(6, 12), c=linear(22, 3)), (6,), "ab"
    ),
    "gates of two layers": Case(
        build(two_gates, a=linear(6, 16), b=linear(6, 16), c=linear(16, 3)), (6,), "a"
    ),
    "shared weights": Case(
        build(shared, a=linear(6, 12), b=linear(12, 12), c=linear(12, 3)), (6,), "ab"
    ),
    "embedding": Case(
        build(bag, embed=of(nnx.Embed, 11, 8), a=linear(8, 12), b=linear(12, 3)),
        (5,),
        ("embed", "a"),
        tokens=11,
    ),
    "tied embedding": Case(
        build(tied, embed=of(nnx.Embed, 11, 8), a=linear(8, 12), b=linear(12, 8)),
        (5,),
        "a",
        tokens=11,
    ),
    "transformer block": Case(
        build(
            block,
            norm1=of(nnx.LayerNorm, 8),
            attention=of(nnx.MultiHeadAttention, 4, 8, decode=False),
            norm2=of(nnx.LayerNorm, 8),
            a=linear(8, 24),
            b=linear(24, 8),
        ),
        (5, 8),
        ("a", "heads"),
    ),
    "blocks stacked for a scan": Case(
        build(
            scanned,
            norm=stacked(of(nnx.LayerNorm, 8)),
            attention=stacked(of(nnx.MultiHeadAttention, 4, 8, decode=False)),
            a=stacked(linear(8, 24)),
            b=stacked(linear(24, 8)),
        ),
        (5, 8),
        "a",
    ),
    "recurrent": Case(
        build(recurrent, a=linear(4, 10), b=linear(10, 10), c=linear(10, 3)), (6, 4), "ab"
    ),
    "layer norm over units stays": Case(
        build(scaled, a=linear(6, 12), norm=of(nnx.LayerNorm, 12), b=linear(12, 3)),
        (6,),
        "a",
        shrinks=False,
    ),
    "differences": Case(
        build(two_inputs, a=linear(4, 10), b=linear(4, 10), c=linear(10, 3)), (8,), "ab"
    ),
    "convolution in a loop of patches": Case(
        build(
            chain(nnx.relu, flat, None),
            a=conv(2, 8, conv_general_dilated=convolution),
            b=conv(8, 6, conv_general_dilated=convolution),
            c=linear(384, 3),
        ),
        (8, 8, 2),
        "ab",
    ),
    "bfloat16": Case(
        build(
            chain(nnx.relu, None),
            a=linear(6, 20, param_dtype=jnp.bfloat16),
            b=linear(20, 3, param_dtype=jnp.bfloat16),
        ),
        (6,),
        "a",
    ),
}


TOLD_OTHERWISE = {
    "batch norm",  # a filter whose constant cannot be folded
    "depthwise",  # channels whose depthwise kernel is not zero
    "gates of two layers",  # one of which is zero
    "blocks stacked for a scan",  # whose biases have two axes, as weights do
    "transformer block",  # heads whose values alone are zero
    "convolution in a loop of patches",
}
"""what `shrunk_share` says in its notes that it does not see"""


def inputs(case: Case, seed: int, n: int = 3) -> jax.Array:
    key = jax.random.key(seed)
    if case.tokens:
        return jax.random.randint(key, (n, *case.shape), 0, case.tokens)
    return jax.random.normal(key, (n, *case.shape))


def kill(model: Any, case: Case, seed: int) -> None:
    """Half of the outputs of the named layers put out nothing, or what their biases say."""
    rng = np.random.default_rng(seed)
    dead: dict[int, np.ndarray] = {}
    for name in case.layers:
        if name == "heads":
            attention = model.attention
            for variable in (attention.value.kernel, attention.value.bias):
                variable[...] = variable[...].at[..., 1:3, :].set(0)
            continue
        layer = getattr(model, name)
        variable = layer.embedding if name == "embed" else layer.kernel
        size = variable[...].shape[-1]
        marks = dead.setdefault(size, rng.permutation(size) < DEAD * size)
        if name == "b" and "shared" in str(getattr(model.forward, "__name__", "")):
            marks = dead[size]
        variable[...] = jnp.where(marks, 0, variable[...])
        bias = getattr(layer, "bias", None)
        if bias is not None and bias[...] is not None:
            bias[...] = jnp.where(marks, 0, rng.normal(size=bias.shape)).astype(bias[...].dtype)


def randomized(model: Any, seed: int) -> None:
    """Statistics and scales of norms that are not those of the start."""
    key = jax.random.key(seed)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            size = module.num_features
            module.mean[...] = 0.3 * jax.random.normal(key, (size,))
            module.var[...] = 0.5 + jax.random.uniform(key, (size,))
            assert module.scale is not None
            module.scale[...] = 0.5 + jax.random.uniform(key, (size,))


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_network_is_the_same_function(name):
    case = CASES[name]
    with jax.numpy_dtype_promotion("standard"):
        model: Any = case.build(nnx.Rngs(0))
        model.eval()
        randomized(model, 5)
        kill(model, case, 1)
        if name == "batch norm":  # what a dead filter puts out is then 0 behind the ReLU
            for norm in (model.b, model.d):
                norm.bias[...] = jnp.minimum(norm.bias[...], norm.scale[...] * norm.mean[...])
        smaller, report, kept = bregjax.shrink(model, inputs(case, 2))
        fresh = inputs(case, 3, 7)
        expected = model(fresh)
        got = smaller(fresh)
        share = bregjax.shrunk_share(model, inputs(case, 2), of="multiply_adds")
        told = float(share(nnx.state(model, nnx.Param)))
    scale = float(jnp.abs(expected).max())
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=tolerance * scale
    )
    assert (report.parameters[1] < report.parameters[0]) == case.shrinks, str(report)
    total = sum(x.size for x in jax.tree.leaves(nnx.state(smaller, nnx.Param)))
    stats = sum(x.size for x in jax.tree.leaves(nnx.state(smaller, nnx.BatchStat)))
    assert report.parameters[1] == total + stats
    assert set(kept) == {array.name for array in report.arrays}
    if not case.shrinks:
        assert any(array.stays for array in report.arrays)
    measured = report.multiply_adds[1] / report.multiply_adds[0]
    if name in TOLD_OTHERWISE:
        assert abs(told - measured) > 0.01, "told right by now"
    else:
        assert told == pytest.approx(measured, rel=1e-5)


def dense(key: int, n: int, m: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(jax.random.key(key), (n, m))
    return {"kernel": kernel, "bias": jax.random.normal(jax.random.key(key + 50), (m,))}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    hidden = nnx.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def mlp_with_dead_units(count: int) -> dict[str, dict[str, jax.Array]]:
    params = {"in": dense(0, 6, 32), "out": dense(1, 32, 3)}
    params["in"]["kernel"] = params["in"]["kernel"].at[:, :count].set(0)
    return params


@pytest.mark.parametrize(("round_to", "left"), [(1, 11), (4, 12), (8, 16), (32, 32), (100, 32)])
def test_sizes_are_rounded_up(round_to, left):
    params, x = mlp_with_dead_units(21), jax.random.normal(jax.random.key(2), (4, 6))
    smaller, report, _ = bregjax.shrink_params(mlp, params, x, round_to=round_to)
    assert smaller["in"]["kernel"].shape == (6, left)
    assert smaller["in"]["bias"].shape == (left,)
    assert smaller["out"]["kernel"].shape == (left, 3)
    np.testing.assert_allclose(mlp(smaller, x), mlp(params, x), atol=1e-5)
    if left > 11:
        assert f"multiples of {round_to}" in str(report)
    assert report.multiply_adds == (4 * 9 * 32, 4 * 9 * left)


def test_kept_says_what_was_cut_out_of_each_array():
    params, x = mlp_with_dead_units(21), jax.random.normal(jax.random.key(2), (4, 6))
    smaller, _, kept = bregjax.shrink_params(mlp, params, x)
    for layer, name in (("in", "kernel"), ("in", "bias"), ("out", "kernel")):
        part = params[layer][name][np.ix_(*kept[f"{layer}/{name}"])]
        np.testing.assert_array_equal(smaller[layer][name], part)
    # Biases of dead units that are positive are in the bias behind.
    added = nnx.relu(params["in"]["bias"][:21]) @ params["out"]["kernel"][:21]
    np.testing.assert_allclose(
        smaller["out"]["bias"], params["out"]["bias"] + added, rtol=1e-5, atol=1e-6
    )


def test_units_that_nothing_listens_to_go_too_and_one_of_all_stays():
    params, x = mlp_with_dead_units(0), jax.random.normal(jax.random.key(2), (4, 6))
    params["out"]["kernel"] = params["out"]["kernel"].at[5:].set(0)
    assert bregjax.shrink_params(mlp, params, x).network["in"]["kernel"].shape == (6, 5)
    params["out"]["kernel"] = jnp.zeros((32, 3))
    assert bregjax.shrink_params(mlp, params, x).network["in"]["kernel"].shape == (6, 1)


def test_a_constant_without_a_bias_behind_stays_and_the_report_says_so():
    def without_bias(params: Any, x: jax.Array) -> jax.Array:
        return nnx.sigmoid(x @ params["in"]) @ params["out"]

    params = {"in": dense(0, 6, 8)["kernel"].at[:, :3].set(0), "out": dense(1, 8, 2)["kernel"]}
    _, report, _ = bregjax.shrink_params(without_bias, params, jnp.ones((2, 6)))
    assert report.parameters[0] == report.parameters[1]
    assert "3 along axis 1: what they put out is needed" in str(report)


def test_packed_heads_go_whole():
    """Query, key and value in one kernel (features, 3, heads, head_dim)."""

    def attention(params: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(jnp.einsum("bsd,dthe->tbshe", x, params["qkv"]), 0, 0)
        scores = jnp.einsum("bshe,bthe->bhst", q, k) / 2
        mixed = jnp.einsum("bhst,bthe->bshe", jax.nn.softmax(scores), v)
        return jnp.einsum("bshe,hed->bsd", mixed, params["out"])

    key = jax.random.key(0)
    params = {
        "qkv": jax.random.normal(key, (8, 3, 4, 2)).at[:, 2, 1:3].set(0),
        "out": jax.random.normal(key, (4, 2, 8)),
    }
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    smaller = bregjax.shrink_params(attention, params, x).network
    assert smaller["qkv"].shape == (8, 3, 2, 2)
    assert smaller["out"].shape == (2, 2, 8)
    fresh = jax.random.normal(jax.random.key(2), (3, 7, 8))
    np.testing.assert_allclose(attention(smaller, fresh), attention(params, fresh), atol=1e-4)


def test_sizes_that_a_program_writes_as_constants_stay():
    def fixed(params: Any, x: jax.Array) -> jax.Array:
        hidden = nnx.relu(x @ params["in"]["kernel"] + params["in"]["bias"]).reshape(-1, 32)
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    params, x = mlp_with_dead_units(21), jax.random.normal(jax.random.key(2), (4, 6))
    smaller, report, _ = bregjax.shrink_params(fixed, params, x)
    assert smaller["in"]["kernel"].shape == (6, 32)
    assert "the program does not run without them: cannot reshape array" in str(report)


@pytest.mark.parametrize("spread", [jnp.var, jnp.std])
def test_a_program_may_hold_nan(spread):
    """`jnp.var` and `jnp.std` put it there, for divisions by too few degrees of freedom."""

    def standardized(params: Any, x: jax.Array) -> jax.Array:
        x = (x - x.mean(-1, keepdims=True)) / (1 + spread(x, axis=-1, keepdims=True))
        hidden = nnx.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    rng = np.random.default_rng(0)
    params: Any = {
        "in": {"kernel": rng.normal(size=(8, 16)), "bias": rng.normal(size=16)},
        "out": {"kernel": rng.normal(size=(16, 3)), "bias": rng.normal(size=3)},
    }
    params = jax.tree.map(jnp.float32, params)
    params["out"]["kernel"] = params["out"]["kernel"].at[4:].set(0)
    x = jnp.float32(rng.normal(size=(5, 8)))
    smaller, _, _ = bregjax.shrink_params(standardized, params, x)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (smaller, params)]
    assert sizes == [8 * 4 + 4 + 4 * 3 + 3, 8 * 16 + 16 + 16 * 3 + 3]
    np.testing.assert_allclose(standardized(smaller, x), standardized(params, x), rtol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"model must be a flax\.nnx\.Module"):
        bregjax.shrink("model", jnp.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="round_to must be a whole number"):
        bregjax.shrink_params(mlp, mlp_with_dead_units(1), jnp.ones((2, 6)), round_to=0)
    with pytest.raises(ValueError, match=r"example must have entries, got .* shape \(0, 6\)"):
        bregjax.shrink_params(mlp, mlp_with_dead_units(1), jnp.ones((0, 6)))


def test_a_network_that_checks_its_widths_is_left_alone():
    def network(params, x):
        hidden = jax.nn.relu(x @ params["in"])
        assert hidden.shape[-1] == 8
        return hidden @ params["out"]

    params = {"in": jnp.ones((3, 8)).at[:, 2:].set(0.0), "out": jnp.ones((8, 2))}
    smaller, report, _ = bregjax.shrink_params(network, params, jnp.ones((2, 3)))
    assert smaller["in"].shape == (3, 8)
    assert "in" in report
    assert "nowhere" not in report
    with pytest.raises(KeyError, match="nowhere"):
        report["nowhere"]


def test_the_share_of_a_network_without_live_units_has_one_of_them():
    params, x = mlp_with_dead_units(32), jax.random.normal(jax.random.key(2), (4, 6))
    before, after = bregjax.shrink_params(mlp, params, x).report.parameters
    assert after == 6 + 1 + 3 + 3
    share = bregjax.shrunk_share_params(mlp, params, x)
    assert float(share(params)) == pytest.approx(after / before)
    with pytest.raises(ValueError, match=r"params has \['params/.*, but the network \['"):
        share({"params": params})


def test_the_share_of_bytes_knows_the_dtypes():
    def network(params, x):
        hidden = nnx.relu(x @ params["in"].astype(x.dtype))
        return nnx.relu(hidden @ params["middle"]) @ params["out"]

    sizes = {"in": (6, 8), "middle": (8, 5), "out": (5, 2)}
    params = {name: dense(i, *size)["kernel"] for i, (name, size) in enumerate(sizes.items())}
    params["in"] = params["in"].at[:, 3:].set(0).astype(jnp.bfloat16)
    x = jnp.ones((2, 6))
    report = bregjax.shrink_params(network, params, x).report
    assert report.bytes == (2 * 48 + 4 * 50, 2 * 18 + 4 * 25)
    for of in ("parameters", "bytes"):
        before, after = getattr(report, of)
        share = bregjax.shrunk_share_params(network, params, x, of=of)
        assert float(share(params)) == pytest.approx(after / before)


def test_what_a_loop_does_to_units_is_not_guessed_from_shapes():
    """The example is too small for the loop to begin, so that no check of its outputs sees it."""

    def network(params, x):
        def spread(hidden):
            return jnp.cumsum(hidden, axis=-1) / 20

        hidden = nnx.relu(x @ params["in"])
        hidden = jax.lax.while_loop(lambda hidden: hidden.sum() > 100, spread, hidden)
        return hidden @ params["out"]

    params = {"in": dense(0, 6, 8)["kernel"].at[:, :3].set(0), "out": dense(1, 8, 2)["kernel"]}
    smaller, report, _ = bregjax.shrink_params(network, params, jnp.ones((2, 6)))
    assert "3 along axis 1: they go through while" in str(report)
    fresh = 100 * jax.random.normal(jax.random.key(2), (4, 6))
    np.testing.assert_allclose(network(smaller, fresh), network(params, fresh), rtol=1e-5)


def test_units_go_where_sums_run_over_another_axis():
    def network(params, x):
        hidden = jnp.cumsum(nnx.relu(x @ params["in"]), axis=1)
        return hidden @ params["out"]

    params = {"in": dense(0, 6, 8)["kernel"].at[:, :3].set(0), "out": dense(1, 8, 2)["kernel"]}
    x = jax.random.normal(jax.random.key(2), (2, 4, 6))
    smaller = bregjax.shrink_params(network, params, x).network
    assert smaller["in"].shape == (6, 5)
    np.testing.assert_allclose(network(smaller, x), network(params, x), rtol=1e-5, atol=1e-6)


def test_units_that_only_dead_units_listen_to_go_too():
    def recurrent(params, x):
        hidden = nnx.relu(x @ params["first"])
        for _ in range(2):
            hidden = nnx.relu(hidden @ params["again"])
        return hidden @ params["out"]

    sizes = {"first": (6, 8), "again": (8, 8), "out": (8, 2)}
    params = {name: dense(i, *size)["kernel"] for i, (name, size) in enumerate(sizes.items())}
    params["out"] = params["out"].at[5:].set(0)
    params["again"] = params["again"].at[5:, :5].set(0)  # they listen to each other alone
    x = jax.random.normal(jax.random.key(2), (4, 6))
    smaller = bregjax.shrink_params(recurrent, params, x).network
    assert smaller["again"].shape == (5, 5)
    np.testing.assert_allclose(recurrent(smaller, x), recurrent(params, x), rtol=1e-5, atol=1e-6)


def sigmoids(params, x):
    return nnx.sigmoid(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize(
    ("network", "goes"),
    [
        (lambda params, x: sigmoids(params["a"], x) - sigmoids(params["b"], x) + params["c"], 6),
        (lambda params, x: params["c"] - (sigmoids(params["a"], x) - sigmoids(params["b"], x)), 6),
        # Used twice, it takes in what lacks twice; and two different constants are too many.
        (lambda params, x: jnp.tanh(sigmoids(params["a"], x) + params["c"]) @ params["d"], 3),
        (lambda params, x: [sigmoids(params["a"], y) + params["c"] for y in (x, x**2)], 3),
        (lambda params, x: [sigmoids(params[name], x) + params["c"] for name in "ab"], 0),
    ],
)
def test_biases_take_in_what_several_layers_lack(network, goes):
    def layer(key):
        kernel = dense(key, 6, 8)["kernel"].at[:, :3].set(0)
        return {"in": kernel, "out": dense(key + 1, 8, 4)["kernel"]}

    params = {"a": layer(0), "b": layer(2), "c": jnp.ones(4), "d": dense(4, 4, 4)["kernel"]}
    x = jax.random.normal(jax.random.key(5), (4, 6))
    smaller, report, _ = bregjax.shrink_params(network, params, x)
    assert sum(8 - smaller[name]["in"].shape[1] for name in "ab") == goes
    assert report["c"].folded == (goes > 0)
    fresh = jax.random.normal(jax.random.key(6), (7, 6))
    for got, expected in zip(network(smaller, fresh), network(params, fresh), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_outputs_may_be_masked():
    def network(params, x):
        return jnp.where(jnp.arange(3) == 1, -jnp.inf, mlp(params, x))

    params, x = mlp_with_dead_units(21), jax.random.normal(jax.random.key(2), (4, 6))
    smaller = bregjax.shrink_params(network, params, x).network
    assert smaller["in"]["kernel"].shape == (6, 11)
    np.testing.assert_allclose(network(smaller, x), network(params, x), rtol=1e-5, atol=1e-5)


def test_dead_units_that_stay_are_counted_by_the_reason():
    def network(params, x):
        hidden = nnx.relu(x @ params["in"])
        return jnp.cumsum(hidden[:, :4], axis=1), hidden @ params["out"]

    params = {"in": dense(0, 6, 16)["kernel"].at[:, 2:7].set(0), "out": dense(1, 16, 2)["kernel"]}
    report = bregjax.shrink_params(network, params, jnp.ones((2, 6)), round_to=7).report
    assert report["in"].after == (6, 14)
    assert report["in"].stays == (
        "2 along axis 1: they go through cumsum; 1 along axis 1: sizes are multiples of 7"
    )


def packed_attention(params, x):
    """Query, key and value in one kernel (features, 3·heads·head_dim), told apart by a reshape."""
    batch, length, _ = x.shape
    q, k, v = jnp.moveaxis((x @ params["qkv"]).reshape(batch, length, 3, -1, 2), 2, 0)
    mixed = jax.nn.softmax(jnp.einsum("bshe,bthe->bhst", q, k) / 2) @ jnp.moveaxis(v, 1, 2)
    return jnp.moveaxis(mixed, 1, 2).reshape(batch, length, -1) @ params["out"]


def packed_gate(params, x):
    value, gate = jnp.moveaxis((x @ params["qkv"]).reshape(*x.shape[:-1], 2, -1), -2, 0)
    return (value * nnx.sigmoid(gate)) @ params["out"]


@pytest.mark.parametrize(("network", "parts"), [(packed_attention, 3), (packed_gate, 2)])
def test_slices_along_any_axis_of_a_split_may_be_units(network, parts):
    params = {
        "qkv": dense(0, 6, parts * 8)["kernel"],
        "out": dense(1, 8, 6)["kernel"].at[2:6].set(0),
    }
    x = jax.random.normal(jax.random.key(2), (2, 5, 6))
    smaller = bregjax.shrink_params(network, params, x).network
    assert smaller["qkv"].shape == (6, parts * 4)
    assert smaller["out"].shape == (4, 6)
    fresh = jax.random.normal(jax.random.key(3), (3, 7, 6))
    np.testing.assert_allclose(network(smaller, fresh), network(params, fresh), atol=1e-4)


@pytest.mark.parametrize(
    ("pick", "left"),
    [
        (lambda hidden, place: jax.lax.dynamic_slice_in_dim(hidden, place[0], 2, axis=1), 4),
        (lambda hidden, place: hidden[:, place[0]], 4),
        (lambda hidden, place: jnp.take_along_axis(hidden, place[:, None, None], axis=1), 4),
        # Where the branches put out different constants, the unit stays.
        (lambda hidden, place: jax.lax.cond(place[0] > 1, jnp.tanh, jnp.sin, hidden), 5),
    ],
)
def test_places_and_branches_may_depend_on_the_inputs(pick, left):
    def network(params, x, place):
        hidden = nnx.relu(x @ params["in"] + params["places"])
        return pick(hidden, place) @ params["out"] + params["bias"]

    params = {
        "in": dense(0, 6, 8)["kernel"].at[:, :5].set(0),
        "places": dense(1, 4, 8)["kernel"].at[:, :3].set(0).at[:, 3].set(1),
        "out": dense(2, 8, 2)["kernel"],
        "bias": jnp.ones(2),
    }
    x = jax.random.normal(jax.random.key(2), (2, 4, 6))
    smaller = bregjax.shrink_params(network, params, x, jnp.zeros(2, int)).network
    assert smaller["in"].shape == (6, left)
    for place in ([0, 1], [2, 3]):
        expected = network(params, x, jnp.array(place))
        got = network(smaller, x, jnp.array(place))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def unread(kernel: Any, count: int = 2) -> None:
    """Nothing listens to these units any more."""
    kernel[...] = kernel[...].at[:count].set(0)


@pytest.mark.parametrize(
    "cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell], ids=repr
)
def test_recurrent_cells_start_with_the_state_that_is_left(cell):
    model: Any = build(lambda m, x: m.b(m.a(x)[:, -1]), b=linear(6, 3))(nnx.Rngs(0))
    model.a = nnx.RNN(cell(4, 6, rngs=nnx.Rngs(1)))
    unread(model.b.kernel)
    for name, layer in vars(model.a.cell).items():
        if name in ("hi", "hf", "hg", "ho", "dense_h"):
            unread(layer.kernel)
    smaller = bregjax.shrink(model, jax.random.normal(jax.random.key(2), (2, 5, 4))).network
    assert smaller.a.cell.hidden_features == 4
    fresh = jax.random.normal(jax.random.key(3), (3, 5, 4))
    np.testing.assert_allclose(smaller(fresh), model(fresh), rtol=1e-5, atol=1e-6)


def test_layers_of_flax_know_their_new_sizes():
    def forward(m, x):
        hidden = nnx.relu(m.norm(m.up(nnx.relu(m.conv(x))))).mean((1, 2))
        return m.out(nnx.relu(m.einsum(hidden)))

    make = build(
        forward,
        conv=conv(2, 8),
        up=of(nnx.ConvTranspose, 8, 6, kernel_size=(3, 3), transpose_kernel=True),
        norm=of(nnx.InstanceNorm, 6),
        einsum=of(nnx.Einsum, "bi,ihd->bhd", (6, 4, 3), (4, 3)),
        out=of(nnx.LinearGeneral, (4, 3), 2, axis=(-2, -1)),
    )
    model: Any = make(nnx.Rngs(0))
    unread(model.out.kernel, 1)
    unread(model.einsum.kernel)
    model.up.kernel[...] = model.up.kernel[...].at[..., :3].set(0)
    x = jax.random.normal(jax.random.key(2), (2, 8, 8, 2))
    smaller, report, _ = bregjax.shrink(model, x)
    assert (smaller.up.in_features, smaller.up.out_features) == (5, 4)
    assert smaller.up.kernel_shape == (3, 3, 4, 5)
    assert smaller.norm.num_features == 4
    assert (smaller.einsum.kernel_shape, smaller.einsum.bias_shape) == ((4, 3, 3), (3, 3))
    assert not report["einsum/bias"].stays  # a bias of zero is not a dead unit
    np.testing.assert_allclose(smaller(x), model(x), rtol=1e-4, atol=1e-6)


def test_a_scale_that_depends_on_the_number_of_units_is_seen_where_the_example_hides_it():
    def attention(params, x):
        query, key, value = (x @ params[name] for name in ("query", "key", "value"))
        scores = query @ jnp.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
        return jax.nn.softmax(scores) @ value

    names = ("query", "key", "value")
    params = {name: dense(i, 6, 8)["kernel"] for i, name in enumerate(names)}
    params["query"] = params["query"].at[:, :3].set(0) / 1e6  # all scores are nearly zero
    x = jax.random.normal(jax.random.key(3), (2, 5, 6))
    smaller, report, _ = bregjax.shrink_params(attention, params, x)
    assert "3 along axis 1: the program computes with their number" in report["query"].stays
    np.testing.assert_array_equal(smaller["query"], params["query"])


def test_axes_of_sums_and_biases_may_be_in_another_order():
    """Of a layer of experts; what their dead units put out goes into the biases."""

    def experts(params, x):
        hidden = nnx.sigmoid(jnp.einsum("bi,hie->beh", x, params["in"]))
        return jnp.einsum("beh,eho->beo", hidden, params["out"]) + params["bias"].T

    key = jax.random.key(0)
    params = {
        "in": jax.random.normal(key, (8, 6, 3)).at[:4].set(0),
        "out": jax.random.normal(key, (3, 8, 2)),
        "bias": jax.random.normal(key, (2, 3)),
    }
    x = jax.random.normal(jax.random.key(1), (4, 6))
    smaller = bregjax.shrink_params(experts, params, x).network
    assert smaller["in"].shape == (4, 6, 3)
    np.testing.assert_allclose(experts(smaller, x), experts(params, x), rtol=1e-5, atol=1e-6)


def test_zeros_that_a_transposed_convolution_puts_in_are_not_counted():
    """Each of 4 · 4 inputs meets each weight once. Of two branches the more expensive counts."""

    def network(params, x):
        up = jax.lax.conv_transpose(x, params, (2, 2), "SAME")
        return jax.lax.cond(x.sum() > 0, lambda: up * 2, lambda: up @ jnp.ones((5, 5)))

    params, x = jnp.ones((2, 2, 3, 5)), jnp.ones((1, 4, 4, 3))
    report = bregjax.shrink_params(network, params, x).report
    assert report.multiply_adds[0] == 4 * 4 * params.size + 8 * 8 * 5 * 5
    share = bregjax.shrunk_share_params(network, params, x, of="multiply_adds")
    assert float(share(params)) == pytest.approx(1)
