"""A sparse network in Flax Linen: 95 % of the weights are zero at the end."""

import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bregjax

STEPS = 1000

images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(images / 16, labels, random_state=0)


class MLP(nn.Module):
    """64-128-64-10."""

    @nn.compact
    def __call__(self, x):
        """From images (n, 64) to logits (n, 10)."""
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


init_key, batch_key = jax.random.split(jax.random.key(0))
model = MLP()
params = model.init(init_key, images[:1])["params"]
state = TrainState.create(
    apply_fn=model.apply,
    params=params,
    tx=bregjax.adabreg_to_density(0.05, STEPS),
)


@jax.jit
def train_step(state, images, labels):
    """One batch."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


for batch in jax.random.randint(batch_key, (STEPS, 64), 0, len(images)):
    state = train_step(state, images[batch], labels[batch])

logits = model.apply({"params": state.params}, test_images)
accuracy = (logits.argmax(-1) == test_labels).mean()
print(f"{accuracy:.1%} of unseen digits right")
print(bregjax.sparsity_report(state.params))
