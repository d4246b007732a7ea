"""Convolution for the networks: patches and matrix products on the CPU, XLA's own elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_CHUNK = 2**17  # patches and outputs of that many numbers stay in the cache of a core


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    other = any(value is not None for value in options.values())
    if jax.default_backend() != "cpu" or numbers != _NHWC or dilated or feature_group_count != 1 or other:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )
    kh, kw, channels, features = rhs.shape
    sh, sw = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], (kh, kw), window_strides, padding)
    (top, bottom), (left, right) = padding
    height = (lhs.shape[1] + top + bottom - kh) // sh + 1
    width = (lhs.shape[2] + left + right - kw) // sw + 1

    def convolve(x: jax.Array) -> jax.Array:
        zero = jnp.zeros((), x.dtype)
        x = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
        columns = (x[:, :, j : j + sw * (width - 1) + 1 : sw] for j in range(kw))
        patches = jnp.concatenate(list(columns), axis=-1)
        rows = (patches[:, i : i + sh * (height - 1) + 1 : sh] for i in range(kh))
        y = sum(
            _product(row.reshape(-1, kw * channels), kernel.reshape(kw * channels, features))
            for row, kernel in zip(rows, rhs, strict=True)
        )
        return y.reshape(-1, height, width, features)

    if kh == kw == 1:
        return convolve(lhs)
    images = lhs.shape[0]
    numbers = (lhs.shape[1] + top + bottom) * width * kw * channels + height * width * features
    size = max(d for d in range(1, images + 1) if images % d == 0 and (d == 1 or d * numbers <= _CHUNK))
    chunks = lhs.reshape(images // size, size, *lhs.shape[1:])
    y = lax.map(jax.checkpoint(convolve, prevent_cse=False), chunks)
    return y.reshape(images, height, width, features)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return x @ kernel, (x, kernel)


def _product_backward(residuals: tuple, g: jax.Array) -> tuple:
    x, kernel = residuals
    wide = kernel.shape[0] >= kernel.shape[1]
    return g @ kernel.T, lax.optimization_barrier(g.T @ x).T if wide else x.T @ g


_product.defvjp(_product_forward, _product_backward)
