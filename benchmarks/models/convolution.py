"""Convolution and max-pooling that are fast on the CPU too, inside ``lax.scan``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.models.products import product

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_CHUNK = 2**17  # numbers in the patches and outputs that are made at once: half a megabyte


def convolution(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """A replacement of `jax.lax.conv_general_dilated` for ``nnx.Conv``.

    On the CPU backend XLA's convolution takes a slow path inside loops, and an epoch is a loop. So
    there a two-dimensional convolution of NHWC images with an HWIO kernel K is computed by matrix
    products instead: with one-dimensional patches

        P[n, r, q, (j, c)] = x[n, r, s·q + j, c]   (x padded, stride s)

    the output is a sum over the rows of the kernel,

        y[n, p, q, o] = Σᵢ Σ₍ⱼ꜀₎ P[n, s·p + i, q, (j, c)] · K[i, (j, c), o].

    With a kernel of width w the patches are only w times as large as the image. Of images with one
    channel the patches are two-dimensional, with the pixels running fastest, and there is one
    product. A few images are processed at a time, so that their patches stay in the processor's
    cache; the gradient computes them again. In all other cases (other backends, layouts, dilation,
    groups) this is JAX's own function.

    A training step in a scan, on one core, takes 0.7 times as long as PyTorch's for the
    Fashion-MNIST ConvNet (``docs/experiments/peers.md``), and for ResNet-20 0.55 times as long as
    with two-dimensional patches of the whole batch.

    Arguments and result are those of `jax.lax.conv_general_dilated`.
    """
    numbers = lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, options.pop("dimension_numbers", None)
    )
    usual = all(option in (None, 1, (1, 1)) for option in options.values())
    if jax.default_backend() != "cpu" or numbers != _NHWC or not usual:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, dimension_numbers=numbers, **options
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    x = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    n, rows, columns, channels = x.shape
    kh, kw, _, features = rhs.shape
    sh, sw = window_strides
    height, width = (rows - kh) // sh + 1, (columns - kw) // sw + 1
    kernels = rhs.reshape(kh, kw * channels, features)

    def shifted(x: jax.Array, axis: int, size: int, stride: int, length: int) -> list[jax.Array]:
        """What each of the ``size`` entries of a kernel meets along an axis of the images."""
        last = stride * (length - 1) + 1
        return [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)]

    def convolve_one(x: jax.Array) -> jax.Array:
        rows = shifted(x[..., 0], 1, kh, sh, height)
        patches = jnp.stack([p for row in rows for p in shifted(row, 2, kw, sw, width)])
        y = product(patches.reshape(kh * kw, -1).T, rhs.reshape(kh * kw, features))
        return y.reshape(-1, height, width, features)

    def convolve(x: jax.Array) -> jax.Array:
        patches = jnp.concatenate(shifted(x, 2, kw, sw, width), axis=-1)
        y = jnp.zeros((), x.dtype)
        for row, kernel in zip(shifted(patches, 1, kh, sh, height), kernels, strict=True):
            y += product(row.reshape(-1, kw * channels), kernel)
        return y.reshape(-1, height, width, features)

    if kh == kw == 1:
        return convolve(x)
    one = channels == 1
    patch = height * kh * kw if one else rows * kw * channels
    size = _divisor(n, _CHUNK // (width * (patch + height * features)))
    chunks = x.reshape(n // size, size, *x.shape[1:])
    y = lax.map(jax.checkpoint(convolve_one if one else convolve, prevent_cse=False), chunks)
    return y.reshape(n, height, width, features)


def _divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` up to ``limit``, or 1."""
    return max((d for d in range(1, limit + 1) if n % d == 0), default=1)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over disjoint 2×2 windows, (n, h, w, c) -> (n, h/2, w/2, c).

    If several values are the maximum, the first one, row by row, gets the gradient, as in
    `jax.lax.reduce_window` and in PyTorch. With sparse kernels this happens in whole channels.

    Raises:
      ValueError: if the height or the width is odd.
    """
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and for each which of the four entries it was."""
    n, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"max_pool needs an even height and width, got x of shape {x.shape}.")
    windows = x.reshape(n, h // 2, 2, w // 2, 2, c)
    quarters = [windows[:, :, i, :, j] for i in range(2) for j in range(2)]
    y = functools.reduce(jnp.maximum, quarters)
    first, second, third, _ = (quarter == y for quarter in quarters)
    return y, jnp.where(first, 0, jnp.where(second, 1, jnp.where(third, 2, 3))).astype(jnp.int8)


def _max_pool_backward(winner: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    n, h, w, c = g.shape

    def enlarged(x: jax.Array) -> jax.Array:
        x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
        return x.reshape(n, 2 * h, 2 * w, c)

    quarter = jnp.tile(jnp.arange(4, dtype=jnp.int8).reshape(2, 2, 1), (h, w, 1))
    return (jnp.where(enlarged(winner) == quarter, enlarged(g), 0),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
