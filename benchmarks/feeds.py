"""Where training batches come from: the device's memory or a stream, in the same order."""

import abc
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import Split
from benchmarks.errors import BenchmarkError

Batch = tuple[Any, Any]
"""Inputs and targets, one row an example."""


def epoch_order(key: jax.Array, n: int, batch_size: int) -> jax.Array:
    """The order of an epoch: which of ``n`` examples are in which batch.

    A random permutation, cut into full batches; the examples that are left over differ from epoch
    to epoch.

    Args:
      key: of the epoch.
      n: number of examples.
      batch_size: examples in a batch.

    Returns:
        Indices of shape (n // batch_size, batch_size), int32.
    """
    steps = n // batch_size
    order = jax.random.permutation(key, n)[: steps * batch_size]
    return order.reshape(steps, batch_size).astype(jnp.int32)


class Feed(abc.ABC):
    """Where the batches of an epoch come from, for several seeds at once.

    An epoch comes in pieces of some steps each, so that a program can scan over a piece::

        def program(data, piece):  # jitted and mapped over the seeds, ``data`` for all the same
            def step(state, item):
                inputs, targets = feed.batch(data, item)
                ...
            return jax.lax.scan(step, state, piece)

        for piece in feed.pieces(keys, size):
            state = program(feed.data, piece)

    Which examples make a batch is for every feed what `epoch_order` says.

    Args:
      examples: how many there are.
      batch_size: examples in a batch.
    """

    data: Any = ()
    """arrays on the device that `batch` needs; the program gets them as an argument"""

    def __init__(self, examples: int, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got batch_size={batch_size}.")
        self._examples = examples
        self.batch_size = batch_size

    @property
    def steps(self) -> int:
        """Batches in an epoch, all of them full."""
        return self._examples // self.batch_size

    @abc.abstractmethod
    def pieces(self, keys: jax.Array, size: int, skip: int = 0) -> Iterator[Any]:
        """The pieces of an epoch.

        Args:
          keys: (seeds,), of the epoch; each seed has its own order.
          size: steps in a piece; the last one may have fewer.
          skip: so many pieces are left out at the beginning, and not read.

        Yields:
            Trees of arrays with leading axes (seeds, steps).
        """

    @abc.abstractmethod
    def batch(self, data: Any, item: Any) -> Batch:
        """The batch of one step of one seed; part of the jitted step.

        Args:
          data: the feed's ``data``.
          item: of a piece, the entry of the seed and the step.
        """

    def _orders(self, keys: jax.Array) -> jax.Array:
        """The orders of all seeds, (seeds, steps, batch_size)."""
        return _epoch_orders(keys, self._examples, self.batch_size)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _epoch_orders(keys: jax.Array, n: int, batch_size: int) -> jax.Array:
    return jax.vmap(lambda key: epoch_order(key, n, batch_size))(keys)


class ResidentFeed(Feed):
    """Examples that live on the device, whole; pieces are their indices.

    Args:
      split: the examples.
      batch_size: examples in a batch.
    """

    def __init__(self, split: Split, batch_size: int):
        super().__init__(len(split), batch_size)
        self.data = jax.device_put((split.inputs, split.targets))

    def pieces(self, keys: jax.Array, size: int, skip: int = 0) -> Iterator[jax.Array]:
        """Indices (seeds, steps, batch_size); see `Feed.pieces`."""
        orders = self._orders(keys)
        for start in range(skip * size, self.steps, size):
            yield orders[:, start : start + size]

    def batch(self, data: Batch, item: jax.Array) -> Batch:
        """The examples with these indices."""
        inputs, targets = data
        return inputs[item], targets[item]


class Source(Protocol):
    """Random access to examples, from several threads at once.

    Where there is a method ``__getitems__(indices)`` as well, which returns a list of examples,
    batches are read by it (PyTorch and tfds have the same custom).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """An input and a target, as NumPy arrays or scalars; always the same for an index."""
        ...


class StreamedFeed(Feed):
    """Examples that the device cannot hold, read ahead by grain while the device computes.

    A piece is put on the device when it is asked for. Whoever asks while the program on the piece
    before still runs, as JAX's asynchronous dispatch lets them, has two pieces on the device, one
    in use and one on its way.

    Args:
      source: the examples, `data.stream` or a `Split`, say.
      batch_size: examples in a batch.
      workers: threads that read.
      prefetch: steps that are read ahead.
    """

    def __init__(self, source: Source, batch_size: int, *, workers: int = 4, prefetch: int = 16):
        super().__init__(len(source), batch_size)
        self._source = source
        self._options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=prefetch)

    def pieces(self, keys: jax.Array, size: int, skip: int = 0) -> Iterator[Batch]:
        """Inputs and targets (seeds, steps, batch_size, …); see `Feed.pieces`.

        Raises:
            BenchmarkError: if an example cannot be read.
        """
        orders = np.asarray(self._orders(keys))
        steps = list(np.swapaxes(orders, 0, 1)[skip * size :])
        stream = (
            grain.MapDataset.source(steps)
            .map(self._read)
            .to_iter_dataset(self._options)
            .batch(size, batch_fn=_stack_steps)
        )
        iterator = iter(stream)
        try:
            for piece in iterator:
                yield jax.device_put(piece)
        finally:  # also when the caller stops before the end
            iterator.close()

    def batch(self, data: Any, item: Batch) -> Batch:
        """The item itself."""
        del data
        return item

    def _read(self, indices: np.ndarray) -> Batch:
        """The batches (seeds, batch_size, …) of a step."""
        flat = indices.ravel().tolist()
        try:
            read_many = getattr(self._source, "__getitems__", None)
            examples = read_many(flat) if read_many else [self._source[index] for index in flat]
        except BenchmarkError:
            raise
        except Exception as error:  # sources raise what they like
            reason = str(error).strip().partition("\n")[0][:200]
            raise BenchmarkError(
                f"the training examples cannot be read ({type(error).__name__}: {reason})."
            ) from error
        inputs, targets = (np.stack(column) for column in zip(*examples, strict=True))
        return (
            inputs.reshape(*indices.shape, *inputs.shape[1:]),
            targets.reshape(*indices.shape, *targets.shape[1:]),
        )


def _stack_steps(steps: Sequence[Batch]) -> Batch:
    """Join steps (seeds, batch_size, …) to a piece (seeds, steps, batch_size, …)."""
    inputs, targets = (np.stack(column, axis=1) for column in zip(*steps, strict=True))
    return inputs, targets
