"""The layers that the networks share: their initialization, padding and precision.

Parameters are float32 whatever the dtype of the computation. Kernels are drawn from He's normal
distribution of variance 2 / fan-in; biases are zero.
"""

from typing import Any

import jax
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike

from benchmarks.models.convolution import convolution
from benchmarks.models.products import dot_general

kernel_init = variance_scaling(2, "fan_in", "normal")


def linear(
    inputs: int, outputs: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs
) -> nnx.Linear:
    """A fully connected layer, (n, inputs) -> (n, outputs)."""
    return nnx.Linear(
        inputs, outputs, dtype=dtype, kernel_init=kernel_init, dot_general=dot_general, rngs=rngs
    )


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with square kernels, (n, h, w, inputs) -> (n, h', w', outputs).

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      size: height and width of a kernel.
      stride: steps between outputs, in pixels.
      padding: the number of zeros added on every side. It is the same on all sides, as in PyTorch;
        ``"SAME"`` padding is one pixel off if the stride is 2.
      bias: add a trainable constant to every channel.
      dtype: the dtype of the computation; by default that of input and parameters.
      rngs: the random streams.
    """
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=padding,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=convolution,
        rngs=rngs,
    )


class BatchNorm(nnx.BatchNorm):
    """Batch normalization that computes in float32 and returns the dtype of its input.

    With a narrow dtype `nnx.BatchNorm` would round the running statistics when it uses them. As in
    PyTorch they keep 0.9 of their value in every step. The running variance is the biased one;
    PyTorch's divides by n − 1.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        """Normalize ``x`` (..., channels) over all axes but the last."""
        return super().__call__(x, *args, **options).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A convolution, padded to keep height and width up to its stride, and batch normalization.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      size: height and width of a kernel, odd.
      stride: steps between outputs, in pixels.
      bias: whether the convolution has a bias, beside that of the normalization.
      dtype: of the convolution.
      rngs: the random streams.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        bias: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(
            inputs,
            outputs,
            size,
            stride=stride,
            padding=size // 2,
            bias=bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        return self.norm(self.conv(x))
