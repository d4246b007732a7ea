import jax
import numpy as np
import pytest

from benchmarks.data import Split
from benchmarks.data.batches import Batches, epoch_order

KEYS = jax.random.split(jax.random.key(0), 3)
BATCH_SIZE = 16
STEPS = 13


@pytest.fixture
def split() -> Split:
    n = BATCH_SIZE * STEPS + 5
    inputs = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
    return Split(inputs, np.arange(n, dtype=np.int32))


def seen(batches: Batches, keys: jax.Array, size: int, skip: int = 0) -> list[tuple]:
    """What a program that scans over each piece, mapped over the seeds, gets to see."""

    @jax.jit
    def program(data, piece):
        def step(carry, item):
            return carry, batches.batch(data, item)

        return jax.vmap(lambda piece: jax.lax.scan(step, None, piece)[1])(piece)

    pieces = batches.pieces(keys, size, skip)
    return [jax.device_get(program(batches.data, piece)) for piece in pieces]


def test_the_order_is_a_permutation_cut_into_full_batches():
    order = epoch_order(KEYS[0], 21, 4)
    assert order.shape == (5, 4)
    assert order.dtype == np.int32
    assert len(np.unique(order)) == 20
    np.testing.assert_array_equal(order.ravel(), jax.random.permutation(KEYS[0], 21)[:20])
    assert epoch_order(KEYS[0], 3, 4).shape == (0, 4)


@pytest.mark.parametrize(("size", "sizes"), [(STEPS, [13]), (5, [5, 5, 3]), (100, [13])])
def test_pieces_join_to_the_order_of_the_epoch(split, size, sizes):
    batches = Batches(split, BATCH_SIZE)
    assert (batches.steps, batches.batch_size) == (STEPS, BATCH_SIZE)
    pieces = seen(batches, KEYS, size)
    assert [targets.shape for _, targets in pieces] == [(3, k, BATCH_SIZE) for k in sizes]
    inputs, targets = (np.concatenate(column, axis=1) for column in zip(*pieces, strict=True))
    for seed, key in enumerate(KEYS):
        order = np.asarray(epoch_order(key, len(split), BATCH_SIZE))
        np.testing.assert_array_equal(targets[seed], order)  # targets are the examples' numbers
        np.testing.assert_array_equal(inputs[seed], split.inputs[order])


def test_an_epoch_can_be_entered_in_the_middle(split):
    batches = Batches(split, BATCH_SIZE)
    whole = seen(batches, KEYS, 5)
    for skip in range(4):
        for got, expected in zip(seen(batches, KEYS, 5, skip), whole[skip:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_fewer_examples_than_a_batch_make_no_piece(split):
    batches = Batches(split, 1000)
    assert batches.steps == 0
    assert list(batches.pieces(KEYS, 5)) == []


def test_a_batch_needs_an_example(split):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got batch_size=0"):
        Batches(split, 0)
