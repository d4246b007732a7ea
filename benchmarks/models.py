"""The networks, in Flax NNX."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx
from jax.nn.initializers import variance_scaling

from bregjax import sparse_initializer


class MLP(nnx.Module):
    """A fully connected network with ReLU between its layers, on flattened images.

    Args:
      sizes: the widths of input, hidden layers and output.
      density: the share of non-zero weights that each kernel starts with; 1 is dense.
      gain: a factor on He's standard deviation of the initial kernels.
      final_relu: put a ReLU after the last layer too, as the published experiments do. Logits can
        die there: a class whose logit is negative for every image gets no gradient ever again.
      rngs: the random streams.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        density: float = 1.0,
        gain: float = 1.0,
        final_relu: bool = False,
        rngs: nnx.Rngs,
    ):
        init = sparse_initializer(density, variance_scaling(2 * gain**2, "fan_in", "normal"))
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(i, o, kernel_init=init, rngs=rngs) for i, o in pairs])
        self.final_relu = final_relu

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        x = self.layers[-1](x)
        return nnx.relu(x) if self.final_relu else x
