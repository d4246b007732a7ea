"""The training engine: one program runs a whole epoch of all seeds side by side."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bregjax
from benchmarks.cli.errors import BenchmarkError
from benchmarks.cli.interruption import Interrupted
from benchmarks.cli.progress import Progress
from benchmarks.data import Dataset
from benchmarks.data.batches import epoch_orders
from benchmarks.engine import devices
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.engine.compaction import Compaction, Compactor
from benchmarks.engine.objectives import Objective, classification
from bregjax._states import states_of

_EVALUATED_AT_ONCE = 500  # images; larger batches need memory and are no faster


class Best(NamedTuple):
    """The best network on the validation images; among equally good ones the last."""

    params: Any
    other: Any
    score: Any
    epoch: Any


class TrainState(NamedTuple):
    """The state of a training; with several seeds every leaf has a leading seed axis."""

    params: Any
    other: Any
    opt_state: Any
    hyperparameters: Any
    """the optimizer's parameters that differ from seed to seed"""
    best: Best
    loss: Any
    """sum over the steps of the epoch so far"""
    accuracy: Any
    """sum over the steps of the epoch so far"""
    validation_loss: Any
    """at the end of the previous epoch"""


class EpochMetrics(NamedTuple):
    """One row of a learning curve; with several seeds every field has a seed axis."""

    train_loss: Any
    """mean over the epoch's batches, while the weights change"""
    train_accuracy: Any
    """a fraction, averaged in the same way; NaN where there are no classes"""
    validation_loss: Any
    """at the end of the epoch"""
    validation_accuracy: Any
    """at the end of the epoch, a fraction; NaN where there are no classes"""
    l1_norm: Any
    """sum of the absolute weights, without biases and norms"""
    nonzero: Any
    """number of non-zero weights, without biases and norms"""
    density: Any
    """share of non-zero weights, without biases and norms"""
    strength_scale: Any
    """the factor by which `bregjax.steer` multiplies strengths; NaN where nothing is steered"""
    target: Any
    """the target of `bregjax.steer`; NaN where nothing is steered"""


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and the data that it is trained on."""

    dataset: Dataset
    build: Callable[[nnx.Rngs], nnx.Module]
    """makes the dense network"""
    batch_size: int = 128
    objective: Objective = classification
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """from a random key and a batch of inputs to the inputs that are trained on"""
    steps_per_call: int | None = None
    """training steps in one program; by default an epoch. Only between programs the progress bar
    moves, a signal stops the training and checkpoints are saved: set it where an epoch takes
    minutes."""
    epochs: int | None = None
    """passes over the training images, if the task has a fixed length"""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """how the network was built, for summary.json"""

    @property
    def steps(self) -> int:
        """Of an epoch; examples that do not fill a batch are left out, in each epoch other ones.

        Raises:
            BenchmarkError: if there are fewer images than in a batch.
        """
        images = len(self.dataset.train)
        if images < self.batch_size:
            raise BenchmarkError(
                f"--batch-size {self.batch_size} exceeds the {images} training images of"
                f" {self.dataset.name}."
            )
        return images // self.batch_size

    def shapes(self) -> nnx.Module:
        """The dense network in evaluation mode, with shapes in place of arrays."""
        network = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        network.eval()
        return network


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


Start = Callable[[jax.Array, Any], Any]
"""From a random key and the dense initial parameters to those that training starts with."""

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
    history = _History()
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
        position, history = saved.position, _History(**saved.history)
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


class Programs:
    """The compiled programs of a training; each maps over the seeds, see `devices.spread`."""

    def __init__(
        self,
        task: Task,
        optimizer: Callable[[Any], optax.GradientTransformation],
        start: Start | None,
        seeds: int,
        network: nnx.Module | None = None,
    ):
        self.mesh = mesh = devices.mesh(seeds, task.batch_size)
        dense = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
        self._weights = sum(
            x.size for x in jax.tree.leaves(nnx.state(dense, nnx.Param)) if x.ndim >= 2
        )
        model = dense if network is None else nnx.clone(network)
        model.train()
        if mesh.shape[devices.BATCH] > 1:
            # Batch statistics are those of the whole batch, which is spread over the devices.
            model.set_attributes(nnx.BatchNorm, axis_name=devices.BATCH, raise_if_not_found=False)
        self._training = nnx.graphdef(model)
        model.eval()
        self._evaluation = nnx.graphdef(model)
        self._task, self._optimizer, self._start = task, optimizer, start
        self.initialize = jax.jit(devices.spread(self._initialize, mesh, (0, 0)))
        self.advance = jax.jit(
            devices.spread(self._advance, mesh, (0, 0, 0, None, None)), donate_argnums=0
        )
        self.finish = jax.jit(devices.spread(self._finish, mesh, (0, None, None)), donate_argnums=0)
        self.inspect = jax.jit(devices.spread(self._inspect, mesh, (0, None)))
        self.evaluate = jax.jit(devices.spread(self._evaluate, mesh, (0, 0, None)))

    def compacted(self, compactor: Compactor, state: TrainState) -> tuple["Programs", TrainState]:
        """The programs and the state of one seed, with a smaller network."""
        params, other, opt_state = jax.device_put(
            jax.tree.map(lambda x: x[0], (state.params, state.other, state.opt_state)),
            jax.devices()[0],
        )
        model = nnx.merge(self._evaluation, params, other)
        optimizer = self._optimizer(state.hyperparameters)
        model, opt_state = compactor.shrink(model, optimizer, opt_state)
        programs = Programs(self._task, self._optimizer, self._start, 1, model)
        _, params, other = nnx.split(model, nnx.Param, ...)
        smaller = jax.tree.map(lambda x: x[None], (params, other, opt_state))
        params, other, opt_state = devices.place(smaller, programs.mesh, devices.SEEDS)
        best = state.best._replace(params=params, other=other)
        return programs, state._replace(
            params=params, other=other, opt_state=opt_state, best=jax.tree.map(jnp.copy, best)
        )

    def _initialize(self, key: jax.Array, hyperparameters: Any) -> TrainState:
        model_key, start_key = jax.random.split(key)
        model = self._task.build(nnx.Rngs(model_key))
        _, params, other = nnx.split(model, nnx.Param, ...)
        if self._start:
            params = self._start(start_key, params)
        best = Best(params, other, jnp.float32(-jnp.inf), jnp.int32(0))
        zero = jnp.float32(0)
        opt_state = self._optimizer(hyperparameters).init(params)
        unknown = jnp.float32(jnp.inf)
        return TrainState(params, other, opt_state, hyperparameters, best, zero, zero, unknown)

    def _advance(
        self, state: TrainState, piece: Any, key: jax.Array, first: jax.Array, data: Any
    ) -> tuple[TrainState, jax.Array]:
        """Train on the steps of ``piece``; the step numbers of the epoch count from ``first``."""
        optimizer = optax.with_extra_args_support(self._optimizer(state.hyperparameters))

        def step(state: TrainState, numbered: tuple) -> tuple[TrainState, None]:
            number, item = numbered
            inputs, targets = (x[item] for x in data)
            if self._task.augment:
                inputs = self._task.augment(jax.random.fold_in(key, number), inputs)
            inputs, targets = devices.share((inputs, targets), self.mesh)

            def loss_fn(params: Any) -> tuple[jax.Array, tuple]:
                outputs, other = self._apply(self._training, params, state.other, inputs)
                loss, accuracy = self._task.objective(outputs, targets)
                return jnp.mean(loss), (jnp.mean(accuracy), other)

            (loss, (accuracy, other)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params
            )
            loss, accuracy, gradient = devices.mean((loss, accuracy, gradient), self.mesh)
            updates, opt_state = optimizer.update(
                gradient,
                state.opt_state,
                state.params,
                value=loss,
                validation_loss=state.validation_loss,
            )
            state = state._replace(
                params=optax.apply_updates(state.params, updates),
                other=other,
                opt_state=opt_state,
                loss=state.loss + loss,
                accuracy=state.accuracy + accuracy,
            )
            return state, None

        state, _ = jax.lax.scan(step, state, (first + jnp.arange(len(piece)), piece))
        return state, jnp.copy(state.loss)  # the state will be donated, the copy can be waited for

    def _finish(
        self, state: TrainState, epoch: jax.Array, validation: tuple[jax.Array, jax.Array]
    ) -> tuple[TrainState, EpochMetrics]:
        """Measure at the end of an epoch, and keep the best network."""
        metrics = self._inspect(state, validation)
        score = metrics.validation_accuracy
        score = jnp.where(jnp.isnan(score), -metrics.validation_loss, score)
        candidate = Best(state.params, state.other, score, epoch)
        best = jax.tree.map(
            lambda new, old: jnp.where(score >= state.best.score, new, old), candidate, state.best
        )
        zero = jnp.float32(0)
        state = state._replace(
            best=best, loss=zero, accuracy=zero, validation_loss=metrics.validation_loss
        )
        return state, metrics

    def _inspect(self, state: TrainState, validation: tuple[jax.Array, jax.Array]) -> EpochMetrics:
        loss, accuracy = self._evaluate(state.params, state.other, validation)
        weights = [x for x in jax.tree.leaves(state.params) if x.ndim >= 2]
        nonzero = jnp.stack([jnp.count_nonzero(x) for x in weights]).sum()
        return EpochMetrics(
            state.loss / self._task.steps,
            state.accuracy / self._task.steps,
            loss,
            accuracy,
            bregjax.regularizer_value(state.params, bregjax.l1()),
            nonzero,
            nonzero / self._weights,
            *_steering(state.opt_state),
        )

    def _evaluate(
        self, params: Any, other: Any, split: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Mean loss and accuracy."""

        def sums(batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            inputs, targets = batch
            outputs, _ = self._apply(self._evaluation, params, other, inputs)
            loss, accuracy = self._task.objective(outputs, targets)
            return jnp.sum(loss), jnp.sum(accuracy)

        total = len(split[0])
        size = min(total, _EVALUATED_AT_ONCE)
        full = total // size * size
        batches = jax.tree.map(lambda x: x[:full].reshape(-1, size, *x.shape[1:]), split)
        loss, accuracy = jax.tree.map(jnp.sum, jax.lax.map(sums, batches))
        if full < total:
            rest = sums((split[0][full:], split[1][full:]))
            loss, accuracy = loss + rest[0], accuracy + rest[1]
        return loss / total, accuracy / total

    def _apply(
        self, graphdef: Any, params: Any, other: Any, inputs: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The network's outputs, and the other variables after the forward pass."""
        # Copies, because variables can only be written to inside the transformation that made them.
        model = nnx.merge(graphdef, params, other, copy=True)
        outputs = model(self._task.dataset.normalize(inputs))
        return outputs, nnx.split(model, nnx.Param, ...)[2]


def _steering(opt_state: Any) -> tuple[Any, Any]:
    """The factor on the strengths and the target; NaN where nothing is steered."""
    for part in states_of(opt_state, bregjax.SteerState):
        return part.strength_scale, part.target
    return jnp.float32(jnp.nan), jnp.float32(jnp.nan)


class _History:
    """What was measured so far; ``as_dict`` gives the constructor's arguments, for checkpoints."""

    def __init__(
        self,
        rows: Mapping[str, np.ndarray] | None = None,
        seconds: Sequence[float] = (),
        snapshots: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        elapsed: float | np.ndarray = 0.0,
    ):
        # Checkpoints do not keep the order of names.
        columns = [rows[name] for name in EpochMetrics._fields] if rows else []
        self._rows = [EpochMetrics(*row) for row in zip(*columns, strict=True)]
        self.seconds = list(seconds)
        self.elapsed = float(elapsed)
        self.snapshots = {
            name: {int(epoch): array for epoch, array in kept.items()}
            for name, kept in (snapshots or {}).items()
        }

    def add(
        self,
        epoch: int,
        metrics: EpochMetrics,
        snapshot: Mapping[str, np.ndarray],
        seconds: float = np.nan,
    ) -> None:
        """Add a row; for epoch 0, before any training, the training loss and accuracy are NaN."""
        if epoch == 0:
            untrained = np.full_like(metrics.train_loss, np.nan)
            metrics = metrics._replace(train_loss=untrained, train_accuracy=untrained)
        self._rows.append(jax.device_get(metrics))
        self.seconds.append(seconds)
        for name, array in snapshot.items():
            self.snapshots.setdefault(name, {})[epoch] = array

    def curve(self) -> EpochMetrics:
        """The rows, stacked."""
        return EpochMetrics(*(np.stack(column) for column in zip(*self._rows, strict=True)))

    def seconds_per_epoch(self) -> float:
        """The median; NaN if no epoch was timed."""
        timed = [s for s in self.seconds if not np.isnan(s)]
        return float(np.median(timed)) if timed else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The arguments that make the same object."""
        arguments = {
            "rows": self.curve()._asdict(),
            "seconds": np.asarray(self.seconds),
            "elapsed": np.asarray(self.elapsed),
        }
        snapshots = {
            name: {str(epoch): array for epoch, array in kept.items()}
            for name, kept in self.snapshots.items()
        }
        return arguments | ({"snapshots": snapshots} if snapshots else {})


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))


def _check_finite(metrics: EpochMetrics, label: str, epoch: int, seeds: Sequence[int]) -> None:
    finite = np.isfinite(metrics.train_loss) & np.isfinite(metrics.validation_loss)
    if not finite.all():
        lost = ", ".join(str(seed) for seed, fine in zip(seeds, finite, strict=True) if not fine)
        raise BenchmarkError(
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
