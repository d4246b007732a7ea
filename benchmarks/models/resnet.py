"""Residual networks for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.layers import ConvNorm, linear


class ResidualBlock(nnx.Module):
    """ReLU(F(x) + shortcut(x)), equation (2) of "Deep Residual Learning" (He et al., 2016).

    F is two 3×3 convolutions. The shortcut is the identity if the shape stays, else a 1×1
    convolution. No convolution has a bias, and each is followed by batch normalization.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      stride: of the first 3×3 convolution and of the shortcut.
      dtype: of the computation.
      rngs: the random streams.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ):
        self.first = ConvNorm(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nnx.identity
            if same
            else ConvNorm(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        return nnx.relu(self.second(nnx.relu(self.first(x))) + self.shortcut(x))


class ResNet(nnx.Module):
    """A residual network for small images, such as the 32×32 ones of CIFAR-10.

    It consists of a 3×3 convolution, stages of residual blocks, the mean over all pixels and a
    linear layer. Unlike the ImageNet networks of the same names, and like the networks of the
    Bregman papers, it starts without stride and without max-pooling. Every stage but the first
    begins with stride 2.

    Args:
      depths: the number of blocks in each stage.
      widths: the width of the blocks in each stage; the first convolution is as wide as the first.
      channels: channels of the images.
      classes: the number of logits.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        channels: int = 3,
        classes: int = 10,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        features = widths[0]
        self.stem = ConvNorm(channels, features, 3, dtype=dtype, rngs=rngs)
        blocks = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(features, width, stride, dtype=dtype, rngs=rngs))
                features = width
        self.blocks = nnx.List(blocks)
        self.head = linear(features, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2))).astype(jnp.float32)


def resnet18(**options: Any) -> ResNet:
    """ResNet-18 (He et al., 2016, table 1), 11,173,962 parameters; the options of `ResNet`."""
    return ResNet((2, 2, 2, 2), **options)


def resnet20(**options: Any) -> ResNet:
    """The narrow ResNet-20 for CIFAR-10, 272,474 parameters; the options of `ResNet`.

    It is the network of Section 4.2 of He et al. (2016), except for the two shortcuts that change
    shape. Here these are 1×1 convolutions, as in the larger networks (their option B). Theirs pad
    with zeros (option A), which needs 2,752 parameters fewer.
    """
    return ResNet((3, 3, 3), (16, 32, 64), **options)
