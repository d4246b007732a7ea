"""Counts, ranks and the report."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import bregjax


@pytest.fixture(scope="module")
def counts(reference) -> dict[str, np.ndarray]:
    with np.load(reference / "density_counts.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(counts) -> dict[str, jax.Array]:
    """The weights of the record in Flax's layout."""
    layouts = {"conv": (2, 3, 1, 0), "lin": (1, 0)}
    return {
        name: jnp.asarray(x.transpose(layouts[name[:-1]]), jnp.float32)
        for name, x in counts.items()
        if name[:-1] in layouts
    }


def test_reference_densities(counts, weights):
    conv = bregjax.label_by_path({"conv*": True}, default=False)
    linear = bregjax.label_by_path({"lin*": True}, default=False)
    ours = {
        "net": bregjax.density(weights),
        "linear": bregjax.density(weights, mask=linear),
        "conv": bregjax.density(weights, bregjax.per_kernel(), mask=conv),
    }
    for name, value in ours.items():
        np.testing.assert_allclose(value, counts[name], rtol=1e-6)
    nodes = [bregjax.density(weights[name], bregjax.per_neuron()) for name in ("lin0", "lin1")]
    np.testing.assert_allclose(nodes, counts["node"], rtol=1e-6)


def test_density_leaves_biases_out_and_counts_leaves_by_size():
    params = {
        "a": {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "bias": jnp.ones(2)},
        "b": {"kernel": jnp.ones((2, 1))},
    }
    assert bregjax.density(params) == 0.5
    np.testing.assert_allclose(bregjax.density(params, bregjax.per_neuron()), 2 / 3, rtol=1e-6)
    everything = jax.tree.map(lambda _: True, params)
    np.testing.assert_allclose(bregjax.density(params, mask=everything), 5 / 8, rtol=1e-6)
    result = jax.jit(bregjax.density)(params)
    assert (result.dtype, result.shape, float(result)) == (jnp.float32, (), 0.5)


def test_density_counts_exactly_in_narrow_dtypes():
    # Summed in bfloat16 a count would stop at 256.
    x = jnp.zeros((1000, 10), jnp.bfloat16).at[:777].set(1.0)
    np.testing.assert_allclose(bregjax.density(x), 0.777, rtol=1e-6)


def test_density_of_nothing_and_of_a_wrong_mask():
    with pytest.raises(ValueError, match="mask marks no entry"):
        bregjax.density({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match="mask must have the structure of params"):
        bregjax.density({"a": jnp.ones((2, 2))}, mask=[True, False])


def test_arrays_without_entries_do_not_count():
    empty = {"a": jnp.zeros((0, 3)), "b": jnp.zeros((3, 0))}
    params = empty | {"w": jnp.array([[1.0, 0.0], [0.0, 0.0]])}
    assert bregjax.density(params) == 0.25
    assert bregjax.relative_rank(params) == 0.5
    assert [layer.name for layer in bregjax.sparsity_report(params).layers] == ["w"]
    assert [int(bregjax.effective_rank(x)) for x in empty.values()] == [0, 0]
    for count in (bregjax.density, bregjax.relative_rank, bregjax.sparsity_report):
        with pytest.raises(ValueError, match="mask marks no entry of params"):
            count(empty)


def test_live_groups_of_a_conv_kernel():
    x = jnp.zeros((3, 3, 2, 4)).at[0, 1, 1, 2].set(1.0).at[2, 2, 1, 3].set(-1e-30)
    expected_kernels = np.zeros((2, 4), bool)
    expected_kernels[1, 2:] = True
    np.testing.assert_array_equal(bregjax.live_groups(x, bregjax.per_kernel()), expected_kernels)
    filters = bregjax.live_groups(x, bregjax.per_filter())
    np.testing.assert_array_equal(filters, [False, False, True, True])
    inputs = bregjax.live_groups(x, bregjax.per_input_channel())
    np.testing.assert_array_equal(inputs, [False, True])
    entries = bregjax.live_groups(x, bregjax.l1())
    np.testing.assert_array_equal(entries, x != 0)
    sparse = bregjax.live_groups(x, bregjax.sparse_group(bregjax.per_filter()))
    np.testing.assert_array_equal(sparse, filters)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_effective_rank_ignores_rounding(dtype, rank):
    rng = np.random.default_rng(rank)
    # Small integers: the product is exact in both dtypes, its computed singular values are not.
    x = rng.integers(-2, 3, (9, rank)) @ rng.integers(-2, 3, (rank, 6))
    assert np.linalg.matrix_rank(x) == rank
    result = jax.jit(bregjax.effective_rank)(jnp.asarray(x, dtype))
    assert (int(result), result.dtype) == (rank, jnp.int32)


@pytest.mark.parametrize("shape", [(50, 4), (4, 50)])
def test_effective_rank_counts_from_the_rounding_error_of_the_larger_side(shape):
    eps = float(jnp.finfo(jnp.float32).eps)
    for second, rank in ((30 * eps, 1), (70 * eps, 2)):
        x = jnp.zeros(shape).at[0, 0].set(3.0).at[1, 1].set(3.0 * second)
        assert bregjax.effective_rank(x) == rank


def test_effective_rank_tolerance_is_absolute():
    x = jnp.diag(jnp.array([2.0, 0.1, 0.001]))
    assert bregjax.effective_rank(x) == 3
    assert bregjax.effective_rank(x, 0.01) == 2
    assert bregjax.effective_rank(x, 0.5) == 1
    assert bregjax.effective_rank(10 * x, 0.5) == 2


def test_effective_rank_folds_all_axes_but_the_last():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 3, 2, 1)) * rng.normal(size=4)
    assert bregjax.effective_rank(jnp.asarray(x, jnp.float32)) == 1
    with pytest.raises(ValueError, match=r"two or more dimensions, got shape \(3,\)"):
        bregjax.effective_rank(jnp.ones(3))


def test_effective_rank_along_the_reference_traces(x64, reference):
    del x64
    files = sorted((reference / "traces").glob("*__nuclear__*.npz"))
    assert files
    for path in files:
        with np.load(path) as trace:
            params, ranks = trace["params"], trace["rank"]
        assert len(set(ranks)) > 1
        np.testing.assert_array_equal(jax.vmap(bregjax.effective_rank)(params), ranks)
        with_theirs = jax.vmap(lambda x: bregjax.effective_rank(x, 1e-9))(params)
        np.testing.assert_array_equal(with_theirs, ranks)


def test_relative_rank_is_the_sum_of_ranks_by_the_sum_of_the_largest_ones():
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(9, r)) @ rng.normal(size=(r, n)) for r, n in ((2, 5), (3, 12))]
    kernels = [*(jnp.asarray(x, jnp.float32) for x in matrices), jnp.zeros((3, 3, 2, 4))]
    params = {"kernels": kernels, "bias": jnp.ones(7)}
    result = jax.jit(bregjax.relative_rank)(params)
    assert (result.dtype, result.shape) == (jnp.float32, ())
    np.testing.assert_allclose(result, (2 + 3 + 0) / (5 + 9 + 4), rtol=1e-6)
    mask = {"kernels": [False, True, False], "bias": False}
    np.testing.assert_allclose(bregjax.relative_rank(params, mask=mask), 3 / 9, rtol=1e-6)
    with pytest.raises(ValueError, match="mask marks no entry"):
        bregjax.relative_rank({"bias": jnp.ones(3)})


def test_regularizer_value_sums_over_the_regularized_leaves():
    params = {"a": jnp.array([[3.0], [-4.0]]), "b": jnp.ones((2, 2)), "bias": jnp.ones(9)}
    value = bregjax.regularizer_value
    assert value(params, bregjax.l1()) == 11
    assert value(params, bregjax.l1(), 0.5) == 5.5
    assert value(params, bregjax.l1(), mask={"a": False, "b": False, "bias": True}) == 9
    per_neuron = bregjax.per_neuron(size_weighted=False)
    expected = 2.0 * (5 + 2 * np.sqrt(2))
    np.testing.assert_allclose(value(params, per_neuron, 2.0), expected, rtol=1e-6)
    assert value({"bias": jnp.ones(2)}, bregjax.l1()) == 0


def test_regularizer_value_is_summed_in_float32():
    result = bregjax.regularizer_value(jnp.ones((1000, 3), jnp.bfloat16), bregjax.l1())
    assert (result.dtype, float(result)) == (jnp.float32, 3000.0)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(name="norm", use_running_average=False)(nn.Conv(3, (3, 3), name="conv")(x))
        return nn.Dense(2, name="out")(jnp.ones((1, 4)))


CONV_KERNEL = jnp.zeros((3, 3, 2, 3)).at[:, :, 0, 1].set(1.0).at[0, 0, 1, 1].set(2.0)
OUT_KERNEL = jnp.zeros((4, 2)).at[1].set(jnp.array([1.0, 2.0])).at[3].set(jnp.array([2.0, 4.0]))


def nnx_model() -> Net:
    model = Net(nnx.Rngs(0))
    model.conv.kernel[...] = CONV_KERNEL
    model.out.kernel[...] = OUT_KERNEL
    return model


def linen_variables() -> dict:
    variables = LinenNet().init(jax.random.key(0), jnp.ones((1, 5, 5, 2)))
    params = dict(variables["params"])
    params["conv"] = {**params["conv"], "kernel": CONV_KERNEL}
    params["out"] = {**params["out"], "kernel": OUT_KERNEL}
    return {**variables, "params": params}


MODELS = {
    "NNX module": nnx_model,
    "NNX state": lambda: nnx.state(nnx_model(), nnx.Param),
    "NNX arrays": lambda: nnx.as_pure(nnx.state(nnx_model(), nnx.Param)),
    "Linen variables": linen_variables,
    "Linen parameters": lambda: linen_variables()["params"],
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_report_of_flax_models(model):
    report = bregjax.sparsity_report(model())
    conv, out = report.layers
    assert conv == bregjax.LayerSparsity(
        name="conv/kernel",
        kind="conv",
        shape=(3, 3, 2, 3),
        weights=(10, 54),
        outputs=(1, 3),
        inputs=(2, 2),
        kernels=(2, 6),
        rank=(1, 3),
        asleep=2,  # Flax's biases are zero
    )
    assert out == bregjax.LayerSparsity(
        name="out/kernel",
        kind="dense",
        shape=(4, 2),
        weights=(4, 8),
        outputs=(2, 2),
        inputs=(2, 4),
        kernels=None,
        rank=(1, 2),
        asleep=0,
    )
    assert out.density == 0.5
    assert report.weights == (14, 62)
    assert report.density == 14 / 62
    assert report.total_parameters == 54 + 3 + 3 + 3 + 8 + 2


def test_report_prints_a_table():
    params = {"conv": {"kernel": CONV_KERNEL}, "out": {"kernel": OUT_KERNEL, "bias": jnp.ones(2)}}
    lines = str(bregjax.sparsity_report(params)).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        [
            "layer",
            "kind",
            "shape",
            "weights",
            "density",
            "outputs",
            "asleep",
            "inputs",
            "kernels",
            "rank",
        ],
        ["conv/kernel", "conv", "3×3×2×3", "10/54", "18.52%", "1/3", "2/2", "2/6", "1/3"],
        ["out/kernel", "dense", "4×2", "4/8", "50.00%", "2/2", "0", "2/4", "1/2"],
        ["all", "weights", "14/62", "22.58%"],
    ]
    assert {len(line) for line in lines if "─" in line} == {len(lines[0])}
    # Columns are aligned: every density ends where its head does.
    end = lines[0].index("density") + len("density")
    assert all(line[end - 1] == "%" for line in lines[2:4])
    assert not any(line != line.rstrip() for line in lines)


def test_report_writes_large_counts_with_separators():
    report = bregjax.sparsity_report({"w": jnp.ones((1000, 2))})
    assert "2,000/2,000" in str(report)
    assert "1,000/1,000" in str(report)


def test_report_obeys_the_mask_and_keeps_the_total():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    report = bregjax.sparsity_report(params, mask={"a": True, "b": False, "bias": False})
    assert [layer.name for layer in report.layers] == ["a"]
    assert report.total_parameters == 16


def test_report_of_a_vector_is_refused_by_name():
    params = {"w": jnp.ones((2, 2)), "out": {"bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"mask marks out/bias: .* arrays of two or more dim"):
        bregjax.sparsity_report(params, mask={"w": True, "out": True})


def test_report_on_nothing():
    with pytest.raises(ValueError, match="mask marks no entry of params"):
        bregjax.sparsity_report({"bias": jnp.ones(3)})


def test_a_variable_of_nnx_is_counted_like_its_array():
    kernel = nnx.Param(jnp.array([[1.0, 0.0], [2.0, 0.0]]))
    np.testing.assert_array_equal(bregjax.live_groups(kernel, bregjax.per_neuron()), [True, False])  # pyright: ignore[reportArgumentType]
    assert bregjax.effective_rank(kernel) == 1  # pyright: ignore[reportArgumentType]


def test_groups_without_parentheses_are_explained():
    with pytest.raises(TypeError, match=r"groups must be .* Call the constructor"):
        bregjax.live_groups(jnp.ones((2, 2)), bregjax.per_neuron)  # pyright: ignore[reportArgumentType]


def test_frozen_linen_variables_are_reported_like_plain_ones():
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    variables = {"params": variables["params"], "batch_stats": {"mean": jnp.ones(7)}}
    frozen = bregjax.sparsity_report(freeze(variables))
    assert str(frozen) == str(bregjax.sparsity_report(variables))
    assert frozen.total_parameters == 9


def test_the_sparsest_run_within_a_tolerance():
    scores, densities = [0.97, 0.98, 0.981, 0.95], [0.02, 0.05, 0.2, 0.01]
    assert bregjax.sparsest_within(scores, densities, 0.0) == 2
    assert bregjax.sparsest_within(scores, densities, 0.002) == 1
    assert bregjax.sparsest_within(scores, densities, 1.0) == 3
    # Equally sparse: the better one, then the first.
    assert bregjax.sparsest_within([0.9, 0.91, 0.91], [0.1, 0.1, 0.1], 0.1) == 1
    # Nine of 3,000 images are the tolerance to the digit, also in float32.
    rounded = [float(np.float32(2940 / 3000)), float(np.float32(2931 / 3000))]
    assert bregjax.sparsest_within(rounded, [0.5, 0.1], 0.003) == 1
    assert bregjax.sparsest_within([math.nan, 0.9, math.nan], [0.1, 0.5, 0.2], 0.1) == 1
    for bad in ([], [math.nan]):
        with pytest.raises(ValueError, match="no run has a score"):
            bregjax.sparsest_within(bad, [0.1] * len(bad), 0.1)
    with pytest.raises(ValueError, match="2 scores and 1 densities"):
        bregjax.sparsest_within([0.1, 0.2], [0.1], 0.1)
    with pytest.raises(ValueError, match=r"tolerance must be at least 0, got tolerance=-0\.1"):
        bregjax.sparsest_within([0.1], [0.1], -0.1)


def test_ranks_and_values_in_float64_under_strict_promotion(x64):
    params = {"a": jnp.ones((3, 2), jnp.float32), "b": jnp.ones((3, 2), jnp.float32)}
    with jax.numpy_dtype_promotion("strict"):
        assert float(bregjax.relative_rank(params)) == 0.5
        value = bregjax.regularizer_value(params, bregjax.l1())
    assert (value.dtype, float(value)) == (jnp.float32, 12.0)
