"""The compiled programs of a training: one runs a whole epoch of all seeds side by side."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bregjax
from benchmarks.engine import devices
from benchmarks.engine.compaction import Compactor
from benchmarks.engine.task import Task
from bregjax._states import states_of

_EVALUATED_AT_ONCE = 500  # images; larger batches need memory and are no faster

Start = Callable[[jax.Array, Any], Any]
"""From a random key and the dense initial parameters to those that training starts with."""


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
