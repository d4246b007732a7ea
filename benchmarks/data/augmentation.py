"""Random crops and mirror images of a batch, as part of the jitted training step."""

import jax
import jax.numpy as jnp


def crop_and_flip(
    key: jax.Array, images: jax.Array, *, padding: int = 4, flip: bool = True
) -> jax.Array:
    """Crop each image at random after zero padding, and mirror half of them.

    The row and column of the crop's corner are uniform over their 2·padding + 1 values, and an
    image is mirrored left to right with probability 1/2, independently of the other images.

    Args:
      key: the only source of randomness.
      images: (n, height, width, channels) of any dtype; black should be 0.
      padding: zeros added on each side; 0 leaves the images in place.
      flip: whether to mirror.

    Returns:
        Images of the same shape and dtype.

    Notes:
        It is one gather from the unpadded images. In a scan on the CPU backend (two cores) this
        adds 0.1 ms to a batch of 128 images of 32×32×3. A ``dynamic_slice`` for each image would
        add 0.5 ms for the crop alone, and a select between images and mirror images 8 ms.
    """
    n, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (2, n, 1), -padding, padding + 1)
    rows = corners[0] + jnp.arange(height)
    columns = corners[1] + jnp.arange(width)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(n, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    rows, columns = rows[:, :, None], columns[:, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    nearest = images[
        jnp.arange(n)[:, None, None], rows.clip(0, height - 1), columns.clip(0, width - 1)
    ]
    return jnp.where(inside[..., None], nearest, jnp.zeros((), images.dtype))
