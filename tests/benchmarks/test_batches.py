import jax
import numpy as np

from benchmarks.data.batches import epoch_order, epoch_orders

KEYS = jax.random.split(jax.random.key(0), 3)


def test_the_order_is_a_permutation_cut_into_full_batches():
    order = epoch_order(KEYS[0], 21, 4)
    assert order.shape == (5, 4)
    assert order.dtype == np.int32
    assert len(np.unique(order)) == 20
    np.testing.assert_array_equal(order.ravel(), jax.random.permutation(KEYS[0], 21)[:20])
    assert epoch_order(KEYS[0], 3, 4).shape == (0, 4)


def test_each_seed_has_the_order_of_its_key():
    orders = epoch_orders(KEYS, 21, 4)
    for key, order in zip(KEYS, orders, strict=True):
        np.testing.assert_array_equal(order, epoch_order(key, 21, 4))
