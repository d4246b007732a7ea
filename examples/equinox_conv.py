"""A sparse convolutional network in Equinox: 90 % of the weights are zero at the end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bregjax

STEPS = 600

images, labels = load_digits(return_X_y=True)
images = jnp.asarray(images.reshape(-1, 1, 8, 8) / 16, jnp.float32)
images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

key, batch_key = jax.random.split(jax.random.key(0))
keys = jax.random.split(key, 3)
model = eqx.nn.Sequential(
    [
        eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(512, 10, key=keys[2]),
    ]
)
params, static = eqx.partition(model, eqx.is_inexact_array)
tx = bregjax.adabreg_to_density(0.1, STEPS)
state = tx.init(params)


def logits_of(params, images):
    """From images (n, 1, 8, 8) to logits (n, 10)."""
    return jax.vmap(eqx.combine(params, static))(images)


@eqx.filter_jit
def train_step(params, state, images, labels):
    """One batch."""

    def loss_fn(params):
        logits = logits_of(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
    return optax.apply_updates(params, updates), state


for batch in jax.random.randint(batch_key, (STEPS, 64), 0, len(images)):
    params, state = train_step(params, state, images[batch], labels[batch])

accuracy = (logits_of(params, test_images).argmax(-1) == test_labels).mean()
print(f"{accuracy:.1%} of unseen digits right")
print(bregjax.sparsity_report(params))
