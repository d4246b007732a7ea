"""The fully connected network."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.layers import linear


class MLP(nnx.Module):
    """A fully connected network with ReLU between its layers, on flattened images.

    With the sizes 784-200-80-10 it is the MNIST network of "A Bregman Learning Framework for Sparse
    Neural Networks" (Bungert et al., JMLR 2022).

    Args:
      sizes: the widths of input, hidden layers and output.
      final_relu: put a ReLU after the last layer too, as the published experiments do. A class can
        then die: if its logit is negative for every image, it never gets a gradient again.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        final_relu: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([linear(i, o, dtype=dtype, rngs=rngs) for i, o in pairs])
        self.final_relu = final_relu

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        x = self.layers[-1](x)
        return (nnx.relu(x) if self.final_relu else x).astype(jnp.float32)
