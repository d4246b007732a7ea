"""The training loop: epoch by epoch, with checkpoints, until the test."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.cli.errors import DivergenceError
from benchmarks.cli.interruption import Interrupted
from benchmarks.cli.progress import Progress
from benchmarks.data.batches import epoch_orders
from benchmarks.engine import devices
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.compaction import Compaction, Compactor
from benchmarks.engine.history import History
from benchmarks.engine.programs import EpochMetrics, Programs, Start
from benchmarks.engine.task import Task


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of one method trained with several seeds; arrays have a seed axis at the end."""

    curve: EpochMetrics
    """fields of shape (epochs + 1, seeds); the first row is before training, where the training
    loss and accuracy are NaN"""
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    selected_epoch: np.ndarray
    """the epoch whose parameters were tested and are kept"""
    params: Any
    other: Any
    """variables that are not parameters, such as the statistics of batch norm"""
    snapshots: dict[str, dict[int, np.ndarray]]
    """what was kept of the parameters, by name and epoch"""
    seconds_per_epoch: float
    """the median, for all seeds together; NaN if every epoch compiled, as these do not count"""
    seconds: float
    """of the whole training of all seeds, from its beginning until after the test, with
    compilation; of an interrupted one up to the checkpoints that it continued from"""
    compactions: int
    """how often the network shrank"""

    def part(self, index: int, size: int) -> "Result":
        """The results of the ``index``-th group of ``size`` seeds, with their share of the time."""
        total = len(self.test_loss)
        if size == total:
            return self
        mine = slice(index * size, (index + 1) * size)
        return dataclasses.replace(
            self,
            curve=EpochMetrics(*(column[:, mine] for column in self.curve)),
            test_loss=self.test_loss[mine],
            test_accuracy=self.test_accuracy[mine],
            selected_epoch=self.selected_epoch[mine],
            params=jax.tree.map(lambda x: x[mine], self.params),
            other=jax.tree.map(lambda x: x[mine], self.other),
            snapshots={},
            seconds_per_epoch=self.seconds_per_epoch * size / total,
            seconds=self.seconds * size / total,
        )


Snapshot = Callable[[Any], Mapping[str, np.ndarray]]
"""From the parameters of all seeds to the arrays to keep, by name."""


def train(
    task: Task,
    optimizer: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation],
    *,
    seeds: Sequence[int],
    epochs: int,
    hyperparameters: Any = (),
    start: Start | None = None,
    select: Literal["last", "best"] = "last",
    patience: int | None = None,
    label: str = "training",
    snapshot: Snapshot = lambda params: {},
    checkpoints: Checkpoints | None = None,
    compaction: Compaction | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train one network per seed, all at once, from the latest checkpoint if there is one.

    If there are several devices, seeds and batches are spread over them, see `devices.mesh`.

    Args:
      task: dataset, network, objective and batch size.
      optimizer: updates ``nnx.Param`` states; it gets the extra arguments ``value``, the loss
        of the batch, and ``validation_loss``, that at the end of the previous epoch.
      seeds: each gives its own initial weights, order of images and augmentation. They may repeat.
      epochs: passes over the training images.
      hyperparameters: a tree of arrays with an entry for each seed, such as a path of strengths.
        If it is given, ``optimizer`` is a function from one seed's entries to its optimizer.
      start: thins out the initial parameters.
      select: whether the result is the network of the last epoch or the best on the validation
        images.
      patience: stop when no seed has improved on the validation images for this many epochs.
      label: the text beside the progress bar.
      snapshot: what to keep of the parameters of all seeds before training and after each epoch,
        by name.
      checkpoints: where to save, and from where to continue. It is not used with a compaction,
        which changes shapes.
      compaction: how the network loses its dead units between epochs. It needs a single seed; the
        result is that of the last epoch, in the shapes of the first network.
      stop: called after each program but the last; if it returns true, the state is saved (with a
        compaction it is not) and `Interrupted` raised.

    Returns:
        The `Result`.

    Raises:
        BenchmarkError: if the training split has fewer images than a batch, the loss is no longer
          finite, or a checkpoint cannot be written or belongs to another run.
        Interrupted: if ``stop`` returned true.
    """
    started = time.perf_counter()
    steps, size = task.steps, task.steps_per_call or task.steps
    if isinstance(optimizer, optax.GradientTransformation):
        programs = Programs(task, lambda _: optimizer, start, len(seeds))
    else:
        programs = Programs(task, optimizer, start, len(seeds))
    data, validation, test = (
        devices.place((split.inputs, split.targets), programs.mesh)
        for split in (task.dataset.train, task.dataset.validation, task.dataset.test)
    )
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    start_keys, order_keys, augment_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    begin = functools.partial(programs.initialize, start_keys, hyperparameters)
    history = History()
    position = 0
    compactor = None
    if compaction:
        checkpoints = None
        if len(seeds) > 1 or select == "best" or callable(optimizer):
            raise ValueError(
                f"compaction is for the last network of one seed, got {seeds=} and {select=}."
            )
        compactor = Compactor(
            compaction, task.dataset.normalize(jnp.asarray(task.dataset.train.inputs[:4]))
        )
    saved = checkpoints and checkpoints.restore(jax.eval_shape(begin))
    if saved:
        position, history = saved.position, History(**saved.history)
        state = devices.place(saved.state, programs.mesh, devices.SEEDS)
        started -= history.elapsed
    else:
        # Placed like the result of a program, or the first program would be compiled twice.
        state = devices.place(begin(), programs.mesh, devices.SEEDS)
        metrics = programs.inspect(state, validation)
        state = state._replace(validation_loss=jnp.copy(metrics.validation_loss))
        history.add(0, metrics, snapshot(state.params))

    def save(*, must: bool = False) -> None:
        if checkpoints:
            history.elapsed = time.perf_counter() - started
            checkpoints.save(position, state, history.as_dict(), must=must)

    def pause(where: str) -> None:
        """Save if it is time to; if the training is to stop, save in any case, and stop."""
        stopped = stop()
        save(must=stopped)
        if stopped:
            end = ", and saved" if checkpoints else ", not saved: this training begins anew"
            raise Interrupted(where + end)

    compiled = False
    with Progress(label, total=epochs * steps, done=position) as progress:
        for epoch in range(position // steps + 1, epochs + 1):
            if patience is not None and np.all(
                epoch - 1 - np.asarray(state.best.epoch) >= patience
            ):
                break
            began, timed = time.perf_counter(), compiled and position % steps == 0
            step_keys = _fold_in(augment_keys, epoch)
            epoch_keys = _fold_in(order_keys, epoch)
            orders = epoch_orders(epoch_keys, len(task.dataset.train), task.batch_size)
            finished = None
            for first in range(position % steps, steps, size):
                jax.block_until_ready(finished)  # one program runs while the next is prepared
                piece = orders[:, first : first + size]
                state, finished = programs.advance(state, piece, step_keys, first, data)
                position += piece.shape[1]
                progress.advance(piece.shape[1])
                if position % steps:
                    pause(f"in epoch {epoch} of {epochs}")
            state, metrics = jax.block_until_ready(programs.finish(state, epoch, validation))
            metrics = jax.device_get(metrics)
            _check_finite(metrics, label, epoch, seeds)
            seconds = time.perf_counter() - began if timed else np.nan
            history.add(epoch, metrics, snapshot(state.params), seconds)
            compiled = True
            progress.report(epoch, _in_words(metrics))
            if epoch == epochs:
                break
            pause(f"after epoch {epoch} of {epochs}")
            if compactor and compactor.is_due(state.params):
                programs, state = programs.compacted(compactor, state)
                compiled = False
    save(must=True)
    best = state.best if select == "best" else None
    params, other = (best.params, best.other) if best else (state.params, state.other)
    loss, accuracy = jax.device_get(programs.evaluate(params, other, test))
    if compactor:
        params, other = compactor.expand(params), compactor.expand(other)
    last = len(history.seconds) - 1
    return Result(
        history.curve(),
        loss,
        accuracy,
        np.asarray(best.epoch) if best else np.full(len(seeds), last),
        params,
        other,
        history.snapshots,
        history.seconds_per_epoch(),
        time.perf_counter() - started,
        compactor.count if compactor else 0,
    )


def network_of(task: Task, result: Result, index: int = 0) -> nnx.Module:
    """The trained network of the ``index``-th seed, in evaluation mode, on the first device."""
    params, other = jax.device_put(
        jax.tree.map(lambda x: x[index], (result.params, result.other)), jax.devices()[0]
    )
    return nnx.merge(nnx.graphdef(task.shapes()), params, other)


def evaluate(task: Task, network: nnx.Module) -> tuple[float, float]:
    """Mean loss and accuracy of a network on the test images, by the programs of `train`.

    The accuracy is NaN where there are no classes.
    """
    programs = Programs(task, lambda _: optax.identity(), None, 1, network)
    _, *state = nnx.split(network, nnx.Param, ...)
    params, other = devices.place(
        jax.tree.map(lambda x: x[None], state), programs.mesh, devices.SEEDS
    )
    test = devices.place((task.dataset.test.inputs, task.dataset.test.targets), programs.mesh)
    loss, accuracy = jax.device_get(programs.evaluate(params, other, test))
    return loss.item(), accuracy.item()


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))


def _check_finite(metrics: EpochMetrics, label: str, epoch: int, seeds: Sequence[int]) -> None:
    finite = np.isfinite(metrics.train_loss) & np.isfinite(metrics.validation_loss)
    if not finite.all():
        lost = ", ".join(str(seed) for seed, fine in zip(seeds, finite, strict=True) if not fine)
        raise DivergenceError(
            f"{label} diverged in epoch {epoch}: the loss is not finite any more (seed"
            f" {lost}). Lower its learning rate. What was saved before is kept."
        )


def _in_words(metrics: EpochMetrics) -> str:
    words = [f"training loss {np.mean(metrics.train_loss):.4g}"]
    if np.isnan(metrics.validation_accuracy).any():
        words.append(f"validation loss {np.mean(metrics.validation_loss):.4g}")
    else:
        words.append(f"validation {100 * np.mean(metrics.validation_accuracy):.2f} %")
    return ", ".join([*words, f"{np.mean(metrics.nonzero):,.0f} live weights"])
