"""An autoencoder of wide layers with a skip between any two of them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.layers import linear


class SkipBlock(nnx.Module):
    """One layer, and the skips that end at its output.

    Args:
      width: of input and output.
      sources: the number of earlier states that a skip starts from; 0 for no skips.
      dtype: of the computation.
      rngs: the random streams.
    """

    def __init__(self, width: int, sources: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.linear = linear(width, width, dtype=dtype, rngs=rngs)
        self.skips = nnx.Param(jnp.zeros(sources)) if sources else None

    def __call__(self, states: list[jax.Array]) -> jax.Array:
        """The next state (n, width), from all earlier ones; the layer reads the last of them."""
        x = nnx.relu(self.linear(states[-1]))
        if self.skips is None:
            return x
        skipped = sum(s * state for s, state in zip(self.skips[...], states, strict=True))
        return x + jnp.asarray(skipped, x.dtype)


class Autoencoder(nnx.Module):
    r"""Fully connected layers of one width with optional trainable skip connections.

    From the flattened image x₀ the states are

    $$x_{k+1} = \mathrm{ReLU}(W_k x_k + b_k) + \sum_{i \le k} s_{k,i}\, x_i,$$

    and the last one is the output. This is the autoencoder of "Neural Architecture Search via
    Bregman Iterations" (Bungert et al., arXiv 2106.02479), as in the authors' code. It has seven
    states of 784 neurons, hence six matrices, and no bottleneck: the experiment asks whether one
    emerges. There is no activation around the sum, so a skip into the last state reaches the output
    linearly; without such a skip the output is non-negative.

    The skips start at zero. They are vectors ``blocks/k/skips`` of length k + 1; entry i is the
    skip from state i. `bregjax.weight_mask` does not count them as weights, so an optimizer
    regularizes them only if it is told to. The authors switch skips off by a strength of 1e10; here
    they are not built then.

    Args:
      width: the number of neurons in each state, which is the number of pixels of an image.
      depth: the number of weight matrices.
      skips: build the skip connections.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(
        self,
        width: int = 784,
        depth: int = 6,
        *,
        skips: bool = True,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(
            [SkipBlock(width, k + 1 if skips else 0, dtype=dtype, rngs=rngs) for k in range(depth)]
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Restored images with pixels in [0, 1] of normalized ones (n, height, width, channels)."""
        states = [images.reshape(images.shape[0], -1)]
        for block in self.blocks:
            states.append(block(states))
        return states[-1].reshape(images.shape).astype(jnp.float32)
