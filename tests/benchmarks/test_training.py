import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from benchmarks import data
from benchmarks.data import Dataset, Split
from benchmarks.errors import BenchmarkError
from benchmarks.models import MLP
from benchmarks.training import Task, train


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
    return Task(fake_dataset(), lambda rngs: MLP((36, 16, 3), rngs=rngs, **options), batch_size=32)


def test_mlp_of_the_paper_has_173890_parameters():
    model = nnx.eval_shape(lambda: MLP((784, 200, 80, 10), rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == 173_890


def test_final_relu_makes_logits_nonnegative_and_is_off_by_default():
    images = jax.random.normal(jax.random.key(1), (20, 6, 6, 1))
    plain = MLP((36, 16, 3), rngs=nnx.Rngs(0))(images)
    published = MLP((36, 16, 3), final_relu=True, rngs=nnx.Rngs(0))(images)
    assert plain.min() < 0
    np.testing.assert_array_equal(published, np.maximum(plain, 0))


def test_training_learns_and_the_curve_tells_the_truth():
    optimizer = bregjax.linbreg(0.1, bregjax.l1(), 0.05)
    result = train(task(density=0.1), optimizer, seeds=[0, 1], epochs=15)
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
        logits = model((dataset.test.images / np.float32(255) - 0.3) / 0.2)
        accuracy = np.mean(np.argmax(logits, axis=-1) == dataset.test.labels)
        np.testing.assert_allclose(result.test_accuracy[index], accuracy, atol=1e-6)


def test_seeds_side_by_side_are_the_runs_alone():
    optimizer = bregjax.linbreg(0.1, bregjax.l1(), 0.05)
    together = train(task(), optimizer, seeds=[0, 7], epochs=2)
    alone = train(task(), optimizer, seeds=[7], epochs=2)
    for both, one in zip(
        jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(both[1], one[0], atol=1e-5)


def test_the_same_seed_gives_the_same_bits():
    runs = [train(task(), optax.sgd(0.1), seeds=[5], epochs=2) for _ in range(2)]
    for first, second in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        np.testing.assert_array_equal(first, second)


def test_on_epoch_sees_the_start_and_every_epoch():
    seen = []
    train(
        task(),
        optax.sgd(0.1),
        seeds=[0],
        epochs=2,
        on_epoch=lambda epoch, params: seen.append((epoch, jax.tree.leaves(params)[0].shape[0])),
    )
    assert seen == [(0, 1), (1, 1), (2, 1)]


def test_a_batch_larger_than_the_data_is_refused():
    large = Task(data.load("digits"), lambda rngs: MLP((64, 10), rngs=rngs), batch_size=2000)
    with pytest.raises(BenchmarkError, match="batch size 2000 exceeds the 1300 training images"):
        train(large, optax.sgd(0.1), seeds=[0], epochs=1)
