"""A sparse network in Flax NNX: 95 % of the weights are zero at the end."""

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bregjax

STEPS = 1000

images, labels = load_digits(return_X_y=True)
images, test_images, labels, test_labels = train_test_split(images / 16, labels, random_state=0)

rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(64, 128, rngs=rngs),
    nnx.relu,
    nnx.Linear(128, 64, rngs=rngs),
    nnx.relu,
    nnx.Linear(64, 10, rngs=rngs),
)
tx = bregjax.adabreg_to_density(0.05, STEPS)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One batch."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


for step, batch in enumerate(jax.random.randint(rngs(), (STEPS, 64), 0, len(images))):
    loss = train_step(model, optimizer, images[batch], labels[batch])
    if step % 200 == 199:
        density = bregjax.density(nnx.state(model, nnx.Param))
        print(f"step {step + 1:5}  loss {loss:.3f}  weights alive {density:.1%}")

accuracy = (model(test_images).argmax(-1) == test_labels).mean()
print(f"{accuracy:.1%} of unseen digits right")
params = nnx.state(model, nnx.Param)
for sentence in bregjax.diagnose(tx, optimizer.opt_state, params, model(test_images)):
    print(sentence)
print(bregjax.sparsity_report(model))
