import jax
import jax.numpy as jnp
import numpy as np

from bregjax._when_due import when_due


def test_nothing_is_computed_in_a_batch_of_which_none_is_due():
    calls = []

    def change(x, y):
        jax.debug.callback(lambda: calls.append(1))
        return x + y

    batched = jax.jit(jax.vmap(lambda due, x, y: when_due(due, change, x, y)))
    x, y = jnp.arange(3.0), jnp.ones(3)
    np.testing.assert_array_equal(batched(jnp.zeros(3, bool), x, y), x)
    jax.effects_barrier()
    assert not calls
    np.testing.assert_array_equal(batched(jnp.array([True, False, True]), x, y), [1, 1, 3])
    jax.effects_barrier()
    assert calls
