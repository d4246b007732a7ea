"""The convolutional networks for images of one channel."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.models.convolution import max_pool
from benchmarks.models.layers import ConvNorm, conv, linear


class ConvNet(nnx.Module):
    """Two convolutions of 64 channels, then 1024-128-classes, for 28×28 images of one channel.

    The convolutions have 5×5 kernels, no padding, 2×2 max-pooling and ReLU; the width and height of
    the images change as 28 -> 24 -> 12 -> 8 -> 4. It is the network of the Fashion-MNIST experiment
    in "A Bregman Learning Framework for Sparse Neural Networks" (Bungert et al., JMLR 2022). The
    last feature map is flattened with the channel running fastest (in PyTorch: slowest), which only
    changes the order of the rows of the next kernel.

    Args:
      classes: the number of logits.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(self, *, classes: int = 10, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.conv1 = conv(1, 64, 5, dtype=dtype, rngs=rngs)
        self.conv2 = conv(64, 64, 5, dtype=dtype, rngs=rngs)
        self.linear1 = linear(4 * 4 * 64, 128, dtype=dtype, rngs=rngs)
        self.linear2 = linear(128, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, 28, 28, 1)."""
        x = nnx.relu(max_pool(self.conv1(images)))
        x = nnx.relu(max_pool(self.conv2(x)))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(x).astype(jnp.float32)


class LeNet5(nnx.Module):
    """LeNet-5 as Caffe has it: convolutions of 20 and 50 channels, then 800-500-classes.

    The convolutions have 5×5 kernels, no padding and 2×2 max-pooling; the only ReLU is that of the
    500 neurons. For 28×28 images of one channel and ten classes it has 430,500 weights and 580
    biases.

    Args:
      classes: the number of logits.
      dtype: the dtype of the computation; by default that of images and parameters.
      rngs: the random streams.
    """

    def __init__(self, *, classes: int = 10, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.conv1 = conv(1, 20, 5, dtype=dtype, rngs=rngs)
        self.conv2 = conv(20, 50, 5, dtype=dtype, rngs=rngs)
        self.linear1 = linear(4 * 4 * 50, 500, dtype=dtype, rngs=rngs)
        self.linear2 = linear(500, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, 28, 28, 1)."""
        x = max_pool(self.conv1(images))
        x = max_pool(self.conv2(x))
        x = nnx.relu(self.linear1(x.reshape(x.shape[0], -1)))
        return self.linear2(x).astype(jnp.float32)


class SmallConvNet(nnx.Module):
    """Convolutions of 16 and 32 channels, the second of stride 2, and one layer to the logits.

    The kernels are 3×3.

    Args:
      size: height and width of the images, in pixels.
      classes: the number of logits.
      normalized: whether batch norm follows each convolution.
      rngs: the random streams.
    """

    def __init__(self, size: int, *, classes: int = 10, normalized: bool = False, rngs: nnx.Rngs):
        if normalized:
            self.conv1 = ConvNorm(1, 16, 3, rngs=rngs)
            self.conv2 = ConvNorm(16, 32, 3, stride=2, rngs=rngs)
        else:
            self.conv1 = conv(1, 16, 3, padding=1, rngs=rngs)
            self.conv2 = conv(16, 32, 3, stride=2, padding=1, rngs=rngs)
        self.linear = linear(32 * ((size + 1) // 2) ** 2, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images (n, size, size, 1)."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        return self.linear(x.reshape(x.shape[0], -1))
