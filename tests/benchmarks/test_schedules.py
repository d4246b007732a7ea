import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.methods.schedules import Constant, Cosine, Plateau


def rates(learning_rate, losses, *, epochs, steps_per_epoch):
    """The learning rate at each step, read off plain SGD with gradient −1."""
    optimizer = optax.with_extra_args_support(
        learning_rate.build(optax.sgd, epochs, steps_per_epoch)
    )
    params = jnp.zeros(())

    def step(state, loss):
        updates, state = optimizer.update(-jnp.ones(()), state, params, value=loss)
        return state, updates

    return np.asarray(jax.lax.scan(step, optimizer.init(params), jnp.asarray(losses))[1])


@pytest.mark.parametrize("case", [0, 1, 2])
def test_plateau_is_pytorchs(reference, case, x64):
    trace = np.load(reference / "plateau_schedule.npz")
    rate, factor, patience, threshold = trace[f"case{case}_cfg"]
    losses = trace[f"case{case}_metric"]
    plateau = Plateau(float(rate), float(factor), int(patience), float(threshold))
    # One step an epoch: the rate after epoch e is what the step of epoch e + 1 sees.
    ours = rates(plateau, losses, epochs=len(losses), steps_per_epoch=1)[1:]
    theirs = trace[f"case{case}_lr_after"][:-1]
    # PyTorch leaves a rate alone that would fall by less than 1e-8; ours falls on.
    skipped = theirs * (1 - factor) <= 1e-8
    np.testing.assert_allclose(ours[~skipped], theirs[~skipped], rtol=1e-10)
    assert (ours[skipped] <= theirs[skipped]).all()


def test_plateau_sees_the_mean_of_an_epoch_and_acts_between_epochs(x64):
    # Epoch means 1, 1, 1, …: with patience 1 the rate falls after the third epoch.
    losses = np.tile([0.5, 1.5], 6)
    seen = rates(Plateau(0.8, 0.5, patience=1), losses, epochs=6, steps_per_epoch=2)
    np.testing.assert_allclose(seen, [0.8] * 6 + [0.4] * 4 + [0.2] * 2)


def test_plateau_scales_adams_steps_too(x64):
    optimizer = Plateau(0.8, 0.5, patience=0).build(optax.adam, 2, 1)
    params = jnp.zeros(())
    state = optimizer.init(params)
    for expected in (0.8, 0.8, 0.4, 0.2):
        update = optax.with_extra_args_support(optimizer).update
        updates, state = update(jnp.ones(()), state, params, value=jnp.float32(1.0))
        np.testing.assert_allclose(np.asarray(updates), -expected, rtol=1e-6)


def test_cosine_rises_over_the_warm_up_and_falls_to_zero(x64):
    seen = rates(Cosine(0.3, warmup_epochs=2), np.ones(101), epochs=10, steps_per_epoch=10)
    steps = np.arange(101)
    rising = 0.3 * steps / 20
    falling = 0.15 * (1 + np.cos(np.pi * (steps - 20) / 80))
    np.testing.assert_allclose(seen, np.where(steps < 20, rising, falling), atol=1e-7)


def test_constant_and_cosine_without_warm_up():
    assert (rates(Constant(0.25), np.ones(3), epochs=1, steps_per_epoch=3) == 0.25).all()
    seen = rates(Cosine(0.3), np.ones(11), epochs=1, steps_per_epoch=10)
    np.testing.assert_allclose(seen, 0.15 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_flat_cosine_falls_later(warmup, x64):
    schedule = Cosine(0.3, warmup_epochs=warmup, flat=0.6)
    seen = rates(schedule, np.ones(101), epochs=10, steps_per_epoch=10)
    np.testing.assert_allclose(seen[10 * warmup : 61], 0.3)
    falling = 0.15 * (1 + np.cos(np.pi * (np.arange(60, 101) - 60) / 40))
    np.testing.assert_allclose(seen[60:], falling, atol=1e-7)


@pytest.mark.parametrize(("distance", "largest"), [(3.0, 0.3), (2.0, 0.2), (0.5, 0.05)])
def test_a_distance_bounds_the_largest_rate_by_the_root_of_the_steps(distance, largest):
    schedule = Cosine(0.3, warmup_epochs=2, distance=distance)
    seen = rates(schedule, np.ones(100), epochs=10, steps_per_epoch=10)
    assert max(seen) == pytest.approx(largest)


def test_a_rate_that_is_flat_to_the_end_is_one():
    seen = rates(Cosine(0.3, flat=1.0), np.ones(2), epochs=1, steps_per_epoch=2)
    np.testing.assert_allclose(seen, 0.3)


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_falls_to_its_final_share(warmup, x64):
    schedule = Cosine(0.3, warmup_epochs=warmup, final=0.1)
    seen = rates(schedule, np.ones(101), epochs=10, steps_per_epoch=10)
    first = 10 * warmup
    falling = 0.03 + 0.135 * (1 + np.cos(np.pi * (np.arange(first, 101) - first) / (100 - first)))
    np.testing.assert_allclose(seen[first:], falling, atol=1e-7)
