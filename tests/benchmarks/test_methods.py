import functools
import json
import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from benchmarks import methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.experiments.cifar_resnet import CifarResNet
from benchmarks.experiments.from_dense import FromDense
from benchmarks.experiments.lenet import LeNet
from benchmarks.experiments.lowrank_convnet import LowrankConvnet
from benchmarks.experiments.lowrank_mlp import LowrankMlp
from benchmarks.experiments.mnist_mlp import MnistMlp
from benchmarks.experiments.shrink import Shrink
from benchmarks.experiments.target_sparsity import TargetSparsity
from benchmarks.methods import ErdosRenyiStart, SparseStart, ToDensity
from benchmarks.methods.regularization import Penalty, Regularization, Rising, everywhere
from benchmarks.methods.schedules import Constant, Cosine
from benchmarks.models import ConvNet, resnet20
from bregjax import l1, per_kernel


def parameters(build) -> nnx.State:
    return nnx.state(build(rngs=nnx.Rngs(0)), nnx.Param)


def test_a_sparse_start_keeps_whole_kernels_and_single_dense_weights():
    dense = parameters(ConvNet)
    sparse = SparseStart(0.02, gain=0.5)(jax.random.key(1), dense)
    kernel = np.asarray(sparse["conv2"]["kernel"][...])
    live = np.any(kernel != 0, axis=(0, 1))
    assert live.sum() == round(0.02 * 64 * 64)
    # Survivors are gain / √share times what they were.
    before = np.asarray(dense["conv2"]["kernel"][...])
    scale = 0.5 / math.sqrt(live.mean())
    np.testing.assert_allclose(kernel, np.where(live, scale * before, 0), rtol=1e-6)
    assert np.count_nonzero(sparse["linear1"]["kernel"][...]) == round(0.02 * 1024 * 128)


def test_a_sparse_start_draws_positive_biases_by_fan_in():
    sparse = SparseStart(0.02, bias=2.0)(jax.random.key(1), parameters(ConvNet))
    for layer, fan_in in (("conv1", 25), ("conv2", 25 * 64), ("linear1", 1024)):
        bias = np.asarray(sparse[layer]["bias"][...])
        high = 2 / math.sqrt(fan_in)
        assert 0 <= bias.min() < 0.2 * high
        assert 0.8 * high < bias.max() <= high
    norms = SparseStart(0.02)(jax.random.key(1), parameters(resnet20))["stem"]["norm"]
    assert 0 < np.max(norms["bias"][...]) <= 1 / math.sqrt(16)
    np.testing.assert_array_equal(norms["scale"][...], 1)


def test_dormant_kernels_wake_with_positive_biases_and_not_without():
    model = ConvNet(rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    images = jax.random.normal(jax.random.key(2), (8, 28, 28, 1))

    def kernels_with_gradient(bias: float) -> int:
        sparse = SparseStart(0.02, bias=bias)(jax.random.key(1), params)
        gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(images) ** 2))(sparse)
        return int(np.any(gradient["conv1"]["kernel"][...] != 0, axis=(0, 1)).sum())

    assert kernels_with_gradient(0.0) <= round(0.02 * 64)
    assert kernels_with_gradient(1.0) > 10


def test_each_kind_of_layer_gets_its_penalty_and_biases_none():
    regularization = Regularization(
        {"conv": Penalty(per_kernel(), 0.3), "dense": Penalty(l1(), Rising(0.0, 0.5, share=0.5))}
    )
    method = methods.linbreg(Constant(0.1), regularization, start=None, delta=2.0)
    ours = method.optimizer(epochs=2, steps_per_epoch=4)
    params = parameters(ConvNet)
    gradient = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    strength = optax.linear_schedule(0.0, 0.5, 4)
    by_kind: dict[Hashable, optax.GradientTransformation] = {
        "conv": bregjax.linbreg(0.1, per_kernel(), 0.3, delta=2.0),
        "dense": bregjax.linbreg(0.1, l1(), strength, delta=2.0),
        "other": optax.sgd(0.1),
    }
    expected = optax.partition(by_kind, bregjax.label_by_kind)
    ends = []
    for optimizer in (ours, expected):
        current, state = params, optimizer.init(params)
        for _ in range(6):
            updates, state = optimizer.update(gradient, state, current)
            current = optax.apply_updates(current, updates)
        ends.append(current)
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_regularization_and_settings_are_told_in_names_and_records():
    both = Regularization(
        {"conv": Penalty(per_kernel(), 0.3), "dense": Penalty(l1(), Rising(0.1, 0.5))}
    )
    assert str(both) == "λ=0.3/0.1→0.5"
    assert both.record()["strength"] == {
        "conv": 0.3,
        "dense": {"initial": 0.1, "final": 0.5, "share": 0.6},
    }
    method = methods.adabreg(Constant(0.1), everywhere(l1(), 0.2), start=SparseStart(0.01))
    assert method.name == "AdaBreg λ=0.2"
    assert method.record() == {
        "schedule": "constant",
        "learning_rate": 0.1,
        "initial_density": 0.01,
        "initial_gain": 1.0,
        "initial_bias": 1.0,
        "delta": 1.0,
        "regularizer": "L1()",
        "strength": 0.2,
    }


@pytest.mark.parametrize("method", methods.steerable(), ids=lambda method: method.name)
def test_steered_methods_clip_the_entries_of_the_gradient(method):
    kernel = jax.random.normal(jax.random.key(0), (40, 30))
    direction = jnp.sign(jax.random.normal(jax.random.key(1), (40, 30)))
    optimizer = method.optimizer(epochs=1, steps_per_epoch=10)

    def moved(largest):
        params: Any = {"kernel": kernel}
        state = optimizer.init(params)
        for size in (0.1, largest, 0.1):  # Adam is blind to a size that stays
            updates, state = optimizer.update({"kernel": size * direction}, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.leaves(params)[0]

    np.testing.assert_array_equal(moved(1e4), moved(0.1))
    assert np.any(moved(0.1) != kernel)
    assert method.record()["clip"] == 0.1


@pytest.mark.parametrize(
    "method",
    [
        methods.one_shot_pruning(Constant(0.1), 0.1),
        methods.gradual_pruning(Constant(0.1), 0.1),
        methods.gradual_pruning(Constant(0.01), 0.1, adaptive=True),
        methods.set_training(Constant(0.1), 0.1),
        methods.rigl(Constant(0.1), 0.1),
    ],
    ids=lambda method: method.name,
)
def test_baselines_end_with_the_density_they_are_told(method):
    params = {"a": jax.random.normal(jax.random.key(0), (40, 30)), "b": jnp.ones((30, 20))}
    total = 40 * 30 + 30 * 20
    if isinstance(method.start, ErdosRenyiStart):
        params = method.start(jax.random.key(1), params)
    optimizer = method.optimizer(epochs=5, steps_per_epoch=20)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        gradient = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(2), 100):
        params, state = step(params, state, key)
    live = sum(int(jnp.count_nonzero(x)) for x in params.values())
    assert abs(live - 0.1 * total) <= 2


def test_names_have_a_second_decimal_of_the_density_where_the_first_is_not_enough():
    densities = (0.25, 0.1, 0.05, 0.034, 0.0169, 0.0167, 0.01, 0.0036, 0.002)
    names = [methods.rigl(Constant(0.1), density).name for density in densities]
    assert " ".join(name.removeprefix("RigL ") for name in names) == (
        "25.0% 10.0% 5.0% 3.4% 1.69% 1.67% 1.0% 0.36% 0.2%"
    )
    methods.check_shares("--densities", densities)


def test_the_penalty_of_pruning_ends_with_the_ramp_and_the_decay_does_not():
    rate, momentum, decay, penalty = 0.5, 0.9, 0.1, 0.01
    method = methods.gradual_pruning(
        Constant(rate), 1.0, momentum=momentum, weight_decay=decay, l1_penalty=penalty
    )
    tx = method.optimizer(1, 10)
    rng = np.random.default_rng(0)
    params: Any = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    expected, traces = dict(params), {name: np.zeros_like(x) for name, x in params.items()}
    params = jax.tree.map(jnp.float32, params)
    state = tx.init(params)
    for step in range(10):
        g = {name: rng.standard_normal(x.shape) for name, x in expected.items()}
        updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
        params = optax.apply_updates(params, updates)
        kernel = expected["kernel"]
        g["kernel"] = g["kernel"] + decay * kernel + (step < 7) * penalty * np.sign(kernel)
        for name, x in expected.items():
            traces[name] = g[name] + momentum * traces[name]
            expected[name] = x - rate * traces[name]
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-4, atol=1e-5)
    own = {"weight_decay": decay, "l1_penalty": penalty}
    plain = methods.gradual_pruning(Constant(rate), 1.0, momentum=momentum).record()
    assert method.record() == plain | own
    assert not own.keys() & plain.keys()


def test_around_adam_the_decay_of_pruning_is_decoupled_and_the_penalty_is_not():
    rate, decay, penalty = 0.5, 0.1, 0.3
    method = methods.gradual_pruning(
        Constant(rate), 1.0, adaptive=True, weight_decay=decay, l1_penalty=penalty
    )
    params: Any = {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([2.0, -3.0])}
    g = {"kernel": jnp.array([[-0.2, 0.2]]), "bias": jnp.array([-0.2, 0.2])}
    tx = method.optimizer(1, 10)
    updates: Any
    updates, _ = tx.update(g, tx.init(params), params)
    # Adam's first step is the sign of the gradient, which the penalty turns around.
    decayed = decay * np.array([[2.0, -3.0]])
    np.testing.assert_allclose(updates["kernel"], -rate * (np.array([1, -1]) + decayed), rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -rate * np.array([-1, 1]), rtol=1e-5)
    assert method.record()["weight_decay"] == decay
    dense = methods.adam(Constant(rate), weight_decay=decay)
    tx = dense.optimizer(1, 10)
    updates, _ = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -rate * (np.array([-1, 1]) + decayed), rtol=1e-5)
    assert dense.record()["weight_decay"] == decay
    assert "weight_decay" not in methods.adam(Constant(rate)).record()


def test_so_much_of_each_pattern_lives_and_the_rest_is_trained():
    rng = np.random.default_rng(0)
    shapes = {"heads": (4, 3, 5), "up": (6, 20), "out": (20, 3)}
    params: Any = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    groups = {"heads": bregjax.per_head(head_axis=-3), "up": bregjax.per_neuron()}
    method = methods.ToDensity(0.25, groups=groups)
    tx = method.optimizer(epochs=2, steps_per_epoch=5)
    state, update, before = tx.init(params), jax.jit(tx.update), params
    for _ in range(10):
        gradient = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
        updates, state = update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
    assert np.any(params["heads"], axis=(1, 2)).sum() == 1
    assert np.any(params["up"], axis=0).sum() == 5
    assert np.all(params["out"] != before["out"])
    assert set(method.record()["regularizer"]) == set(groups)


def test_each_row_of_the_ablation_differs_from_the_base_in_one_setting():
    recipes = CifarResNet(preset="ablation", density=(0.034,)).methods()
    assert len({recipe.name for recipe in recipes}) == len(recipes) == 16
    bases = {r.name.split(",")[0]: r.record() for r in recipes if "base" in r.name}
    for recipe in recipes:
        base, own = bases[recipe.name.split(",")[0]], recipe.record()
        changed = {key for key in base | own if base.get(key) != own.get(key)}
        assert len(changed) == ("base" not in recipe.name), recipe.name


def test_linbreg_of_the_ablation_begins_as_that_of_the_best_preset():
    rows, best = (
        CifarResNet(preset=preset, density=(0.034,)).methods() for preset in ("ablation", "best")
    )
    (base,) = (r.record() for r in rows if r.name.startswith("LinBreg+m, base"))
    (ours,) = (r.record() for r in best if r.name.startswith("LinBreg+m"))
    assert base == ours


def test_a_density_and_a_learning_rate_are_told_to_adabreg_to_density():
    params: Any = {"kernel": jax.random.normal(jax.random.key(0), (6, 5))}
    rate = Cosine(0.03, warmup_epochs=1)
    ours = ToDensity(0.3, learning_rate=rate).optimizer(4, 5)
    same = bregjax.adabreg_to_density(0.3, 20, rate.schedule(20, 5))

    def trained(tx: Any) -> Any:
        x: Any
        x, state = params, tx.init(params)
        for _ in range(4):
            updates, state = tx.update(x, state, x)
            x = optax.apply_updates(x, updates)
        return x["kernel"]

    np.testing.assert_array_equal(trained(ours), trained(same))
    assert np.any(trained(ours) != trained(ToDensity(0.3).optimizer(4, 5)))


@pytest.mark.parametrize(("preset", "told"), [("paper", 4), ("best", 5)])
def test_presets_of_cifar_have_a_run_for_each_density_and_train(preset, told):
    experiment = CifarResNet(preset=preset, density=(0.1, 0.034))
    recipes = experiment.methods()
    names = [recipe.name for recipe in recipes]
    assert len(set(names)) == len(names)
    targets = [r.record()["target_density"] for r in recipes if "target_density" in r.record()]
    assert targets.count(0.1) == targets.count(0.034) == told
    params = {"conv": {"kernel": jnp.ones((3, 3, 4, 4))}, "norm": {"scale": jnp.ones(4)}}
    for recipe in recipes:
        made = recipe.optimizer(5, 10)
        if not isinstance(made, optax.GradientTransformation):
            made = made(recipe.hyperparameters(1)[0])
        tx = optax.with_extra_args_support(made)
        state = jax.eval_shape(tx.init, params)
        update = functools.partial(tx.update, value=jnp.float32(1))
        updates, _ = jax.eval_shape(update, params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_weight_decay_is_in_front_and_on_weights_alone():
    rate, decay = 0.5, 0.1
    method = methods.decayed(methods.sgd(Constant(rate)), decay)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    tx = method.optimizer(1, 1)
    updates: Any
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -rate * (1 + decay * 3), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -rate, rtol=1e-6)
    assert method.record()["weight_decay"] == decay


def test_an_ablation_is_at_one_density():
    with pytest.raises(BenchmarkError, match=r"at one --density, got 0.1 0.034"):
        CifarResNet(preset="ablation", density=(0.1, 0.034)).methods()


@pytest.mark.parametrize("density", [(0.0,), (1.5,), (0.1, 0.10001)])
def test_densities_of_cifar_are_checked(density):
    with pytest.raises(BenchmarkError, match="--density must be between 0 and 1"):
        CifarResNet(density=density).methods()


@pytest.mark.parametrize("rate", [0.0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    ("experiment", "option"),
    [
        (CifarResNet, "rate"),
        (CifarResNet, "baseline_rate"),
        (FromDense, "rate"),
        (FromDense, "pruning_rate"),
    ],
)
def test_learning_rates_are_checked(experiment, option, rate):
    with pytest.raises(BenchmarkError, match=rf"--{option.replace('_', '-')} .* got {rate}"):
        experiment(**{option: rate}).methods()


def test_the_rate_of_the_baselines_is_that_of_sgd_and_what_is_around_it():
    def rates(**options):
        recipes = CifarResNet(preset="best", **options).methods()
        return {r.name: r.record().get("learning_rate") for r in recipes}

    before, after = rates(), rates(baseline_rate=0.3)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert changed == dict.fromkeys(("SGD+m", "RigL 3.4%", "gradual pruning 3.4%"), (0.1, 0.3))
    with pytest.raises(BenchmarkError, match=r"--baseline-rate is for --preset best, got .* paper"):
        CifarResNet(baseline_rate=0.3).methods()


def test_a_rate_is_that_of_adabreg_and_adam_by_default_that_of_adabreg_to_density():
    def rates(**options):
        recipes = CifarResNet(preset="best", **options).methods()
        return [r for r in recipes if "AdaBreg" in r.name or "Adam" in r.name]

    assert [r.record()["learning_rate"] for r in rates(rate=0.005)] == [0.005, 0.005]
    ours, adam = rates()
    assert "learning_rate" not in ours.record()
    assert isinstance(adam, methods.Method)
    # min(0.01, 0.5/√steps), as the docstring of adabreg_to_density has it
    for steps, rate in ((700, 0.01), (10000, 0.005)):
        schedule = adam.learning_rate.schedule(steps, 10)
        assert callable(schedule)
        largest = max(float(jnp.asarray(schedule(step))) for step in range(steps))
        assert largest == pytest.approx(rate)


@pytest.mark.parametrize(
    "experiment", [MnistMlp, TargetSparsity, LeNet, LowrankMlp, LowrankConvnet, Shrink]
)
def test_settings_are_the_same_in_every_process(experiment):
    """A checkpoint is known by them: an address in memory would make it another run's."""
    for recipe in experiment().methods():
        assert " at 0x" not in json.dumps(recipe.record())


def test_fine_tuning_with_groups_ends_with_whole_neurons():
    experiment = FromDense(groups=True, sparsities=(0.5,))
    (method,) = (m for m in experiment.methods() if m.kind == "AdaBreg")
    optimizer = method.optimizer(epochs=3, steps_per_epoch=20)
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(6, 8), (8, 8), (8, 3)]
    params = {
        "layers": {
            index: {"kernel": jax.random.normal(key, size)}
            for index, (key, size) in enumerate(zip(keys, sizes, strict=False))
        }
    }
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        gradient = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(keys[3], 60):
        params, state = step(params, state, key)
    hidden = [np.asarray(params["layers"][index]["kernel"]) != 0 for index in (0, 1)]
    for kernel in hidden:
        np.testing.assert_array_equal(kernel.all(axis=0), kernel.any(axis=0))
    # Half of the 112 entries; the last neuron may exceed that.
    assert 56 <= sum(kernel.sum() for kernel in hidden) < 56 + 8
    assert np.all(params["layers"][2]["kernel"])


def test_the_summary_tells_the_defaults_that_were_in_force():
    chosen = ToDensity(0.1).defaults(1000)["defaults"]["*"]
    assert chosen["rate"] == pytest.approx(0.0085)
    assert chosen["kept"] == pytest.approx(0.8)
    assert chosen["shrinking"] == 0.5
    of_groups = ToDensity(0.1, groups={"a/*": bregjax.per_neuron()}).defaults(2500)["defaults"]
    assert of_groups["a/*"]["rate"] == pytest.approx(0.01)
    told = ToDensity(0.1, learning_rate=Constant(0.1), keep_weights=True).defaults(1000)
    assert told["defaults"]["*"].keys() == {"ramp", "memory"}
