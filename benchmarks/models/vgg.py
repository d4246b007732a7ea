"""VGG networks with batch normalization, for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.convolution import max_pool
from benchmarks.models.layers import ConvNorm, linear


class VGG(nnx.Module):
    """Stages of 3×3 convolutions, each stage ended by 2×2 max-pooling, then one linear layer.

    The form usual for CIFAR-10: batch normalization after every convolution (which keep their
    superfluous biases, as in the published networks), and a single classifier in place of the three
    wide layers of Simonyan and Zisserman (2015). Of images larger than 2^stages pixels the mean
    over the last feature map is classified.

    Args:
      stages: the widths of the convolutions in each stage.
      channels: channels of the images.
      classes: the number of logits.
      dtype: of the computation; None is that of images and parameters.
      rngs: the random streams.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        channels: int = 3,
        classes: int = 10,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        features = channels
        built = []
        for widths in stages:
            layers = []
            for width in widths:
                layers.append(ConvNorm(features, width, 3, bias=True, dtype=dtype, rngs=rngs))
                features = width
            built.append(nnx.List(layers))
        self.stages = nnx.List(built)
        self.head = linear(features, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        x = images
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = max_pool(x)
        return self.head(x.mean((1, 2))).astype(jnp.float32)


def vgg16(**options: Any) -> VGG:
    """VGG-16 (configuration D of Simonyan and Zisserman, 2015), 14,728,266 parameters.

    Args:
      **options: those of `VGG`.
    """
    return VGG(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3), **options)
