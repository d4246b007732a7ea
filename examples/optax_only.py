"""Whole neurons, with JAX and Optax alone: a quarter of the hidden units lives at the end."""

import itertools

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bregjax

STEPS, WIDTHS = 1000, (64, 128, 64, 10)

images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(images / 16, labels, random_state=0)

key, batch_key = jax.random.split(jax.random.key(0))
he = jax.nn.initializers.he_normal()
params = {
    f"layer{i}": {
        "kernel": he(jax.random.fold_in(key, i), (fan_in, fan_out)),
        "bias": jnp.zeros(fan_out),
    }
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS))
}


def logits_of(params, x):
    """From images (n, 64) to logits (n, 10)."""
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss_fn(params, batch):
    """Cross entropy in nats."""
    logits = logits_of(params, jnp.asarray(images)[batch])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[batch])
    return losses.mean()


# The output layer stays dense, so that no class dies.
hidden = bregjax.label_by_path({"layer2/*": False, "*/kernel": True}, default=False)
neurons = bregjax.per_neuron()
tx = optax.chain(
    optax.clip_by_global_norm(1.0),  # in front, nothing behind
    bregjax.adabreg_to_density(0.25, STEPS, regularizer=neurons, mask=hidden),
)


def train_step(carry, batch):
    """One batch."""
    params, state = carry
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), loss


batches = jax.random.randint(batch_key, (STEPS, 64), 0, len(images))
(params, state), losses = jax.lax.scan(train_step, (params, tx.init(params)), batches)

accuracy = (logits_of(params, test_images).argmax(-1) == test_labels).mean()
print(f"{accuracy:.1%} of unseen digits right")
print(bregjax.sparsity_report(params))
