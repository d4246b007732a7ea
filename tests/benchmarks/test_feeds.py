import gc
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from test_data import MNIST_DIR, damage_mnist, needs_mnist

from benchmarks.data import Split, TfdsSource
from benchmarks.errors import BenchmarkError
from benchmarks.feeds import Feed, ResidentFeed, StreamedFeed, epoch_order

KEYS = jax.random.split(jax.random.key(0), 3)
BATCH_SIZE = 16
STEPS = 13


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.fixture
def split() -> Split:
    n = BATCH_SIZE * STEPS + 5
    inputs = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
    return Split(inputs, np.arange(n, dtype=np.int32))


class Recording:
    """A source that remembers what was asked for, takes its time and fails at one index."""

    def __init__(self, split: Split, failing: int | None = None, seconds: float = 0):
        self.split, self.failing, self.seconds, self.asked = split, failing, seconds, set()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.add(index)
        time.sleep(self.seconds)
        if index == self.failing:
            raise OSError(5, "Input/output error\nand a second line")
        return self.split[index]


def grain_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


def batches(feed: Feed, keys: jax.Array, size: int, skip: int = 0) -> list[tuple]:
    """What a program that scans over each piece, mapped over the seeds, gets to see."""

    @jax.jit
    def program(data, piece):
        def step(carry, item):
            return carry, feed.batch(data, item)

        return jax.vmap(lambda piece: jax.lax.scan(step, None, piece)[1])(piece)

    return [jax.device_get(program(feed.data, piece)) for piece in feed.pieces(keys, size, skip)]


def assert_equal(left: list[tuple], right: list[tuple]) -> None:
    assert len(left) == len(right)
    for (left_inputs, left_targets), (right_inputs, right_targets) in zip(left, right, strict=True):
        assert left_inputs.dtype == right_inputs.dtype
        assert left_targets.dtype == right_targets.dtype
        np.testing.assert_array_equal(left_inputs, right_inputs)
        np.testing.assert_array_equal(left_targets, right_targets)


def test_the_order_is_a_permutation_cut_into_full_batches():
    order = epoch_order(KEYS[0], 21, 4)
    assert order.shape == (5, 4)
    assert order.dtype == np.int32
    assert len(np.unique(order)) == 20
    np.testing.assert_array_equal(order.ravel(), jax.random.permutation(KEYS[0], 21)[:20])
    assert epoch_order(KEYS[0], 3, 4).shape == (0, 4)


@pytest.mark.parametrize("kind", [ResidentFeed, StreamedFeed])
@pytest.mark.parametrize(("size", "sizes"), [(STEPS, [13]), (5, [5, 5, 3]), (100, [13])])
def test_pieces_join_to_the_order_of_the_epoch(split, kind, size, sizes):
    feed = kind(split, BATCH_SIZE)
    assert (feed.steps, feed.batch_size) == (STEPS, BATCH_SIZE)
    pieces = batches(feed, KEYS, size)
    assert [targets.shape for _, targets in pieces] == [(3, k, BATCH_SIZE) for k in sizes]
    inputs, targets = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
    for seed, key in enumerate(KEYS):
        order = np.asarray(epoch_order(key, len(split), BATCH_SIZE))
        np.testing.assert_array_equal(targets[seed], order)  # targets are the examples' numbers
        np.testing.assert_array_equal(inputs[seed], split.inputs[order])


@pytest.mark.parametrize("kind", [ResidentFeed, StreamedFeed])
def test_an_epoch_can_be_entered_in_the_middle(split, kind):
    feed = kind(split, BATCH_SIZE)
    whole = batches(feed, KEYS, 5)
    for skip in range(4):
        assert_equal(batches(feed, KEYS, 5, skip), whole[skip:])


def test_what_is_skipped_is_not_read(split):
    source = Recording(split)
    batches(StreamedFeed(source, BATCH_SIZE), KEYS[:1], 5, skip=2)
    assert source.asked == set(np.asarray(epoch_order(KEYS[0], len(split), BATCH_SIZE)[10:]).flat)


@pytest.mark.parametrize("options", [{}, {"workers": 1, "prefetch": 1}, {"workers": 8}])
def test_threads_do_not_change_the_order(split, options):
    streamed = StreamedFeed(Recording(split), BATCH_SIZE, **options)
    assert_equal(batches(streamed, KEYS, 4), batches(ResidentFeed(split, BATCH_SIZE), KEYS, 4))


def test_images_as_targets_are_streamed_too(split):
    pairs = Split(split.inputs / np.float32(7), split.inputs / np.float32(255))
    assert_equal(
        batches(StreamedFeed(pairs, BATCH_SIZE), KEYS, 4),
        batches(ResidentFeed(pairs, BATCH_SIZE), KEYS, 4),
    )


@needs_mnist
def test_mnist_from_disk_gives_the_batches_of_mnist_on_the_device():
    chosen = np.random.default_rng(0).permutation(10_000)[:1500]
    source = TfdsSource("mnist", "test", MNIST_DIR).subset(chosen)
    assert_equal(
        batches(StreamedFeed(source, 128), KEYS[:2], 4, skip=1),
        batches(ResidentFeed(source.whole(), 128), KEYS[:2], 4, skip=1),
    )


def test_fewer_examples_than_a_batch_make_no_piece(split):
    for feed in (ResidentFeed(split, 1000), StreamedFeed(split, 1000)):
        assert feed.steps == 0
        assert list(feed.pieces(KEYS, 5)) == []


def test_a_batch_needs_an_example(split):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got batch_size=0"):
        ResidentFeed(split, 0)


def test_an_iterator_that_is_abandoned_stops_reading(split):
    """And no thread is left, says the fixture."""
    source = Recording(split, seconds=0.002)
    pieces = StreamedFeed(source, BATCH_SIZE, workers=1, prefetch=STEPS).pieces(KEYS[:1], 1)
    next(pieces)
    readers = grain_threads()
    assert readers
    del pieces
    for reader in readers:
        reader.join(timeout=10)
    assert len(source.asked) < len(split) / 2


def test_a_failing_source_is_one_clear_error(split):
    failing = int(epoch_order(KEYS[1], len(split), BATCH_SIZE)[7, 3])
    feed = StreamedFeed(Recording(split, failing), BATCH_SIZE)
    pieces = feed.pieces(KEYS[1:2], 2)
    assert len([next(pieces) for _ in range(3)]) == 3  # what comes before is served
    with pytest.raises(BenchmarkError, match=r"cannot be read \(OSError: .*Input/output") as caught:
        next(pieces)
    assert "\n" not in str(caught.value)
    for reader in grain_threads():  # the traceback, which is alive here, keeps none of them
        reader.join(timeout=10)
    assert not grain_threads()


@needs_mnist
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    damage_mnist(tmp_path, damage)
    with pytest.raises(BenchmarkError, match=r"mnist/train in .*prepare it again") as caught:
        for _ in StreamedFeed(TfdsSource("mnist", "train", tmp_path), 500).pieces(KEYS[:1], 4):
            pass
    assert "\n" not in str(caught.value)
