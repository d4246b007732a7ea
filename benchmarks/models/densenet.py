"""The dense block of the architecture search, which asks for its useful connections."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.convolution import convolution
from benchmarks.models.layers import conv, kernel_init, linear


class DenseLayer(nnx.Module):
    """The parameters of a 3×3 convolution on several sources, with one kernel array for each.

    Args:
      sources: how many feature maps the layer reads.
      channels: channels of each.
      outputs: channels of the layer's own feature map.
      rngs: the random streams.
    """

    def __init__(self, sources: int, channels: int, outputs: int, *, rngs: nnx.Rngs):
        whole = kernel_init(rngs.params(), (3, 3, sources * channels, outputs), jnp.float32)
        self.kernels = nnx.List([nnx.Param(k) for k in jnp.split(whole, sources, axis=2)])
        self.bias = nnx.Param(jnp.zeros(outputs))


class DenseNet(nnx.Module):
    r"""A dense block in which every layer reads all feature maps before it.

    With x₀ the feature map of a first 3×3 convolution without bias, layer t = 1, …, depth + 1 is

    $$x_t = \mathrm{ReLU}\Bigl(b_t + \sum_{s < t} K_{t,s} * x_s\Bigr),$$

    The last feature map has one channel, and a linear layer classifies it. It is the network of the
    authors' DenseNet experiment on Fashion-MNIST for "Neural Architecture Search via Bregman
    Iterations" (Bungert et al., arXiv 2106.02479), with their depth 5 and 12 channels.

    One *connection* is K_{t,s}, all the kernels from one feature map to another. Each is an array
    of its own, ``targets/{t-1}/kernels/{s}`` of shape (3, 3, 12, 12), or (3, 3, 12, 1) for the last
    target. So with `bregjax.group_l2` over all four axes every connection is a group; with
    `bregjax.per_kernel`, the published choice, every pair of channels is. A layer is a convolution
    of the concatenated sources. It is computed source by source, with the kernels to all targets at
    once, so that each feature map is read (on the CPU: its patches are formed) only once.

    The published network differs: it has batch normalizations that it never applies (122 more
    parameters, 28,229 in all), and a ReLU on its logits, see ``final_relu``.

    Args:
      depth: the number of layers in the block.
      growth: channels of the feature maps.
      image_shape: (height, width, channels) of the images.
      classes: the number of logits.
      final_relu: put a ReLU after the last layer too, as published; see `MLP`.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(
        self,
        depth: int = 5,
        growth: int = 12,
        *,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        classes: int = 10,
        final_relu: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        *pixels, channels = image_shape
        self.stem = conv(channels, growth, 3, padding=1, bias=False, dtype=dtype, rngs=rngs)
        widths = [growth] * depth + [1]
        self.targets = nnx.List(
            [DenseLayer(t, growth, width, rngs=rngs) for t, width in enumerate(widths, start=1)]
        )
        self.head = linear(math.prod(pixels), classes, dtype=dtype, rngs=rngs)
        self.final_relu = final_relu

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        x = self.stem(images)
        sums = [target.bias.astype(x.dtype) for target in self.targets]
        for source in range(len(self.targets)):
            kernels = [target.kernels[source][...] for target in self.targets[source:]]
            outputs = convolution(
                x,
                jnp.concatenate(kernels, axis=-1).astype(x.dtype),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            ends = list(itertools.accumulate(kernel.shape[-1] for kernel in kernels))
            parts = jnp.split(outputs, ends[:-1], axis=-1)
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
            x = nnx.relu(sums.pop(0))
        x = self.head(x.reshape(x.shape[0], -1))
        return (nnx.relu(x) if self.final_relu else x).astype(jnp.float32)

    def connection_norms(self) -> jax.Array:
        """Euclidean norm of every connection, (depth + 1, depth + 1).

        Row t − 1 and column s hold the connection from feature map s to layer t. A connection
        survives where its norm is not zero. Where there is no connection (s ≥ t), the norm is 0.
        """
        size = len(self.targets)
        norms = [jnp.stack([jnp.linalg.norm(k[...]) for k in t.kernels]) for t in self.targets]
        return jnp.stack([jnp.pad(row, (0, size - row.size)) for row in norms])
