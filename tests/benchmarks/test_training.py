import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from benchmarks import data, methods
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.interruption import Interrupted
from benchmarks.data import Dataset, Split
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.compaction import Compaction
from benchmarks.engine.objectives import reconstruction
from benchmarks.engine.task import Task
from benchmarks.engine.training import Result, evaluate, network_of, train
from benchmarks.methods import SparseStart, Targeted
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Constant
from benchmarks.models import MLP


def fake_dataset() -> Dataset:
    """Three classes told apart by one bright row of a noisy 6×6 image."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        labels = rng.integers(0, 3, n).astype(np.int32)
        images = rng.integers(0, 100, (n, 6, 6, 1)).astype(np.uint8)
        images[np.arange(n), labels] += 120
        return Split(images, labels)

    return Dataset("fake", split(210), split(40), split(40), mean=0.3, std=0.2, classes=3)


def task(**options) -> Task:
    return Task(fake_dataset(), lambda rngs: MLP((36, 16, 3), rngs=rngs), batch_size=32, **options)


def leaves(result: Result) -> list[np.ndarray]:
    """All numbers that came out, but for the clock's."""
    parts = (result.params, result.other, result.curve, result.test_loss, result.snapshots)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]


def assert_same_bits(first: Result, second: Result) -> None:
    for one, other in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_learns_and_the_curve_tells_the_truth():
    optimizer = bregjax.linbreg(0.1, bregjax.l1(), 0.05)
    result = train(task(), optimizer, seeds=[0, 1], epochs=15, start=SparseStart(0.1))
    assert result.curve.nonzero.shape == (16, 2)
    # 10 % of 576 and of 48 weights, to the weight.
    np.testing.assert_array_equal(result.curve.nonzero[0], [58 + 5, 58 + 5])
    weights = [x for x in jax.tree.leaves(result.params) if x.ndim == 3]
    np.testing.assert_array_equal(
        result.curve.nonzero[-1], sum((np.asarray(w) != 0).sum(axis=(1, 2)) for w in weights)
    )
    np.testing.assert_allclose(
        result.curve.l1_norm[-1],
        sum(np.abs(np.asarray(w)).sum(axis=(1, 2)) for w in weights),
        rtol=1e-5,
    )
    assert np.isnan(result.curve.train_loss[0]).all()
    assert (result.test_accuracy > 0.95).all()


def test_test_accuracy_is_that_of_the_returned_parameters():
    dataset = fake_dataset()
    result = train(task(), optax.sgd(0.02), seeds=[3, 4], epochs=2)
    graphdef = nnx.graphdef(MLP((36, 16, 3), rngs=nnx.Rngs(0)))
    for index in range(2):
        params = jax.tree.map(lambda x, i=index: x[i], result.params)
        model = nnx.merge(graphdef, params)
        logits = model((dataset.test.inputs / np.float32(255) - 0.3) / 0.2)
        accuracy = np.mean(np.argmax(logits, axis=-1) == dataset.test.targets)
        np.testing.assert_allclose(result.test_accuracy[index], accuracy, atol=1e-6)
        loss, alone = evaluate(task(), network_of(task(), result, index))
        assert loss == pytest.approx(result.test_loss[index], rel=1e-6)
        assert alone == pytest.approx(result.test_accuracy[index])


def test_seeds_side_by_side_are_the_runs_alone():
    optimizer = bregjax.linbreg(0.1, bregjax.l1(), 0.05)
    together = train(task(), optimizer, seeds=[0, 7], epochs=2)
    alone = train(task(), optimizer, seeds=[7], epochs=2)
    for both, one in zip(
        jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(both[1], one[0], atol=1e-5)


def test_the_same_seed_gives_the_same_bits():
    first, second = (train(task(), optax.sgd(0.1), seeds=[5], epochs=2) for _ in range(2))
    assert_same_bits(first, second)


def test_programs_of_any_length_give_the_same_bits():
    whole = train(task(), optax.sgd(0.1), seeds=[0, 1], epochs=3)
    pieces = train(task(steps_per_call=4), optax.sgd(0.1), seeds=[0, 1], epochs=3)
    assert_same_bits(whole, pieces)


def test_snapshots_are_of_the_start_and_of_every_epoch():
    result = train(
        task(),
        optax.sgd(0.1),
        seeds=[0],
        epochs=2,
        snapshot=lambda params: {"kernel": np.asarray(jax.tree.leaves(params)[1])},
    )
    kernels = result.snapshots["kernel"]
    assert sorted(kernels) == [0, 1, 2]
    np.testing.assert_array_equal(kernels[2], jax.tree.leaves(result.params)[1])
    assert (kernels[0] != kernels[1]).any()


def rise_and_fall() -> optax.GradientTransformation:
    """Learns for four epochs of six steps, then unlearns."""
    return optax.sgd(lambda step: jnp.where(jnp.asarray(step) < 24, 0.05, -0.2))


def test_the_best_network_is_the_one_of_its_epoch():
    best = train(task(), rise_and_fall(), seeds=[0, 1], epochs=8, select="best")
    accuracy = best.curve.validation_accuracy[1:]
    # Of equals the later epoch.
    expected = len(accuracy) - np.argmax(accuracy[::-1], axis=0)
    assert (expected < 8).all()
    np.testing.assert_array_equal(best.selected_epoch, expected)
    for index, epoch in enumerate(expected):
        stopped = train(task(), rise_and_fall(), seeds=[0, 1], epochs=int(epoch))
        np.testing.assert_array_equal(stopped.test_accuracy[index], best.test_accuracy[index])
        np.testing.assert_array_equal(stopped.test_loss[index], best.test_loss[index])


def test_training_stops_early_when_validation_stalls():
    result = train(task(), rise_and_fall(), seeds=[0, 1], epochs=30, patience=3)
    accuracy = result.curve.validation_accuracy[1:]
    best = len(accuracy) - np.argmax(accuracy[::-1], axis=0)
    assert len(accuracy) == best.max() + 3
    np.testing.assert_array_equal(result.selected_epoch, [len(accuracy)] * 2)


def test_augmented_inputs_differ_from_step_to_step_and_targets_stay():
    def noise(key, images):
        return images + jax.random.normal(key, images.shape)

    plain = train(task(), optax.sgd(0.1), seeds=[0], epochs=1)
    noisy = train(task(augment=noise), optax.sgd(0.1), seeds=[0], epochs=1)
    assert (leaves(plain)[1] != leaves(noisy)[1]).any()
    same = train(task(augment=lambda _, images: images), optax.sgd(0.1), seeds=[0], epochs=1)
    assert_same_bits(plain, same)


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(36, rngs=rngs)
        self.layer = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, images):
        return self.layer(self.norm(images.reshape(len(images), -1)))


def test_batch_norm_learns_its_statistics_and_is_tested_with_them():
    dataset = fake_dataset()
    made = Task(dataset, lambda rngs: Normalized(rngs), batch_size=32)
    result = train(made, optax.sgd(0.1), seeds=[0, 1], epochs=30)
    pixels = (dataset.train.inputs.reshape(210, -1) / 255 - 0.3) / 0.2
    mean, variance = (np.asarray(result.other["norm"][key][0]) for key in ("mean", "var"))
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(variance, pixels.var(axis=0), rtol=0.4)
    model = Normalized(nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda x: x[1], result.params))
    nnx.update(model, jax.tree.map(lambda x: x[1], result.other))
    model.eval()
    logits = model(dataset.normalize(jnp.asarray(dataset.test.inputs)))
    accuracy = np.mean(np.argmax(logits, axis=-1) == dataset.test.targets)
    np.testing.assert_allclose(result.test_accuracy[1], accuracy, atol=1e-6)


def test_reconstruction_is_measured_by_its_error_and_the_best_has_the_least():
    dataset = fake_dataset()
    flat = {
        name: Split(split.inputs, (split.inputs / 255).astype(np.float32))
        for name, split in vars(dataset).items()
        if isinstance(split, Split)
    }
    made = Task(
        dataclasses.replace(dataset, **flat),
        lambda rngs: Autoencoder(rngs),
        batch_size=32,
        objective=reconstruction,
    )
    result = train(made, optax.adam(1e-2), seeds=[0], epochs=6, select="best")
    assert np.isnan(result.test_accuracy).all()
    losses = result.curve.validation_loss[1:, 0]
    assert losses[-1] < losses[0]
    assert result.selected_epoch == np.argmin(losses) + 1


class Autoencoder(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(36, 36, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1)).reshape(images.shape)


def test_compaction_trains_a_smaller_network_and_gives_the_large_one_back():
    hidden = bregjax.label_by_path({"layers/0/kernel": True}, default=False)
    neurons = bregjax.per_neuron()
    optimizer = bregjax.adabreg_to_density(0.25, 48, regularizer=neurons, mask=hidden)
    options: dict = {"seeds": [0], "epochs": 8}
    result = train(task(), optimizer, **options, compaction=Compaction(share=0.7, round_to=2))
    whole = train(task(), optimizer, **options)
    assert 1 <= result.compactions <= 4
    assert whole.compactions == 0
    assert jax.tree.map(jnp.shape, result.params) == jax.tree.map(jnp.shape, whole.params)
    network: Any = network_of(task(), result)
    images, labels = fake_dataset().test[:]
    logits = network(fake_dataset().normalize(jnp.asarray(images)))
    assert np.mean(np.argmax(logits, -1) == labels) == pytest.approx(result.test_accuracy[0])
    assert result.test_accuracy[0] > 0.95
    # What has gone is zero in the large network: of four neurons each has all its weights.
    kernels = [np.asarray(layer.kernel[...]) for layer in network.layers]
    assert np.count_nonzero(kernels[0].any(axis=0)) == 4
    nonzero = sum(np.count_nonzero(kernel) for kernel in kernels)
    assert nonzero == result.curve.nonzero[-1, 0] < 4 * 36 + 16 * 3
    assert result.curve.density[-1, 0] == pytest.approx(nonzero / 624)


def test_compaction_is_for_one_seed():
    with pytest.raises(ValueError, match=r"compaction is for .* one seed, got seeds=\[0, 1\]"):
        train(task(), optax.sgd(0.1), seeds=[0, 1], epochs=1, compaction=Compaction())


def test_a_batch_larger_than_the_data_is_refused():
    large = Task(data.load("digits"), lambda rngs: MLP((64, 10), rngs=rngs), batch_size=2000)
    with pytest.raises(BenchmarkError, match="--batch-size 2000 exceeds the 1300 training images"):
        train(large, optax.sgd(0.1), seeds=[0], epochs=1)


def test_a_loss_that_is_no_number_is_told_and_nothing_saved_is_lost(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    burst = optax.chain(
        optax.sgd(0.1),
        optax.stateless_with_tree_map(lambda u, p: u),
        optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) < 12, 1.0, jnp.nan)),
    )
    with pytest.raises(BenchmarkError, match=r"SGD diverged in epoch 3: .* \(seed 0, 4\)"):
        train(task(), burst, seeds=[0, 4], epochs=5, label="SGD", checkpoints=checkpoints)
    # Two epochs of six steps were fine.
    assert Checkpoints(tmp_path / "run", {}).positions() == [6, 12]


def test_checkpoints_are_saved_between_the_programs_of_an_epoch_and_go_on_the_same(tmp_path):
    made = dataclasses.replace(task(), steps_per_call=4)  # an epoch has six steps
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)

    def killed() -> bool:
        if checkpoints.positions()[-1:] == [10]:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(made, optax.sgd(0.1), seeds=[0], epochs=3, checkpoints=checkpoints, stop=killed)
    assert checkpoints.positions() == [6, 10]
    resumed = train(made, optax.sgd(0.1), seeds=[0], epochs=3, checkpoints=checkpoints)
    whole = train(made, optax.sgd(0.1), seeds=[0], epochs=3)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    np.testing.assert_array_equal(resumed.curve.train_loss, whole.curve.train_loss)


def test_mixed_precision_computes_in_half_and_keeps_the_rest():
    seen = []

    class Spy(MLP):
        def __call__(self, images):
            seen.append(self.layers[0](images.reshape(len(images), -1)).dtype)
            return super().__call__(images)

    made = Task(
        fake_dataset(), lambda rngs: Spy((36, 16, 3), dtype=jnp.bfloat16, rngs=rngs), batch_size=32
    )
    optimizer = bregjax.adabreg(0.01, bregjax.l1(), 0.05)
    result = train(made, optimizer, seeds=[0], epochs=15, start=SparseStart(0.1))
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.float32)}
    assert result.curve.train_loss.dtype == np.float32
    assert (result.test_accuracy > 0.9).all()


def test_a_path_of_hyperparameters_is_as_many_trainings():
    strengths = np.array([0.05, 0.3, 0.05], np.float32)

    def optimizer(strength):
        return bregjax.linbreg(0.5, bregjax.l1(), strength)

    options = {"epochs": 2, "start": SparseStart(0.2)}
    together = train(task(), optimizer, seeds=[0, 0, 1], hyperparameters=strengths, **options)
    assert together.curve.nonzero[-1, 0] > together.curve.nonzero[-1, 1] > 0
    for index, (seed, strength) in enumerate(zip([0, 0, 1], strengths, strict=True)):
        alone = train(task(), optimizer(float(strength)), seeds=[seed], **options)
        part = together.part(index, 1)
        np.testing.assert_array_equal(part.curve.nonzero, alone.curve.nonzero)
        np.testing.assert_allclose(part.curve.train_loss, alone.curve.train_loss, rtol=1e-5)
        np.testing.assert_allclose(part.test_loss, alone.test_loss, rtol=1e-5)


def test_a_steered_training_logs_its_target_and_lands_on_it():
    method = Targeted(
        methods.adabreg(Constant(0.02), everywhere(bregjax.l1(), 0.01), start=SparseStart(0.1)),
        target_density=0.1,
        initial_target=0.6,
    )
    result = train(task(), method.optimizer(10, 6), seeds=[0, 1], epochs=10, start=method.start)
    landing = method.steered_epochs(10)
    assert landing == 8
    # The last step of the ramp that an epoch has seen; it ends after 0.6 of the steered epochs.
    steps = np.arange(1, landing + 1) * 6 - 1
    ramp = 0.1 + 0.5 * (1 - np.minimum(steps / round(0.6 * 48), 1)) ** 3
    np.testing.assert_allclose(result.curve.target[1 : landing + 1, 0], ramp, rtol=1e-5)
    assert np.all(result.curve.strength_scale[landing] != 1)
    total = 36 * 16 + 16 * 3
    np.testing.assert_array_equal(result.curve.nonzero[landing + 1 :], round(0.1 * total))
    np.testing.assert_allclose(result.curve.density, result.curve.nonzero / total, rtol=1e-6)


def test_an_exactly_steered_training_has_the_asked_for_number_of_weights():
    recipe = methods.linbreg_to_density(0.1, warmup_epochs=1)
    result = train(task(), recipe.optimizer(10, 6), seeds=[0, 1], epochs=10, start=recipe.start)
    total = 36 * 16 + 16 * 3
    steps = np.arange(1, 11) * 6 - 1
    ramp = 0.1 + 0.9 * (1 - np.minimum(steps / 48, 1)) ** 3
    np.testing.assert_allclose(result.curve.target[1:, 0], ramp, rtol=1e-5)
    np.testing.assert_array_equal(result.curve.nonzero[1:, 0], np.round(ramp * total))
    np.testing.assert_array_equal(result.curve.nonzero[9:], round(0.1 * total))


@pytest.mark.slow
def test_a_steered_path_goes_on_from_a_checkpoint_on_several_devices(tmp_path):
    stop_after = 9  # of 10 epochs; it has landed after 8

    def optimizer(strength):
        method = methods.adabreg(Constant(0.02), everywhere(bregjax.l1(), strength), start=None)
        return Targeted(method, target_density=0.2).optimizer(10, 6)

    def run(**more):
        options = {
            "epochs": 10,
            "start": SparseStart(0.1),
            "hyperparameters": jnp.array([0.01, 0.1]),
        }
        return train(task(), optimizer, seeds=[0, 1], **options, **more)

    asked = iter(range(100))  # once at the end of each epoch
    checkpoints = Checkpoints(tmp_path / "run", {})
    with pytest.raises(Interrupted):
        run(checkpoints=checkpoints, stop=lambda: next(asked) >= stop_after - 1)
    assert checkpoints.positions() == [6 * stop_after]
    assert_same_bits(run(checkpoints=Checkpoints(tmp_path / "run", {})), run())


def test_nothing_is_steered_by_default():
    result = train(task(), optax.sgd(0.1), seeds=[0], epochs=1)
    assert np.isnan(result.curve.target).all()
    assert np.isnan(result.curve.strength_scale).all()


def test_an_optimizer_sees_the_validation_loss_of_the_epoch_before():
    """In the first epoch that of the network before training: nothing is better than infinity."""

    def start(params: Any) -> Any:
        del params
        return optax.EmptyState()

    def to_the_loss(
        updates: Any, state: Any, params: Any = None, *, validation_loss: Any = None, **_: Any
    ) -> Any:
        del updates
        return jax.tree.map(lambda x: validation_loss - x, params), state

    optimizer = optax.GradientTransformationExtraArgs(start, to_the_loss)
    result = train(
        task(),
        optimizer,
        seeds=[0],
        epochs=3,
        snapshot=lambda params: {"bias": np.asarray(params["layers"][0]["bias"][...])},
    )
    losses = result.curve.validation_loss[:, 0]
    assert np.isfinite(losses).all()
    for epoch in (1, 2, 3):
        np.testing.assert_allclose(result.snapshots["bias"][epoch], losses[epoch - 1], rtol=1e-5)


def test_the_time_of_a_training_has_that_before_its_interruption(tmp_path, monkeypatch):
    def run(seconds_between_looks: float, *, stop: bool) -> Result:
        clock = itertools.count(0.0, seconds_between_looks)
        monkeypatch.setattr("benchmarks.engine.training.time.perf_counter", lambda: next(clock))
        options = {"checkpoints": Checkpoints(tmp_path / "run", {}), "stop": lambda: stop}
        return train(task(), optax.sgd(0.1), seeds=[0], epochs=3, **options)

    with pytest.raises(Interrupted, match="after epoch 1 of 3, and saved"):
        run(100.0, stop=True)
    assert run(0.001, stop=False).seconds > 100


def test_a_compaction_that_is_stopped_does_not_say_that_it_was_saved():
    with pytest.raises(Interrupted, match="after epoch 1 of 3, not saved"):
        train(
            task(),
            optax.sgd(0.1),
            seeds=[0],
            epochs=3,
            compaction=Compaction(),
            stop=lambda: True,
        )


def test_each_step_of_each_epoch_and_seed_has_a_key_and_a_batch_of_its_own():
    seen = set()

    def note(key, images):
        def add(*numbers):
            seen.add(tuple(tuple(np.ravel(x).tolist()) for x in numbers))

        jax.debug.callback(add, jax.random.key_data(key), images[:, 5])
        return images

    train(task(augment=note, steps_per_call=4), optax.sgd(0.1), seeds=[0, 1], epochs=2)
    jax.effects_barrier()
    keys, batches = zip(*seen, strict=True)
    assert len(set(keys)) == len(set(batches)) == len(seen) == 2 * 2 * 6


def test_examples_that_fill_no_batch_are_tested_too(monkeypatch):
    network = task().build(nnx.Rngs(0))
    at_once = evaluate(task(), network)
    monkeypatch.setattr("benchmarks.engine.programs._EVALUATED_AT_ONCE", 15)  # of 40
    assert evaluate(task(), network) == pytest.approx(at_once, rel=1e-6)


def test_batch_norm_is_tested_with_the_statistics_of_the_training():
    made = Task(fake_dataset(), lambda rngs: Normalized(rngs), batch_size=32)
    result = train(made, optax.sgd(0.1), seeds=[0], epochs=2)
    images, labels = made.dataset.test[:]
    logits = network_of(made, result)(made.dataset.normalize(jnp.asarray(images)))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(result.test_loss[0], losses.mean(), rtol=1e-5)
