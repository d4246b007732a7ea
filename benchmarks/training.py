"""The training engine: an epoch is one program, and all seeds run in it side by side."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bregjax
from benchmarks.data import Dataset
from benchmarks.errors import BenchmarkError
from benchmarks.progress import track


class TrainState(NamedTuple):
    """What a training step changes; with several seeds every leaf has a leading seed axis."""

    params: Any
    other: Any
    opt_state: Any


class EpochMetrics(NamedTuple):
    """One row of a learning curve; with several seeds every field has a seed axis."""

    train_loss: Any
    """mean over the epoch's batches, while the weights change"""
    train_accuracy: Any
    """likewise, a fraction"""
    validation_accuracy: Any
    """at the end of the epoch, a fraction"""
    l1_norm: Any
    """sum of the absolute weights, biases and norms left out"""
    nonzero: Any
    """number of non-zero weights, biases and norms left out"""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained on what."""

    dataset: Dataset
    build: Callable[[nnx.Rngs], nnx.Module]
    batch_size: int = 128
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """how the model was built, for summary.json"""

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; the images that are left over differ from epoch to epoch."""
        return len(self.dataset.train.labels) // self.batch_size


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of training one method with several seeds; arrays have a seed axis at the end."""

    curve: EpochMetrics
    """fields of shape (epochs + 1, seeds); the first row is before training, where the training
    loss and accuracy are NaN"""
    test_accuracy: np.ndarray
    params: Any
    seconds_per_epoch: float
    """of all seeds together; compilation is left out where there is more than one epoch"""


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seeds: Sequence[int],
    epochs: int,
    label: str = "training",
    on_epoch: Callable[[int, Any], None] | None = None,
) -> Result:
    """Train one network per seed, all at once.

    Args:
      task: dataset, model and batch size.
      optimizer: updates ``nnx.Param`` states.
      seeds: each gives its own initial weights and order of images.
      epochs: passes over the training images.
      label: stands beside the progress bar.
      on_epoch: called with the epoch (0 is before training) and the parameters of all seeds.

    Returns:
        The `Result`.

    Raises:
        BenchmarkError: if the training split has fewer images than a batch.
    """
    if task.steps_per_epoch < 1:
        raise BenchmarkError(
            f"batch size {task.batch_size} exceeds the {len(task.dataset.train.labels)} training"
            f" images of {task.dataset.name}: choose a smaller one."
        )
    train_split, validation, test = (
        jax.device_put((split.images, split.labels))
        for split in (task.dataset.train, task.dataset.validation, task.dataset.test)
    )
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in seeds]))
    model_keys, order_keys = keys[:, 0], keys[:, 1]
    state, graphdef = _initialize(task, optimizer, model_keys)
    epoch_fn = jax.jit(
        jax.vmap(functools.partial(_epoch, task, graphdef, optimizer), in_axes=(0, 0, None, None)),
        donate_argnums=0,
    )
    evaluate = jax.jit(jax.vmap(functools.partial(_accuracy, task, graphdef), in_axes=(0, 0, None)))

    untrained = np.full(len(seeds), np.nan, np.float32)
    rows = [
        EpochMetrics(
            untrained,
            untrained,
            evaluate(state.params, state.other, validation),
            *jax.vmap(_size)(state.params),
        )
    ]
    if on_epoch:
        on_epoch(0, state.params)
    seconds = []
    for epoch in track(range(1, epochs + 1), label):
        epoch_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(order_keys, epoch)
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(epoch_fn(state, epoch_keys, train_split, validation))
        seconds.append(time.perf_counter() - start)
        rows.append(jax.device_get(metrics))
        if on_epoch:
            on_epoch(epoch, state.params)
    curve = EpochMetrics(*(np.stack(column) for column in zip(*rows, strict=True)))
    test_accuracy = np.asarray(evaluate(state.params, state.other, test))
    # The first epoch compiles.
    timed = seconds[1:] or seconds or [float("nan")]
    return Result(curve, test_accuracy, state.params, float(np.median(timed)))


def _initialize(
    task: Task, optimizer: optax.GradientTransformation, keys: jax.Array
) -> tuple[TrainState, Any]:
    def one(key: jax.Array) -> TrainState:
        _, params, other = nnx.split(task.build(nnx.Rngs(key)), nnx.Param, ...)
        return TrainState(params, other, optimizer.init(params))

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: task.build(nnx.Rngs(0))))
    return jax.jit(jax.vmap(one))(keys), graphdef


def _logits(
    task: Task, graphdef: Any, params: Any, other: Any, images: jax.Array
) -> tuple[jax.Array, Any]:
    """Logits of uint8 images, and what the forward pass left in the other variables."""
    model = nnx.merge(graphdef, params, other)
    pixels = (images.astype(jnp.float32) / 255 - task.dataset.mean) / task.dataset.std
    logits = model(pixels)
    return logits, nnx.split(model, nnx.Param, ...)[2]


def _epoch(
    task: Task,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    key: jax.Array,
    train_split: tuple[jax.Array, jax.Array],
    validation: tuple[jax.Array, jax.Array],
) -> tuple[TrainState, EpochMetrics]:
    images, labels = train_split
    steps = task.steps_per_epoch
    order = jax.random.permutation(key, len(labels))[: steps * task.batch_size]

    def step(state: TrainState, batch: jax.Array) -> tuple[TrainState, tuple]:
        def loss_fn(params: Any) -> tuple[jax.Array, tuple]:
            logits, other = _logits(task, graphdef, params, state.other, images[batch])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
            hits = jnp.mean(jnp.argmax(logits, axis=-1) == labels[batch])
            return jnp.mean(losses), (hits, other)

        (loss, (hits, other)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, other, opt_state), (loss, hits)

    state, (losses, hits) = jax.lax.scan(step, state, order.reshape(steps, task.batch_size))
    metrics = EpochMetrics(
        jnp.mean(losses),
        jnp.mean(hits),
        _accuracy(task, graphdef, state.params, state.other, validation),
        *_size(state.params),
    )
    return state, metrics


def _accuracy(
    task: Task, graphdef: Any, params: Any, other: Any, split: tuple[jax.Array, jax.Array]
) -> jax.Array:
    images, labels = split
    logits, _ = _logits(task, graphdef, params, other, images)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _size(params: Any) -> tuple[jax.Array, jax.Array]:
    """ℓ1 norm and number of non-zero weights."""
    weights = [x for x in jax.tree.leaves(params) if x.ndim >= 2]
    norm = bregjax.regularizer_value(params, bregjax.l1())
    return norm, jnp.stack([jnp.count_nonzero(x) for x in weights]).sum()
